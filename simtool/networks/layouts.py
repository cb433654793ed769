"""Where the samples of a batch lie in a tensor of a program: not every tensor has the batch as its first axis.

Recurrent layers put the steps first, attention may join steps and samples on one axis, in either order. The shapes for two batch sizes
tell the axis; which of its entries belong to which sample is found by changing one sample of a batch and looking at what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from simtool.networks.operators import Shape

# Runs a batch and gives the tensors of these names as the program holds them.
Run = Callable[[np.ndarray, list[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Layout:
    """``shape`` without the axis of the samples; that axis has ``outer * k * inner`` entries for k samples, the samples in the middle."""

    shape: Shape
    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def factor(self) -> int:
        """Entries of the axis that belong to one sample."""
        return self.outer * self.inner

    @property
    def whole(self) -> Shape | None:
        """One sample's shape, None where several entries of the axis belong to it."""
        return self.shape if self.factor == 1 else None

    @property
    def size(self) -> int:
        return self.factor * prod(self.shape)

    def first(self, value: np.ndarray) -> np.ndarray:
        """``value`` with the samples on its first axis, (k * factor, *shape), one sample after the other."""
        moved = np.moveaxis(value, self.axis, 0)
        if self.factor == 1:
            return moved
        split = moved.reshape(self.outer, -1, self.inner, *moved.shape[1:])
        return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(moved.shape)

    def options(self) -> tuple[Layout, ...]:
        """Every way in which the entries of the axis may belong to the samples, whole samples first."""
        count = self.factor
        found = [outer for outer in range(1, count + 1) if count % outer == 0]
        return tuple(replace(self, outer=outer, inner=count // outer) for outer in found)


def layout_of(small: Shape, large: Shape, batches: tuple[int, int]) -> Layout | None:
    """The layout of a tensor that has these shapes for batches of these sizes; None if no axis grows with the batch alone."""
    if len(small) != len(large):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if len(grown) != 1:
        return None
    axis = grown[0]
    count, rest = divmod(small[axis], batches[0])
    if rest or count < 1 or large[axis] != count * batches[1]:
        return None
    return Layout(small[:axis] + small[axis + 1 :], axis, 1, count)


def fixed_layout(shape: Shape, batch: int) -> Layout | None:
    """The layout in a network of one batch size: the first axis that has this size, else the first one, joined with others."""
    if not shape:
        return None
    axis = next((axis for axis, size in enumerate(shape) if size == batch), 0)
    count, rest = divmod(shape[axis], batch)
    return None if rest or not count else Layout(shape[:axis] + shape[axis + 1 :], axis, 1, count)


def settled(
    layouts: Mapping[str, Layout | None], names: Iterable[str], run: Run, base: np.ndarray, other: np.ndarray
) -> dict[str, Layout | None]:
    """The layouts of ``names``, with the samples of a joined axis told apart; None where the samples reach each other.

    ``base`` is a batch of at least two samples, ``other`` the same one with its sample 1 changed.
    """
    asked = [name for name in dict.fromkeys(names) if layouts.get(name) is not None]
    if not asked:
        return {}
    before, after = run(base, asked), run(other, asked)
    found: dict[str, Layout | None] = {}
    for name in asked:
        layout = layouts[name]
        assert layout is not None
        changed = _changed(before[name], after[name])
        found[name] = next((o for o in layout.options() if _only_sample(o, changed, len(base))), None)
    return found


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which entries differ by more than rounding."""
    if before.dtype.kind != "f":
        return np.asarray(before != after)
    scale = float(np.max(np.abs(before[np.isfinite(before)]), initial=0.0))
    return ~np.isclose(before, after, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)


def _only_sample(layout: Layout, changed: np.ndarray, samples: int) -> bool:
    """Whether nothing but sample 1 changed."""
    own = layout.first(changed).reshape(samples, -1)
    own = np.delete(own, 1, axis=0)
    return not own.any()
