"""What the programs of a custom objective share: variables in their own unit, masks, bounds and kappa as parameters."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from simtool.problem import RowSet
from simtool.solvers.custom.objective import OwnObjective, Terms, build


class Frame:
    """w = unit v with the constraints that every row of ``rows`` shares, compiled once.

    ``weight`` is the parameter by which f is multiplied. With ``support`` any coefficients can be held at zero.
    """

    def __init__(
        self, own: OwnObjective, rows: RowSet, states: int, unit: float, *, support: bool = False
    ) -> None:
        d = rows.design.d
        self.unit = unit
        self.v = cp.Variable(d)
        self.weight = cp.Parameter(nonneg=True)
        self.terms: Terms = build(own, unit * self.v, states)
        self.constraints: list[cp.Constraint] = list(self.terms.constraints)
        self._blocked: cp.Parameter | None = None
        if support or rows.allowed is not None:
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

    def aim(self, rows: RowSet, i: int, zeros: np.ndarray | None = None) -> None:
        """Take row ``i``'s mask, and hold ``zeros`` (d,) bool at zero (with ``support``)."""
        if self._blocked is not None:
            blocked = np.zeros(rows.design.d, dtype=bool) if zeros is None else zeros
            if rows.allowed is not None:
                blocked = blocked | ~rows.allowed[i]
            self._blocked.value = blocked.astype(float)


def unit_of(rows: RowSet, i: int) -> float:
    """The size that row ``i``'s coefficients have when a feature explains its target, ||z|| / ||W_j|| for the largest
    feature, with ||z|| rounded to a power of ten: rows of about the same size share a compiled program."""
    feature = float(np.sqrt(rows.design.squares.max(initial=0.0)))
    target = float(np.sqrt(rows.target_norms[i]))
    return float(10.0 ** np.round(np.log10(target))) / feature if feature > 0 and target > 0 else 1.0
