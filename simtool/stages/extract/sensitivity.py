"""E||dy/dt||^2 of what each layer gives, summed over the positions that share a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtool.networks import Network
from simtool.networks.layers import Layer, Use
from simtool.networks.sensitivity import is_acyclic, squared_gradients

SAMPLES = 512  # averaged over, the first of the file, which are a random choice


@dataclass
class LayerSensitivity:
    """Adds up squared gradients over batches; a layer whose gradients cannot be had keeps zeros.

    A network that differentiates its own program (PyTorch) gives those of every layer. Of others, where the network is an affine graph,
    the layers are known whose results are the network's output or go into an activation as they are.
    """

    network: Network
    layers: tuple[Layer, ...]
    samples: int = 0
    _sums: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self._sums = [np.zeros(layer.spec.rows) for layer in self.layers]

    def add(self, batch: np.ndarray, first: int) -> None:
        """Count the samples ``batch`` (k, ...), the first of which is column ``first``."""
        few = batch[: max(0, SAMPLES - first)]
        if not len(few) or not self.layers:
            return
        found = self._gradients(few)
        for sums, layer in zip(self._sums, self.layers, strict=True):
            for use in layer.uses:
                if use.result in found:
                    sums += _by_row(layer, use, found[use.result])
        self.samples += len(few)

    def mean(self) -> list[np.ndarray]:
        """(rows,) for each layer."""
        return [np.where(np.isfinite(sums), sums, 0.0) / max(1, self.samples) for sums in self._sums]

    def _gradients(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        names = [use.result for layer in self.layers for use in layer.uses]
        own: Any = getattr(self.network, "sensitivities", None)
        if own is not None:
            found: dict[str, np.ndarray] = own(batch, names)
            return found
        outline = self.network.outline
        if outline.whole is None or not is_acyclic(outline.whole):
            return {}
        recorded = outline.recorded(self.network.tensors(batch, outline.wanted()))
        by_node = squared_gradients(outline.whole, recorded.z) if recorded.z else {}
        by_tensor = {node.z_tensor: by_node[node.name] for node in outline.whole.nodes if node.z_tensor}
        # Sums over the samples stand for one sample here: they are summed anyway.
        found = {name: by_tensor[name][None] for name in names if name in by_tensor}
        if outline.output_tensor in names:
            found[outline.output_tensor] = np.full((1, outline.output_size), float(len(batch)))
        return found


def _by_row(layer: Layer, use: Use, gradients: np.ndarray) -> np.ndarray:
    """(rows,): summed over samples and positions."""
    wide = gradients.astype(np.float64)
    if layer.spec.kind == "linear":
        return wide.reshape(-1, layer.spec.rows).sum(axis=0)
    places = int(np.prod(use.out_shape[1:]))
    return wide.reshape(-1, layer.spec.rows, places).sum(axis=(0, 2))
