"""The native solver: rows on the shared Gram matrix, exact zeros by construction.

Features that are smooth at zero (no slope, not bounded by kappa) never leave the solution, so they are not
pivoted on but eliminated once for all rows: with R = I - W_E^T (W_E W_E^T + ridge I)^-1 W_E the remaining
problem has Gram matrix W R W^T. What is left goes to the compiled kernel, row by row.
"""

from __future__ import annotations

import numpy as np

from simtool.problem import RowSet, RowSpace
from simtool.solvers.feasible import restore_feasibility
from simtool.solvers.kernel import solve_row

_PIVOTS_PER_FEATURE = 20


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) of all rows, to be certified at ``tolerance``.

    A row that runs out of pivots is returned as far as it came; its certificate says so.
    """
    objective, design = rows.objective, rows.design
    penalty, kappa = objective.penalty, objective.kappa
    bounded = rows.bounded
    usable = ~design.dead
    if kappa == 0.0:
        usable = usable & ~bounded
    smooth = usable & ~bounded & (penalty.slope == 0.0)
    pivoted = np.flatnonzero(usable & ~smooth)
    w = np.zeros((rows.count, design.d))
    ridge = penalty.lam2 / objective.loss_weight
    space = _smooth_space(rows, smooth, ridge)

    if pivoted.size:
        gram, b, squares = _reduced(rows, pivoted, space, ridge)
        inside = bounded[pivoted]
        position = {int(j): i for i, j in enumerate(pivoted)}
        for i in range(rows.count):
            allowed = np.ones(pivoted.size, dtype=bool)
            own = position.get(int(rows.excluded[i]))
            if own is not None:
                allowed[own] = False
            w[i, pivoted], _, _, _ = solve_row(
                gram,
                b[:, i].copy(),
                float(squares[i]),
                float(objective.loss_weight),
                penalty.slope,
                penalty.lam2,
                penalty.knee,
                inside,
                0.0 if kappa is None else float(kappa),
                kappa is not None and bool(inside.any()),
                allowed,
                float(tolerance),
                1000 + _PIVOTS_PER_FEATURE * pivoted.size,
            )
        w = restore_feasibility(rows, w)

    if space is not None:
        left_over = np.array(rows.targets, dtype=np.float64)
        if pivoted.size:
            for samples, tile in design.tiles():
                left_over[:, samples] -= w @ tile
        w[:, smooth] = space.coefficients(left_over, ridge)
    return w


def _smooth_space(rows: RowSet, smooth: np.ndarray, ridge: float) -> RowSpace | None:
    """The row space of the eliminated features; shared with the certificate where it is the same set."""
    if not smooth.any():
        return None
    if ridge == 0.0 and not np.any(rows.penalty_free & ~smooth & ~rows.design.dead):
        return _restricted(rows.free_basis, smooth[rows.penalty_free])
    return RowSpace(rows.design.dense(smooth))


def _restricted(space: RowSpace, members: np.ndarray) -> RowSpace:
    """``space`` seen by a subset of its features (the others are zero on every sample)."""
    view = object.__new__(RowSpace)
    view.left, view.singular, view.right = space.left[members], space.singular, space.right
    return view


def _reduced(
    rows: RowSet, pivoted: np.ndarray, space: RowSpace | None, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gram matrix, correlations (d', r) and ||z||^2 with the smooth features eliminated."""
    design = rows.design
    if space is None:
        gram = design.gram
        if pivoted.size < design.d:
            gram = gram[np.ix_(pivoted, pivoted)]
        return np.ascontiguousarray(gram), design.correlate(rows.targets)[pivoted], rows.target_norms
    features = design.dense(pivoted)
    targets = np.asarray(rows.targets, dtype=np.float64)
    shrunk = space.shrink_out(features, ridge)
    gram = shrunk @ features.T
    left_over = space.shrink_out(targets, ridge)
    squares = np.einsum("ij,ij->i", targets, left_over)
    return (gram + gram.T) / 2.0, features @ left_over.T, squares
