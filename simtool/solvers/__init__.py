"""Solvers: each turns a RowSet into coefficients (r, d) that the certificate then judges.

The contract, for every solver: exact zeros where a coefficient is zero, ||w_S||_1 <= kappa up to rounding,
nothing on a row's excluded feature, no side effects, and the same bytes for the same RowSet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simtool.errors import OptionError
from simtool.problem import RowSet

SOLVERS = ("native", "bisection", "clarabel", "scs", "mosek")

Solver = Callable[[RowSet, float], np.ndarray]


def get(name: str) -> Solver:
    """The solver called ``name``: (rows, tolerance) -> coefficients. Its packages are imported here."""
    if name == "native":
        from simtool.solvers import native

        return native.solve
    if name == "bisection":
        from simtool.solvers import bisection

        return bisection.solve
    if name == "clarabel":
        from simtool.solvers import conic

        return conic.solve
    if name == "scs":
        from simtool.solvers import conic

        return conic.solve_scs
    if name == "mosek":
        from simtool.solvers import conic

        return conic.solve_mosek
    raise OptionError(f"unknown solver {name!r}; known are {', '.join(SOLVERS)}.")
