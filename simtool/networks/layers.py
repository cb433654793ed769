"""The linear layers of a program with their weights shared over positions: rows for any network, whatever lies between.

Only the operators with weights are looked at; what feeds a layer and what it gives is recorded while the network runs. So the rest of
the network may be anything that its own runtime computes (attention, layer norms, gates).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from simtool.layers import LayerSpec
from simtool.networks.operators import Shape, Window
from simtool.networks.program import Op, Program


@dataclass(frozen=True)
class Use:
    """One operator that a layer stands for: the tensors it reads and gives, and for a convolution its windows.

    The shapes are those of one entry of the samples' axis; ``factor`` such entries belong to each sample.
    """

    op: Op
    source: str
    result: str
    in_shape: Shape
    out_shape: Shape
    windows: tuple[Window, ...] = ()
    factor: int = 1

    @cached_property
    def seen(self) -> np.ndarray:
        """(places, taps): for every place of the result, which place of the source each tap sees, -1 for none (padding)."""
        table = np.zeros((1, 1), dtype=np.int64)
        for window in self.windows:
            axis = window.seen()
            wide = table[:, None, :, None] * window.size + axis[None, :, None, :]
            lost = (table < 0)[:, None, :, None] | (axis < 0)[None, :, None, :]
            table = np.where(lost, -1, wide).reshape(table.shape[0] * axis.shape[0], -1)
        return table

    @cached_property
    def seen_transposed(self) -> np.ndarray:
        """The same for a transposed convolution, whose result is the image: (pixels, taps) to places of its source."""
        forward = self.seen
        pixels = prod(window.size for window in self.windows)
        table = np.full((pixels, forward.shape[1]), -1, dtype=np.int64)
        place, tap = np.nonzero(forward >= 0)
        table[forward[place, tap], tap] = place
        return table


@dataclass(frozen=True)
class Layer:
    """A layer and its uses; ``weight`` and ``bias`` are the network's own tensors."""

    spec: LayerSpec
    uses: tuple[Use, ...]
    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def table(self) -> np.ndarray:
        """The teacher's rows (rows, width)."""
        return self.spec.table(self.weight, self.bias)

    @property
    def matrix(self) -> np.ndarray:
        """The teacher's rows (rows, features)."""
        return self.spec.matrix(self.weight, self.bias)

    def positions(self, count: Callable[[str], int] | None = None) -> int:
        """Positions of one sample, over all uses; ``count`` may say how many entries of a tensor's first axis a sample has."""
        return sum(
            self.places(use) * (use.factor if count is None else count(use.source)) for use in self.uses
        )

    @property
    def weight_entries(self) -> int:
        """Numbers of the weight that are this layer's."""
        return self.spec.rows * self.spec.fan_in

    def places(self, use: Use) -> int:
        """Positions of one entry of the samples' axis."""
        return prod(use.out_shape[:-1]) if self.spec.kind == "linear" else prod(use.out_shape[1:])

    def columns(self, tensors: Mapping[str, np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Design (features, k * c) and targets (rows, k * c) of k samples at their positions ``chosen`` (k, c).

        ``tensors`` are (k, ...) or, where a tensor holds f samples of its own a sample, (k * f, ...). Positions count through
        the uses one after another; columns go sample by sample.
        """
        spec, k = self.spec, len(chosen)
        design = np.ones((*chosen.shape, spec.features), dtype=np.float32)
        targets = np.empty((*chosen.shape, spec.rows), dtype=np.float32)
        first = 0
        for use in self.uses:
            source, result = tensors[use.source], tensors[use.result]
            factor, places = len(source) // k, self.places(use)
            sample, at = np.nonzero((chosen >= first) & (chosen < first + factor * places))
            inner, place = np.divmod(chosen[sample, at] - first, places)
            first += factor * places
            row = sample * factor + inner
            if spec.kind == "linear":
                values = source.reshape(len(source), places, -1)[row, place]
                found = result.reshape(len(source), places, -1)[row, place]
            else:
                seen = self.spec.kind == "transposed-convolution"
                table = (use.seen_transposed if seen else use.seen)[place]
                images = source.reshape(len(source), use.in_shape[0], -1)
                padded = np.concatenate([images, np.zeros((*images.shape[:2], 1), images.dtype)], axis=2)
                values = padded[row[:, None], :, table].swapaxes(1, 2).reshape(row.size, -1)
                found = result.reshape(len(source), use.out_shape[0], -1)[row, :, place]
            design[sample, at, : values.shape[1]] = values
            targets[sample, at] = found
        return design.reshape(-1, spec.features).T, targets.reshape(-1, spec.rows).T


@dataclass(frozen=True)
class Found:
    """The layers of a network, and for every operator with weights that is none of them the reason why."""

    layers: tuple[Layer, ...]
    left: tuple[tuple[Op, str], ...]

    def moved(self, program: Program, tensors: Mapping[str, np.ndarray]) -> Found:
        """The same layers in ``program``, which differs by its weights alone; they are among ``tensors``."""
        ops = {op.output: op for op in program.ops}
        layers = []
        for layer in self.layers:
            uses = tuple(replace(use, op=ops[use.op.output]) for use in layer.uses)
            bias = None if layer.spec.bias is None else tensors[layer.spec.bias]
            layers.append(Layer(layer.spec, uses, tensors[layer.spec.weight], bias))
        return Found(tuple(layers), tuple((ops[op.output], why) for op, why in self.left))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The program's tensors that hold what feeds the layers and what they give."""
        names = [name for layer in self.layers for use in layer.uses for name in (use.source, use.result)]
        return tuple(dict.fromkeys(names))
