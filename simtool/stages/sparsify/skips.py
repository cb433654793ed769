"""What a layer adds to: behind sparse layers its target makes up for what they have lost on the way beside it.

    v = a t + c (a batch norm, by channel),    the network goes on with v + s
    t' = t + (s - s') / a                      so that a t' + c + s' = a t + c + s

t is what the layer gives in the network itself, s what is added to it there, s' the same in the network that is sparse already: without
the correction errors of a residual network pile up along its skips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simtool.networks.layers import Layer
from simtool.networks.program import Program

# A channel whose factor is smaller than this share of the largest moves nothing that is worth a large target.
_LEAST_FACTOR = 1e-2
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Skip:
    """``result`` of a layer becomes ``value`` by a factor and a shift of each channel (``axis``), and ``other`` is added to it."""

    result: str
    value: str
    other: str
    axis: int

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are needed of the network itself."""
        return self.result, self.value, self.other

    def corrected(
        self, own: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray], factors: np.ndarray
    ) -> np.ndarray:
        """t', of the shape of t; ``factors`` (channels,) as :meth:`factors` gives them, 0 for channels that stay."""
        t = own[self.result].astype(np.float64)
        lost = (own[self.other].astype(np.float64) - student[self.other]).reshape(t.shape)
        inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors != 0)
        shape = [1] * t.ndim
        shape[self.axis] = inverse.size
        return np.asarray(t + lost * inverse.reshape(shape))

    def factors(self, own: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """a (channels,), 0 where it is too small; None where ``value`` is no factor and shift of ``result``."""
        if own[self.value].size != own[self.result].size or own[self.other].shape != own[self.value].shape:
            return None
        shape = own[self.result].shape
        both = (own[name].astype(np.float64).reshape(shape) for name in (self.result, self.value))
        t, v = (np.moveaxis(values, self.axis, 0).reshape(shape[self.axis], -1) for values in both)
        t, v = t - t.mean(axis=1, keepdims=True), v - v.mean(axis=1, keepdims=True)
        spread = np.einsum("ij,ij->i", t, t)
        found = np.divide(np.einsum("ij,ij->i", t, v), spread, out=np.zeros(len(t)), where=spread > 0)
        if np.abs(v - found[:, None] * t).max(initial=0.0) > _TOLERANCE * max(
            1e-30, np.abs(v).max(initial=0.0)
        ):
            return None
        return np.where(np.abs(found) < _LEAST_FACTOR * np.abs(found).max(initial=0.0), 0.0, found)


def skip_of(program: Program, layer: Layer) -> Skip | None:
    """What ``layer`` adds to; None where its result is used in another way, or several times."""
    if len(layer.uses) != 1:
        return None
    result = layer.uses[0].result
    value = result
    while True:
        readers = [op for op in program.ops if value in op.inputs]
        if len(readers) != 1:
            return None
        (op,) = readers
        if op.kind in ("pass", "batch_norm") and op.inputs[0] == value:
            value = op.output
            continue
        if op.kind != "add" or len(op.inputs) != 2:
            return None
        other = op.inputs[1] if op.inputs[0] == value else op.inputs[0]
        if other in program.constants or other == value:
            return None
        return Skip(result, value, other, -1 if layer.spec.kind == "linear" else 1)
