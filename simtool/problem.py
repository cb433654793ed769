"""Rows of an implicit model as convex problems that share one design matrix.

    minimise over w in R^d   loss_weight ||z - W^T w||^2 + sum_j pen(w_j)
    subject to   ||w_S||_1 <= kappa,   lower <= w <= upper,   w_j = 0 where the row's mask says so

W (d features, m samples) holds the rows of [X; U] that the structure allows, z is a row of Z or of Y, S is the
set that kappa bounds. Samples may have weights: the loss is then sum_t v_t (z - W^T w)_t^2, which is the same
problem with sqrt(v_t) in every sample of W and z, and that is what everything here returns. Sums over samples
run in fixed tiles, in float64 whatever the states are stored in, so a result never depends on how much memory or
how many processes a machine has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simtool.design import Design, Part
from simtool.penalty import Penalty
from simtool.row_space import RowSpace, row_space


@dataclass(frozen=True)
class Objective:
    """What is asked of a row, beside its design and target.

    Attributes
    ----------
    loss_weight : weight of the squared error, > 0 (already divided by m for a mean loss)
    penalty : the penalty of every coefficient
    kappa : bound of ||w_S||_1, or None
    """

    loss_weight: float
    penalty: Penalty
    kappa: float | None = None


@dataclass(frozen=True)
class RowSet:
    """Rows that share a design, an objective, the set S and the bounds of their coefficients.

    Attributes
    ----------
    design : W (d, m)
    targets : (r, m), rows of Z or Y as stored; :meth:`target` gives them with their weights
    objective : loss weight, penalty, kappa
    constrained : (d,) bool, the set S
    allowed : (r, d) bool, the features each row may use, or None for all. What only some rows may use must lie in
        S with a kappa, or have a penalty with a slope: the other features are eliminated for all rows at once
    lower, upper : (d,), bounds of each coefficient with lower <= 0 <= upper, or None for none
    """

    design: Design
    targets: np.ndarray
    objective: Objective
    constrained: np.ndarray
    allowed: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows, d = self.targets.shape[0], self.design.d
        if self.targets.ndim != 2 or self.targets.shape[1] != self.design.m:
            raise ValueError(f"targets must be (rows, {self.design.m}), got {self.targets.shape}")
        if self.constrained.shape != (d,):
            raise ValueError("constrained must be (d,)")
        if not self.objective.loss_weight > 0:
            raise ValueError(f"loss_weight must be > 0, got {self.objective.loss_weight!r}")
        for bound in (self.lower, self.upper):
            if bound is not None and (bound.shape != (d,) or np.isnan(bound).any()):
                raise ValueError("lower and upper must be (d,) numbers")
        if (self.lower is not None and (self.lower > 0).any()) or (
            self.upper is not None and (self.upper < 0).any()
        ):
            raise ValueError("every coefficient must be allowed to be 0: lower <= 0 <= upper")
        if self.allowed is not None:
            if self.allowed.shape != (rows, d):
                raise ValueError(f"allowed must be ({rows}, {d}), got {self.allowed.shape}")
            if self.smooth[~self.allowed.all(axis=0)].any():
                raise ValueError("what only some rows may use must lie in S with a kappa, or have a slope")

    @property
    def count(self) -> int:
        return self.targets.shape[0]

    def target(self, samples: slice = slice(None)) -> np.ndarray:
        """The weighted targets at ``samples``, (r, k) float64."""
        return self.design.weighted(self.targets, samples)

    def subset(self, rows: np.ndarray) -> RowSet:
        """The rows ``rows`` (indices or mask) alone; W and what was computed from it are shared."""
        allowed = None if self.allowed is None else self.allowed[rows]
        part = replace(self, targets=self.targets[rows], allowed=allowed)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k == "free_basis"})
        return part

    def with_kappa(self, kappa: float) -> RowSet:
        """The same rows with another kappa; what was computed from them is shared."""
        other = replace(self, objective=replace(self.objective, kappa=kappa))
        if self.objective.kappa is not None:
            other.__dict__.update(
                {k: v for k, v in self.__dict__.items() if k in ("free_basis", "target_norms")}
            )
        return other

    @property
    def bounded(self) -> np.ndarray:
        """S where kappa applies, the empty set where there is none; (d,) bool."""
        return self.constrained if self.objective.kappa is not None else np.zeros(self.design.d, dtype=bool)

    @property
    def limited(self) -> np.ndarray:
        """Features whose coefficient has a finite bound, (d,) bool."""
        limited = np.zeros(self.design.d, dtype=bool)
        if self.lower is not None:
            limited |= np.isfinite(self.lower)
        if self.upper is not None:
            limited |= np.isfinite(self.upper)
        return limited

    @property
    def smooth(self) -> np.ndarray:
        """Features with nothing that makes a zero: no slope, not in S, no bounds; (d,) bool."""
        return ~self.bounded & ~self.limited & (self.objective.penalty.slope == 0.0)

    @property
    def penalty_free(self) -> np.ndarray:
        """Features that neither the penalty, nor kappa, nor bounds touch, (d,) bool."""
        return ~self.bounded & ~self.limited & self.objective.penalty.free

    @cached_property
    def target_norms(self) -> np.ndarray:
        """||z||^2 per row, (r,)."""
        one = (self.design.weighted(self.targets[i : i + 1]) for i in range(self.count))
        return np.array([np.sum(np.square(row)) for row in one])

    def reach(self, direction: np.ndarray) -> np.ndarray:
        """How far each coefficient may go in the direction of the sign of ``direction`` (r, d): (r, d), >= 0."""
        down = np.full(self.design.d, np.inf) if self.lower is None else -self.lower
        up = np.full(self.design.d, np.inf) if self.upper is None else self.upper
        return np.where(direction > 0, up, down)

    def correlation(self) -> np.ndarray:
        """W z for every row: (d, r) float64."""
        total = np.zeros((self.count, self.design.d))
        for part in self.design.parts():
            total += part.correlations(self.target(part.samples))
        return total.T

    @cached_property
    def free_basis(self) -> RowSpace:
        """The row space of the penalty-free features; computed once for all rows."""
        return self.row_space(self.penalty_free)

    def row_space(self, features: np.ndarray, ridge: float = 0.0) -> RowSpace:
        """The row space of ``features`` (d,) bool, from the Gram matrix where that is known and accurate enough."""
        return row_space(self.design.matrix(features), ridge, self.design.known_gram(features))

    def residuals(self, w: np.ndarray) -> Residuals:
        """z - W^T w of every row, not in memory; ``w`` (r, d)."""
        return Residuals(self, w)


class Residuals:
    """z - W^T w of ``rows`` (:class:`simtool.row_space.Vectors`); ``w`` is (r, d)."""

    def __init__(self, rows: RowSet, w: np.ndarray) -> None:
        self._rows, self._w, self.count = rows, w, rows.count
        self._zero = not w.any()

    def at(self, samples: slice) -> np.ndarray:
        """The residuals at ``samples``, (r, k)."""
        target = self._rows.target(samples)
        return target if self._zero else target - Part(self._rows.design, samples).outputs(self._w)


def primal_values(rows: RowSet, w: np.ndarray, residual_norms: np.ndarray) -> np.ndarray:
    """loss_weight ||r||^2 + sum_j pen(w_j) per row; ``w`` (r, d), ``residual_norms`` (r,) = ||z - W^T w||^2."""
    return rows.objective.loss_weight * residual_norms + rows.objective.penalty.value(w).sum(axis=1)
