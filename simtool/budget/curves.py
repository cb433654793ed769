"""What a row's loss is at every number of non-zeros, and the lower convex hull of that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simtool.errors import InputError
from simtool.solvers.compiling import compiled


def lower_hull(losses: np.ndarray, first: int = 0) -> np.ndarray:
    """The sizes (ascending, from ``first`` to the last) at which ``losses`` (k0 + 1,) touches its lower convex hull.

    Between neighbours the loss falls by less and less for each non-zero; sizes on a straight piece are left out.
    """
    values = np.ascontiguousarray(losses, dtype=np.float64)
    vertices = np.empty(values.size, dtype=np.int64)
    return vertices[: _hull(values, first, vertices)]


@compiled
def _hull(losses, first, vertices):
    """Fill ``vertices`` with the sizes on the hull; returns how many there are."""
    found = 0
    for k in range(first, losses.shape[0]):
        while found >= 2:
            a, b = vertices[found - 2], vertices[found - 1]
            # b stays only if it lies below the line from a to k.
            if (losses[b] - losses[a]) * (k - a) < (losses[k] - losses[a]) * (b - a):
                break
            found -= 1
        vertices[found] = k
        found += 1
    return found


@compiled
def _segments(flat, starts, weights, sizes, row, length, rate):
    """All hull pieces above ``sizes``: their ``row``, ``length`` and gain per non-zero ``rate``; returns how many."""
    found = 0
    for i in range(weights.shape[0]):
        losses = flat[starts[i] : starts[i + 1]]
        vertices = np.empty(losses.shape[0], np.int64)
        count = _hull(losses, sizes[i], vertices)
        before = np.inf
        for t in range(1, count):
            a, b = vertices[t - 1], vertices[t]
            # Rounding may not put a later piece before an earlier one.
            before = min(before, weights[i] * (losses[a] - losses[b]) / (b - a))
            row[found], length[found], rate[found] = i, b - a, before
            found += 1
    return found


class Curves:
    """The curves of n rows in one flat array, for compiled loops.

    ``flat`` holds them one after the other, row i from ``starts[i]`` to ``starts[i + 1]``; ``largest`` (n,) is k0.
    """

    def __init__(self, curves: Sequence[np.ndarray]) -> None:
        lengths = np.array([np.size(curve) for curve in curves], dtype=np.int64)
        if (lengths == 0).any():
            raise InputError(
                f"the curve of row {int(np.argmin(lengths))} is empty; it needs the loss at size 0 at least."
            )
        self.count = lengths.size
        self.largest = lengths - 1
        self.starts = np.concatenate(([0], np.cumsum(lengths)))
        self.flat = np.empty(int(self.starts[-1]))
        for i, curve in enumerate(curves):
            self.flat[self.starts[i] : self.starts[i + 1]] = curve
        if not np.isfinite(self.flat).all():
            at = int(np.argmin(np.isfinite(self.flat)))
            row = int(np.searchsorted(self.starts, at, side="right")) - 1
            raise InputError(
                f"the curve of row {row} is {self.flat[at]} at size {at - int(self.starts[row])}; losses must be finite."
            )

    def at(self, sizes: np.ndarray) -> np.ndarray:
        """The loss of every row at its size, (n,)."""
        return np.asarray(self.flat[self.starts[:-1] + sizes])

    def segments(self, weights: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, length and weighted gain per non-zero of all hull pieces above ``sizes`` (n,), row by row, each from its steepest."""
        most = int(np.sum(self.largest - sizes))
        row, length = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
        rate = np.empty(most)
        found = _segments(self.flat, self.starts, weights, sizes, row, length, rate)
        return row[:found], length[:found], rate[:found]
