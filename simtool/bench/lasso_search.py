"""The constrained row by repeated lassos: how a solver that only knows Q(t) is brought to ||w||_1 = kappa.

With the loss scaled to ||z - W'w||^2 / 2 the lasso solvers answer

    Q(t):   minimise  ||z - W'w||^2 / 2 + t ||w||_1

and t is searched until the row of norm kappa is proven within the wanted relative gap. ``bisection`` halves the
bracket, as the thesis does; ``secant`` aims at kappa through the two ends (Illinois rule), which on a piecewise linear
norm takes a third of the solves and is the better for every peer. Each solve starts from the last solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import process_time

import numpy as np

from simtool.problem import RowSet

# (t, start (may be overwritten), largest duality gap in the units of Q) -> coefficients
SolveLasso = Callable[[float, np.ndarray, float], np.ndarray]
_INNER = 0.1  # of the wanted gap, left to each lasso
_RESOLUTION = 1e-2
_TIGHTEST = 1e-13
_MOST_SOLVES = 120


@dataclass(frozen=True)
class LassoRow:
    """One row as such a solver takes it: ``x`` (m, d) Fortran-ordered float64, ``y`` (m,), ``slope`` = lam1 / (2
    loss_weight), kappa (over all of w) or None; ``columns`` of the design that x holds."""

    x: np.ndarray
    y: np.ndarray
    slope: float
    kappa: float | None
    columns: np.ndarray

    @property
    def square(self) -> float:
        return float(self.y @ self.y)


def refusal(rows: RowSet) -> str | None:
    """Why ``rows`` are no lasso problems, or None."""
    objective = rows.objective
    if objective.penalty.lam2 > 0:
        return "knows the l1 norm only, not the perspective penalty"
    if objective.kappa is not None and not rows.constrained.all():
        return "one l1 weight for all features: no kappa on a part of the row"
    if rows.lower is not None or rows.upper is not None:
        return "no bounds on coefficients"
    if objective.kappa is None and objective.penalty.slope == 0:
        return "not a lasso"
    return None


def lasso_rows(rows: RowSet) -> Iterator[LassoRow]:
    """The rows of ``rows`` one after the other; building them is not part of any timing."""
    objective = rows.objective
    for i in range(rows.count):
        usable = ~rows.design.dead
        if rows.allowed is not None:
            usable = usable & rows.allowed[i]
        columns = np.flatnonzero(usable)
        yield LassoRow(
            x=np.asfortranarray(rows.design.dense(columns).T),
            y=np.ascontiguousarray(rows.subset(np.array([i])).target()[0]),
            slope=objective.penalty.slope / (2.0 * objective.loss_weight),
            kappa=objective.kappa,
            columns=columns,
        )


def bounds(row: LassoRow, w: np.ndarray, slope: float, kappa: float | None) -> tuple[float, float]:
    """Primal value and dual bound (the residual, scaled; lam2 = 0 in the certificate) of a feasible ``w``."""
    support = np.flatnonzero(w)
    residual = row.y - row.x[:, support] @ w[support]
    top = float(np.abs(row.x.T @ residual).max(initial=0.0))
    square, linear = float(residual @ residual), float(residual @ row.y)
    primal = 0.5 * square + slope * float(np.abs(w).sum())
    corner = min(1.0, slope / top) if top > 0 else 1.0
    candidates = [0.0]
    if square > 0:
        candidates.append(float(np.clip(linear / square, 0.0, corner)))
        if kappa is not None:
            candidates.append(float(np.clip((linear - kappa * top) / square, corner, 1.0)))
    ball = 0.0 if kappa is None else kappa
    dual = max(s * linear - 0.5 * s * s * square - ball * max(s * top - slope, 0.0) for s in candidates)
    return primal, dual


def search(
    row: LassoRow, solve: SolveLasso, tolerance: float, secant: bool = True, seconds: float = np.inf
) -> np.ndarray:
    """Coefficients (len(columns),) with a relative gap of at most ``tolerance``, or the best found in ``seconds``."""
    started = process_time()
    if row.kappa is None:
        return _one_lasso(row, solve, tolerance)
    low, high = row.slope, float(np.abs(row.x.T @ row.y).max(initial=0.0))
    w = np.zeros(row.x.shape[1])
    best, best_gap = w, np.inf
    least = 0.5e-2 * row.square
    # Excess of the norm over kappa at both ends; unknown at the lower one, where least squares would be.
    at_low, at_high = np.nan, -row.kappa
    side, accuracy, denominator = 0, _INNER * tolerance, 0.5 * row.square
    t = high
    repeat = False
    for _ in range(_MOST_SOLVES):
        if best_gap <= tolerance or high <= low or process_time() - started > seconds:
            break
        t = t if repeat else _next(low, high, at_low, at_high, secant)
        wanted = accuracy * denominator
        if np.isfinite(at_low):
            # A solve that is less exact than what moving t from the nearer end changes may return its start as it is.
            wanted = min(wanted, _RESOLUTION * min((t - low) * at_low, (t - high) * at_high))
        w = solve(t, w.copy(), max(wanted, _TIGHTEST * denominator))
        norm = float(np.abs(w).sum())
        excess = norm - row.kappa
        inside = w if excess <= 0 else w * (row.kappa / norm * (1.0 - 1e-15))
        primal, dual = bounds(row, inside, row.slope, row.kappa)
        denominator = max(primal, least)
        gap = (primal - dual) / denominator if denominator > 0 else 0.0
        if gap < best_gap:
            best, best_gap = inside.copy(), gap
        if gap > tolerance:
            # A lasso that is the looser half of what is missing is solved again, more tightly: its residual, not
            # its value, makes the dual bound, and that converges with the square root of its gap.
            value, bound = bounds(row, w, t, None)
            repeat = value - bound > (t - row.slope) * abs(excess) and accuracy > _TIGHTEST
            if repeat:
                accuracy *= 0.1
                continue
        if excess > 0:
            low, at_low = t, excess
            at_high = at_high / 2.0 if side > 0 else at_high
            side = 1
        else:
            high, at_high = t, excess
            at_low = at_low / 2.0 if side < 0 else at_low
            side = -1
    return best


def _next(low: float, high: float, at_low: float, at_high: float, secant: bool) -> float:
    if not secant:
        return 0.5 * (low + high)
    if not np.isfinite(at_low):
        return max(0.1 * high, low)
    step = low + (high - low) * at_low / (at_low - at_high)
    return float(np.clip(step, low + 1e-3 * (high - low), high - 1e-3 * (high - low)))


def _one_lasso(row: LassoRow, solve: SolveLasso, tolerance: float) -> np.ndarray:
    """Q(slope) itself, asked for more accuracy until the gap is proven."""
    w = np.zeros(row.x.shape[1])
    accuracy, least = _INNER * tolerance, 0.5e-2 * row.square
    denominator = 0.5 * row.square
    while accuracy > _TIGHTEST:
        w = solve(row.slope, w.copy(), accuracy * denominator)
        primal, dual = bounds(row, w, row.slope, None)
        denominator = max(primal, least)
        if primal - dual <= tolerance * denominator:
            break
        accuracy *= 0.1
    return w
