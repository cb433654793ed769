"""E||dy/dt||^2 of what each layer gives, summed over the positions that share a row."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtool.networks import Network
from simtool.networks.layers import Layer, Use
from simtool.networks.sensitivity import is_acyclic, squared_gradients

_log = logging.getLogger("simtool")
SAMPLES = 512  # averaged over, evenly spaced in the file: its order may be that of classes
_CHUNK = 32  # differentiated at a time, whatever a batch holds: the result does not depend on its size
# Where weights are moved: samples, random directions, and the step relative to the size of a weight.
_MOVED_SAMPLES, _DRAWS, _STEP = 64, 2, 0.02
_MOVED_WORK = 10**11  # multiplications for the rows of a layer


@dataclass
class LayerSensitivity:
    """Adds up squared gradients over the samples of a file; :meth:`mean` ends it.

    A network that differentiates its own program (PyTorch) gives those of every layer. Of others, where the network is an affine graph,
    the layers are known whose results are the network's output or go into an activation as they are. What is left, or has a gradient
    that is not finite, is measured: a little noise is added to the results of each row, or to the layer's weights, and the outputs'
    change is set against it. What cannot be measured either stays 0 in all rows: unknown.

    Attributes
    ----------
    total : samples of the file
    """

    network: Network
    layers: tuple[Layer, ...]
    total: int
    _sums: list[np.ndarray] = field(init=False)
    _chosen: np.ndarray = field(init=False)
    _waiting: list[np.ndarray] = field(default_factory=list, init=False)
    _kept: list[np.ndarray] = field(default_factory=list, init=False)
    _unknown: set[str] = field(default_factory=set, init=False)
    _chunks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._sums = [np.zeros(layer.spec.rows) for layer in self.layers]
        self._chosen = _spread(self.total, SAMPLES)

    def add(self, batch: np.ndarray, first: int) -> None:
        """Count the samples ``batch`` (k, ...), the first of which is column ``first``."""
        if not self.layers:
            return
        kept = set(self._chosen[_spread(self._chosen.size, _MOVED_SAMPLES)].tolist())
        here = self._chosen[(self._chosen >= first) & (self._chosen < first + len(batch))]
        for number in here.tolist():
            self._waiting.append(np.array(batch[number - first]))
            if number in kept:
                self._kept.append(self._waiting[-1])
            if len(self._waiting) == _CHUNK:
                self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        found = self._gradients(np.stack(self._waiting), self._chunks)
        self._waiting.clear()
        self._chunks += 1
        for sums, layer in zip(self._sums, self.layers, strict=True):
            known = [found.get(use.result) for use in layer.uses]
            if any(value is None or not np.isfinite(value).all() for value in known):
                self._unknown.add(layer.spec.name)
                continue
            for use in layer.uses:
                sums += _by_row(layer, use, found[use.result])

    def mean(self) -> list[np.ndarray]:
        """(rows,) for each layer."""
        self._count()
        result = []
        for sums, layer in zip(self._sums, self.layers, strict=True):
            mean = sums / max(1, self._chosen.size)
            if layer.spec.name in self._unknown:
                with np.errstate(all="ignore"):
                    mean = np.zeros(layer.spec.rows) + self._measured(layer, np.stack(self._kept))
            if not np.isfinite(mean).all():
                _log.warning(
                    "how much the layer %s moves the outputs cannot be told: a budget counts its rows by the variance of their results",
                    layer.spec.name,
                )
                mean = np.zeros(layer.spec.rows)
            result.append(mean)
        return result

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
        matrix = layer.table
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

    def _gradients(self, batch: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        names = [use.result for layer in self.layers for use in layer.uses]
        own: Any = getattr(self.network, "sensitivities", None)
        if own is not None:
            found: dict[str, np.ndarray] = own(batch, names, seed)
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


def _spread(total: int, most: int) -> np.ndarray:
    """At most ``most`` of ``total`` numbers, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))


def _by_row(layer: Layer, use: Use, gradients: np.ndarray) -> np.ndarray:
    """(rows,): summed over samples and positions."""
    wide = gradients.astype(np.float64)
    if layer.spec.kind == "linear":
        return wide.reshape(-1, layer.spec.rows).sum(axis=0)
    places = int(np.prod(use.out_shape[1:]))
    return wide.reshape(-1, layer.spec.rows, places).sum(axis=(0, 2))
