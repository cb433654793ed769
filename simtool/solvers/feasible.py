"""What every solver does to its rows before they are certified."""

from __future__ import annotations

import numpy as np

from simtool.certificate import l1_norms
from simtool.problem import RowSet


def restore_feasibility(rows: RowSet, w: np.ndarray) -> np.ndarray:
    """``w`` (r, d) with w_S shrunk onto the ball where rounding or a solver's tolerance left it outside."""
    kappa = rows.objective.kappa
    if kappa is None:
        return w
    bounded = rows.bounded
    w = w.copy()
    for _ in range(4):
        norms = l1_norms(w, bounded)
        outside = norms > kappa
        if not outside.any():
            break
        shrink = kappa / norms[outside] * (1.0 - np.finfo(float).eps)
        w[np.ix_(outside, bounded)] *= shrink[:, None]
    return w
