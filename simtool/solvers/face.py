"""One reduced row to the compiled kernel and back."""

from __future__ import annotations

import numpy as np

from simtool.solvers.elimination import ReducedRow
from simtool.solvers.kernel import solve_row

_PIVOTS_PER_FEATURE = 20


def solve_reduced(
    row: ReducedRow, tolerance: float, start: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """The row's coefficients (d,) and the multiplier of kappa, walking from the feasible point ``start`` (d,) or from 0."""
    # Mapped matrices cannot be written to; all others are passed as such too, so that the kernel is compiled only once.
    gram = row.gram.view()
    gram.flags.writeable = False
    w, multiplier, _, _ = solve_row(
        gram,
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
        np.zeros(row.correlation.size) if start is None else start,
        float(tolerance),
        row.samples,
        1000 + _PIVOTS_PER_FEATURE * row.correlation.size,
    )
    return np.asarray(w), float(multiplier)
