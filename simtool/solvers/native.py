"""The native solver: the compiled active-set kernel on every row, exact zeros by construction."""

from __future__ import annotations

import numpy as np

from simtool.problem import RowSet
from simtool.solvers.elimination import ReducedRow, solve_rows
from simtool.solvers.kernel import solve_row

_PIVOTS_PER_FEATURE = 20


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) of all rows, to be certified at ``tolerance``.

    A row that runs out of pivots is returned as far as it came; its certificate says so.
    """
    return solve_rows(rows, tolerance, _solve)


def _solve(row: ReducedRow, tolerance: float) -> np.ndarray:
    w, _, _, _ = solve_row(
        row.gram,
        row.correlation,
        row.square,
        row.reference,
        row.loss_weight,
        row.penalty.slope,
        row.penalty.lam2,
        row.penalty.knee,
        row.inside,
        row.kappa,
        row.has_ball,
        row.lower,
        row.upper,
        np.zeros(row.correlation.size),
        float(tolerance),
        row.samples,
        1000 + _PIVOTS_PER_FEATURE * row.correlation.size,
    )
    return np.asarray(w)
