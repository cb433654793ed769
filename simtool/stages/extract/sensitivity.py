"""E||dy/dt||^2 of what each layer gives, summed over the positions that share a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtool.networks import Network
from simtool.networks.layers import Layer, Use
from simtool.networks.sensitivity import is_acyclic, squared_gradients

SAMPLES = 512  # averaged over, the first of the file, which are a random choice
# Where weights are moved: samples, random directions, and the step relative to the size of a weight.
_MOVED_SAMPLES, _DRAWS, _STEP = 64, 2, 0.02
_MOVED_WORK = 10**11  # multiplications for the rows of a layer


@dataclass
class LayerSensitivity:
    """Adds up squared gradients over batches; a layer whose gradients cannot be had keeps zeros.

    A network that differentiates its own program (PyTorch) gives those of every layer. Of others, where the network is an affine graph,
    the layers are known whose results are the network's output or go into an activation as they are. What is left is measured: a
    little noise is added to the results of each row, or to the layer's weights, and the outputs' change is set against it.
    """

    network: Network
    layers: tuple[Layer, ...]
    samples: int = 0
    _sums: list[np.ndarray] = field(init=False)
    _moved: dict[str, np.ndarray | float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._sums = [np.zeros(layer.spec.rows) for layer in self.layers]

    def add(self, batch: np.ndarray, first: int) -> None:
        """Count the samples ``batch`` (k, ...), the first of which is column ``first``."""
        few = batch[: max(0, SAMPLES - first)]
        if not len(few) or not self.layers:
            return
        found = self._gradients(few)
        for sums, layer in zip(self._sums, self.layers, strict=True):
            if any(use.result not in found for use in layer.uses):
                if not self.samples:
                    self._moved[layer.spec.name] = self._measured(layer, few[:_MOVED_SAMPLES])
                sums += len(few) * self._moved[layer.spec.name]
                continue
            for use in layer.uses:
                sums += _by_row(layer, use, found[use.result])
        self.samples += len(few)

    def _measured(self, layer: Layer, batch: np.ndarray) -> np.ndarray | float:
        """The same for the rows of ``layer``, by moving its results one row at a time, or, where that is too much work, its weights."""
        own: Any = getattr(self.network, "moved", None)
        work = sum(x.spec.rows * x.spec.features * x.positions(lambda _: 1) for x in self.layers)
        if own is None or layer.spec.rows * work * len(batch) > _MOVED_WORK:
            return self._by_weights(layer, batch)
        values, shifted = own(batch, [use.result for use in layer.uses])
        axis = -1 if layer.spec.kind == "linear" else 1
        rng = np.random.default_rng(0)
        before = shifted({name: np.zeros_like(value) for name, value in values.items()}).astype(np.float64)
        step = _STEP * max(
            float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) for value in values.values()
        )
        step = max(step, 1e-6)
        found = np.zeros(layer.spec.rows)
        for row in range(layer.spec.rows):
            noise = {}
            for name, value in values.items():
                noise[name] = np.zeros_like(value)
                place = np.moveaxis(noise[name], axis, 0)
                place[row] = step * rng.standard_normal(place[row].shape)
            found[row] = np.square(shifted(noise).astype(np.float64) - before).sum() / (len(batch) * step**2)
        return found

    def _by_weights(self, layer: Layer, batch: np.ndarray) -> float:
        """The same for one row of ``layer``, by moving its weights: all its rows count alike."""
        own, output = self.network.weights(), self.network.outline.output_tensor
        results = [use.result for use in layer.uses]
        before = self.network.tensors(batch, (output, *results))
        rng, moved_y, moved_t = np.random.default_rng(0), 0.0, 0.0
        matrix = layer.matrix
        for _ in range(_DRAWS):
            step = _STEP * float(np.sqrt(np.mean(np.square(matrix[matrix != 0])))) if matrix.any() else _STEP
            changed = np.where(matrix != 0, matrix + step * rng.standard_normal(matrix.shape), 0.0)
            bias = None if layer.spec.bias is None else own[layer.spec.bias]
            tensors = layer.spec.tensors(changed, own[layer.spec.weight], bias)
            after = self.network.with_weights(tensors).tensors(batch, (output, *results))
            moved_y += float(np.square(after[output].astype(np.float64) - before[output]).sum())
            moved_t += sum(float(np.square(after[t].astype(np.float64) - before[t]).sum()) for t in results)
        positions = sum(before[t].size for t in results) / (len(batch) * layer.spec.rows)
        return positions * moved_y / moved_t if moved_t else 0.0

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
