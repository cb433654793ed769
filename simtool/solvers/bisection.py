"""The thesis's way to a row: bisection on the multiplier of kappa, every step a lasso (thesis Algorithms 1 and 2).

For a multiplier lam the problem Q(lam) has the ball replaced by lam ||w_S||_1; ||w_S(lam)||_1 falls as lam grows, so
lam is bisected between 0 and a bound where w_S vanishes until the norm meets kappa. Q is solved by coordinate descent
on the Gram matrix, warm-started from the previous step (Algorithm 2) or, for comparison, from zero. The feasible end of
the bracket is returned. Kept for reproduction and comparison; the native solver needs no bisection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simtool.problem import RowSet
from simtool.solvers.compiling import compiled
from simtool.solvers.elimination import ReducedRow, solve_rows

_MOST_SWEEPS = 20_000
_MOST_HALVINGS = 200


@compiled
def _descend(gram, b, two_l, slopes, lam2, knee, lower, upper, w, gradient, limit, most_sweeps):
    """Coordinate descent on Q in place: ``gradient`` is kept at two_l (b - G w). Returns the sweeps it took.

    Ends when no coordinate violates its optimality condition by more than ``limit``.
    """
    d = b.shape[0]
    for sweep in range(most_sweeps):
        worst = 0.0
        for j in range(d):
            h = two_l * gram[j, j]
            if h == 0.0 or lower[j] == upper[j]:
                continue
            old = w[j]
            pull = gradient[j] + h * old
            size = abs(pull) - slopes[j]
            new = 0.0
            if size > 0.0:
                new = size / h
                if lam2 > 0.0 and new > knee:
                    new = (size + 2.0 * lam2 * knee) / (h + 2.0 * lam2)
                if pull < 0.0:
                    new = -new
                new = min(max(new, lower[j]), upper[j])
            change = new - old
            if change != 0.0:
                w[j] = new
                row = gram[j]
                for i in range(d):
                    gradient[i] -= two_l * change * row[i]
                worst = max(worst, h * abs(change))
        if worst <= limit:
            return sweep + 1
    return most_sweeps


@dataclass(frozen=True)
class Step:
    """One halving: the multiplier tried, ||w_S||_1 and the non-zeros there, the sweeps that Q took; and ``feasible`` (d,),
    the coefficients that would be returned if it were the last."""

    multiplier: float
    norm: float
    nonzeros: int
    sweeps: int
    feasible: np.ndarray


def bisect_row(
    row: ReducedRow, tolerance: float, *, warm: bool = True, width: float | None = None
) -> tuple[np.ndarray, list[Step]]:
    """The row's coefficients (d,) and what every halving saw.

    ``warm`` starts each Q from the last solution; ``width`` ends the bisection when the bracket is that narrow (the
    thesis's epsilon), instead of when the row can be certified at ``tolerance``.
    """
    d = row.correlation.size
    two_l = 2.0 * row.loss_weight
    full = two_l * row.correlation
    reach = two_l * np.sqrt(row.reference * np.diag(row.gram).max(initial=0.0))
    steps: list[Step] = []
    w, gradient = np.zeros(d), full.copy()
    # Optimality is asked for relative to what costs the certificate a fraction of the tolerance.
    scale = max(row.penalty.slope, 1e-2 * row.loss_weight * row.reference / max(row.kappa, 1e-300))
    if not row.has_ball:
        scale = row.penalty.slope
    limit = max(1e-14 * reach, 1e-3 * tolerance * min(scale, reach))

    feasible = np.zeros(d)

    def solve_at(multiplier: float) -> float:
        nonlocal w, gradient, feasible
        if not warm:
            w, gradient = np.zeros(d), full.copy()
        else:
            gradient = two_l * (row.correlation - row.gram @ w)
        slopes = row.penalty.slope + multiplier * row.inside
        sweeps = _descend(
            row.gram,
            row.correlation,
            two_l,
            slopes,
            row.penalty.lam2,
            row.penalty.knee,
            row.lower,
            row.upper,
            w,
            gradient,
            limit,
            _MOST_SWEEPS,
        )
        norm = float(np.abs(w[row.inside]).sum())
        if norm <= row.kappa or not row.has_ball:
            feasible = w.copy()
        steps.append(Step(multiplier, norm, int((w != 0).sum()), int(sweeps), feasible))
        return norm

    # At reach >= 2 loss_weight ||W_j|| ||r|| for any residual r, w_S is zero: the bracket's feasible end. (The thesis's
    # ||W z||_inf is that only where S is all of w.)
    low, high = 0.0, reach
    if not row.has_ball or high == 0.0:
        solve_at(0.0)
        return feasible, steps
    for halving in range(_MOST_HALVINGS):
        middle = 0.0 if halving == 0 and width is None else 0.5 * (low + high)
        norm = solve_at(middle)
        if norm <= row.kappa:
            high = middle
            close = (row.kappa - norm) * middle <= 1e-3 * tolerance * 1e-2 * row.loss_weight * row.reference
            if middle == 0.0 or (width is None and close):
                break
        else:
            low = middle
        if high - low <= (width if width is not None else 1e-15 * high):
            break
    return feasible, steps


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) of all rows. A row whose descent runs out of sweeps is left to its certificate."""
    return solve_rows(rows, tolerance, lambda row, goal: bisect_row(row, goal)[0])
