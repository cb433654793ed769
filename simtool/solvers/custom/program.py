"""What the programs of a custom objective share: variables in their own unit, masks, bounds and kappa as parameters."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from simtool.problem import RowSet
from simtool.solvers.custom.objective import OwnObjective, Terms, build


class Frame:
    """w = unit v with the constraints that every row of ``rows`` shares, compiled once.

    ``weight`` is the parameter by which f is multiplied.
    """

    def __init__(self, own: OwnObjective, rows: RowSet, states: int, unit: float) -> None:
        d = rows.design.d
        self.unit = unit
        self.v = cp.Variable(d)
        self.weight = cp.Parameter(nonneg=True)
        self.terms: Terms = build(own, unit * self.v, states)
        self.constraints: list[cp.Constraint] = list(self.terms.constraints)
        self._blocked: cp.Parameter | None = None
        if rows.allowed is not None:
            self._blocked = cp.Parameter(d, nonneg=True)
            self.constraints.append(cp.multiply(self._blocked, self.v) == 0)
        self.ball: cp.Constraint | None = None
        kappa = rows.objective.kappa
        if kappa is not None and rows.bounded.any():
            self.ball = cp.norm1(self.v[np.flatnonzero(rows.bounded)]) <= kappa / unit
            self.constraints.append(self.ball)
        for bound, side in ((rows.lower, 1.0), (rows.upper, -1.0)):
            finite = np.zeros(0, dtype=int) if bound is None else np.flatnonzero(np.isfinite(bound))
            if bound is not None and finite.size:
                self.constraints.append(side * self.v[finite] >= side * bound[finite] / unit)

    @property
    def cost(self) -> cp.Expression:
        """f, weighted."""
        return self.weight * self.terms.cost

    def aim(self, rows: RowSet, i: int) -> None:
        """Take row ``i``'s mask."""
        if self._blocked is not None and rows.allowed is not None:
            self._blocked.value = (~rows.allowed[i]).astype(float)


def unit_of(rows: RowSet) -> float:
    """The size that coefficients have when a feature explains a target: ||z|| / ||W_j||, both at their largest."""
    feature = float(np.sqrt(rows.design.squares.max(initial=0.0)))
    target = float(np.sqrt(rows.target_norms.max(initial=0.0)))
    return target / feature if feature > 0 and target > 0 else 1.0
