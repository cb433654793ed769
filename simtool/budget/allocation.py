"""One budget of non-zeros for all rows.

    minimise  sum_i weight_i loss_i(k_i)   s.t.  sum_i k_i = K,   least_i <= k_i <= largest_i

For convex curves the best pieces first are optimal. Curves that are not convex are replaced by their lower hulls, whose
optimum is a bound; between two vertices of one row's hull the budget may end, and there the rest of it is spent by the
best jumps that still fit, on the curves as they are. What is reached is above the bound by at most the gain of that one piece.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from simtool.budget.curves import Curves
from simtool.errors import InputError, OptionError
from simtool.solvers.compiling import compiled


def allocate(
    curves: Sequence[np.ndarray],
    weights: np.ndarray,
    total: int,
    least: np.ndarray | None = None,
) -> np.ndarray:
    """How many non-zeros each row gets, (n,) int64; their sum is exactly min(total, sum of the largest sizes).

    Parameters: ``curves`` the losses of each row by size, 0..k0_i (k0_i may differ); ``weights`` (n,) >= 0 what a unit of
    each row's loss costs; ``least`` (n,) what a row gets in any case, cut at its k0_i. Equal gains go to the first row.
    Raises OptionError where ``least`` alone exceeds ``total``.
    """
    all_curves = Curves(curves)
    weights = np.ascontiguousarray(weights, dtype=np.float64)
    if weights.shape != (all_curves.count,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError(
            f"the weights of {all_curves.count} rows must be as many finite numbers >= 0, got {_seen(weights)}."
        )
    sizes = np.zeros(all_curves.count, dtype=np.int64)
    if least is not None:
        if np.shape(least) != sizes.shape or np.min(least, initial=0) < 0:
            raise InputError(
                f"the least sizes of {sizes.size} rows must be as many numbers >= 0, got {_seen(np.asarray(least))}."
            )
        sizes = np.minimum(np.asarray(least, dtype=np.int64), all_curves.largest)
    left = min(int(total), int(all_curves.largest.sum())) - int(sizes.sum())
    if left < 0:
        raise OptionError(
            f"a budget of {total} non-zeros is less than the {int(sizes.sum())} that the rows must have at least. "
            "Raise the budget or lower the least sizes."
        )
    row, length, rate = all_curves.segments(weights, sizes)
    order = np.argsort(-rate, kind="stable")
    fits = int(np.searchsorted(np.cumsum(length[order]), left, side="right"))
    taken = order[:fits]
    np.add.at(sizes, row[taken], length[taken])
    left -= int(length[taken].sum())
    if left:
        _spend(all_curves, weights, sizes, left)
    return sizes


def _seen(values: np.ndarray) -> str:
    if values.ndim != 1:
        return f"an array of shape {values.shape}"
    finite = bool(np.isfinite(values).all())
    return (
        f"{values.size} numbers, the smallest {values.min()}"
        if finite and values.size
        else f"{values.size} numbers, not all finite"
    )


def _spend(curves: Curves, weights: np.ndarray, sizes: np.ndarray, left: int) -> None:
    """Spend ``left`` non-zeros to the last, each time by the jump that gains most for each non-zero; ``sizes`` grow."""
    heap = []
    for i, (gain, jump) in enumerate(zip(*_best_jumps(curves, weights, sizes, left), strict=True)):
        if jump:
            heap.append((-gain, i, jump))
    heapq.heapify(heap)
    while left:
        _, i, jump = heapq.heappop(heap)
        # A jump that no longer fits promised more than the row's best one that does: it goes back with that.
        if jump <= left:
            sizes[i] += jump
            left -= jump
        losses = curves.flat[curves.starts[i] : curves.starts[i + 1]]
        gain, jump = _best_jump(losses, weights[i], sizes[i], left)
        if jump:
            heapq.heappush(heap, (-gain, i, jump))


@compiled
def _best_jump(losses, weight, size, reach):
    """The gain per non-zero and length of the best jump from ``size`` by at most ``reach``; length 0 if there is none."""
    best = -np.inf
    jump = 0
    for step in range(1, min(reach, losses.shape[0] - 1 - size) + 1):
        gain = weight * (losses[size] - losses[size + step]) / step
        if gain > best:
            best, jump = gain, step
    return best, jump


@compiled
def _jumps(flat, starts, weights, sizes, reach, gains, jumps):
    for i in range(weights.shape[0]):
        gains[i], jumps[i] = _best_jump(flat[starts[i] : starts[i + 1]], weights[i], sizes[i], reach)


def _best_jumps(
    curves: Curves, weights: np.ndarray, sizes: np.ndarray, reach: int
) -> tuple[list[float], list[int]]:
    gains, jumps = np.empty(curves.count), np.empty(curves.count, dtype=np.int64)
    _jumps(curves.flat, curves.starts, weights, sizes, reach, gains, jumps)
    return gains.tolist(), jumps.tolist()
