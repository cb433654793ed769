"""Rows on the shared Gram matrix, with the features eliminated that no solver need decide about.

Features that are smooth at zero (no slope, not bounded by kappa) never leave the solution, so they are not
pivoted on but eliminated once for all rows: with R = I - W_E^T (W_E W_E^T + ridge I)^-1 W_E the remaining
problem has Gram matrix W R W^T. What is left goes to a row solver (the native kernel, the thesis's bisection).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simtool.design import FeatureTiles
from simtool.penalty import Penalty
from simtool.problem import RowSet
from simtool.row_space import FeatureRows, RowSpace
from simtool.solvers.feasible import restore_feasibility

# A feature whose square falls by this factor when others are projected out depends on them.
_DEPENDENT = 1e-20

# The Gram matrix of so many features may be copied once more: 128 MB.
_MOST_COPIED = 4096
# Features eliminated from at a time.
_AT_ONCE = 256

_log = logging.getLogger("simtool")


@dataclass(frozen=True)
class ReducedRow:
    """One row in the features that are left.

        minimise  loss_weight (square - 2 correlation' w + w' gram w) + sum pen(w_j)
        s.t.      ||w_S||_1 <= kappa,  lower <= w <= upper

    ``gram`` (d, d), ``correlation`` (d,), ``inside`` (d,) bool = S (empty without kappa); ``lower``, ``upper`` (d,)
    contain 0, and are 0 where the row may not use the feature; ``reference`` is ||z||^2 before the elimination,
    to which accuracies refer; ``samples`` is m.
    """

    gram: np.ndarray
    correlation: np.ndarray
    square: float
    reference: float
    loss_weight: float
    penalty: Penalty
    kappa: float
    inside: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    samples: int

    @property
    def has_ball(self) -> bool:
        """Whether kappa bounds anything here."""
        return bool(self.inside.any())


RowSolver = Callable[[ReducedRow, float], np.ndarray]


class Elimination:
    """Which features of ``rows`` are eliminated, which are left to pivot on, and the way back.

    Attributes
    ----------
    smooth : (d,) bool, eliminated: they never leave the solution
    pivoted : (d',) int, left to the row solver; features that are dead or not usable are in neither, unless leaving the dead
        ones out would take a copy of a large Gram matrix
    inside : (d,) bool, the set S where kappa applies
    """

    def __init__(self, rows: RowSet) -> None:
        self.rows = rows
        objective, bounded = rows.objective, rows.bounded
        usable = ~rows.design.dead
        if objective.kappa == 0.0:
            usable = usable & ~bounded
        self.smooth = usable & rows.smooth
        left = usable & ~self.smooth
        if not self.smooth.any() and rows.design.d > _MOST_COPIED:
            left = left | (rows.design.dead & left.any())
        self.pivoted = np.flatnonzero(left)
        self.inside = bounded
        self._least = np.full(rows.design.d, -np.inf) if rows.lower is None else rows.lower
        self._most = np.full(rows.design.d, np.inf) if rows.upper is None else rows.upper
        self._pivotable = np.zeros(rows.design.d, dtype=bool)
        self._pivotable[self.pivoted] = True
        self._space = self._smooth_space()

    def _smooth_space(self) -> RowSpace | None:
        """The row space of the eliminated features; shared with the certificate where it is the same set."""
        rows, smooth = self.rows, self.smooth
        ridge = rows.objective.penalty.lam2 / rows.objective.loss_weight
        if not smooth.any():
            return None
        if ridge == 0.0 and not np.any(rows.penalty_free & ~smooth & ~rows.design.dead):
            return rows.free_basis.restricted(smooth[rows.penalty_free])
        # Dead features make no difference, and a matrix of all features needs no copy of its Gram matrix.
        return rows.row_space(rows.smooth, ridge).restricted(smooth[rows.smooth])

    @property
    def space(self) -> RowSpace | None:
        """The row space of what is eliminated, if anything."""
        return self._space

    @property
    def eliminates(self) -> bool:
        """Whether anything is eliminated."""
        return self._space is not None

    def shrink(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` (k, m) applied to R."""
        return vectors if self._space is None else self._space.shrink_out(vectors)

    def alive(self, squares: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """Which features are more than rounding once the smooth ones are eliminated, by their squares before and after."""
        if self._space is None:
            return originals > 0.0
        return squares > _DEPENDENT * originals

    def row(
        self,
        i: int,
        features: np.ndarray,
        gram: np.ndarray,
        correlation: np.ndarray,
        square: float,
        alive: np.ndarray,
    ) -> ReducedRow:
        """Row ``i`` in ``features`` (indices), all of them pivoted; ``alive`` (d',) as :meth:`alive` says."""
        rows = self.rows
        objective = rows.objective
        usable = alive if rows.allowed is None else alive & rows.allowed[i, features]
        return ReducedRow(
            gram=gram,
            correlation=correlation,
            square=square,
            reference=float(rows.target_norms[i]),
            loss_weight=float(objective.loss_weight),
            penalty=objective.penalty,
            kappa=0.0 if objective.kappa is None else float(objective.kappa),
            inside=self.inside[features],
            lower=np.where(usable, self._least[features], 0.0),
            upper=np.where(usable, self._most[features], 0.0),
            samples=rows.design.m,
        )

    def may_enter(
        self, i: int, correlation: np.ndarray, error: np.ndarray, features: np.ndarray
    ) -> np.ndarray:
        """Which of ``features`` may leave zero in row ``i`` in the direction of ``correlation`` +- ``error``."""
        up = (correlation > -error) & (self._most[features] > 0)
        down = (correlation < error) & (self._least[features] < 0)
        enters = (up | down) & self._pivotable[features]
        return enters if self.rows.allowed is None else enters & self.rows.allowed[i, features]

    def complete(self, w: np.ndarray) -> np.ndarray:
        """``w`` (r, d) made finite and feasible, with the eliminated features' coefficients filled in."""
        broken = ~np.isfinite(w).all(axis=1)
        if broken.any():
            w[broken] = 0.0
            _log.warning(
                "%d row(s) left the range of floating point and are stored as zero; rescale the states",
                int(broken.sum()),
            )
        w = restore_feasibility(self.rows, w)
        if self._space is not None:
            w[:, self.smooth] = self._space.coefficients(self.rows.residuals(w))
        return w


class SharedGram:
    """All rows in the pivoted features: Gram matrix (d', d'), correlations (d', r), ||z||^2 after the elimination (r,)."""

    def __init__(self, elimination: Elimination) -> None:
        self._elimination = elimination
        rows, pivoted = elimination.rows, elimination.pivoted
        gram = rows.design.gram
        before = np.diag(gram)[pivoted]
        if elimination.space is None:
            if pivoted.size < rows.design.d:
                gram = gram[np.ix_(pivoted, pivoted)]
            self._gram = np.ascontiguousarray(gram)
            self._correlation = rows.correlation()[pivoted]
            self._squares = rows.target_norms
        else:
            self._gram = gram[np.ix_(pivoted, pivoted)]
            sure = elimination.space.schur(
                self._gram, gram[np.ix_(pivoted, np.flatnonzero(elimination.smooth))]
            )
            self._refine(elimination.space, np.flatnonzero(~sure))
            left_over = elimination.space.left_over(rows.residuals(np.zeros((rows.count, rows.design.d))))
            self._correlation, self._squares = np.zeros((pivoted.size, rows.count)), np.zeros(rows.count)
            for samples, tile in FeatureTiles(rows.design, pivoted).tiles(slice(0, rows.design.m)):
                left = left_over.at(samples)
                self._correlation += tile @ left.T
                self._squares += np.einsum("ij,ij->i", left, rows.target(samples))
            self._squares = np.maximum(self._squares, 0.0)
        self._alive = elimination.alive(np.diag(self._gram), before)

    def _refine(self, space: RowSpace, unsure: np.ndarray) -> None:
        """Compute the Gram matrix anew where the eliminated features nearly are all of a feature: ``unsure`` (k,) of d'."""
        design, pivoted = self._elimination.rows.design, self._elimination.pivoted
        for start in range(0, unsure.size, _AT_ONCE):
            some = unsure[start : start + _AT_ONCE]
            left_over = space.left_over(FeatureRows(FeatureTiles(design, pivoted[some])))
            product = np.zeros((some.size, pivoted.size))
            for samples, tile in FeatureTiles(design, pivoted).tiles(slice(0, design.m)):
                product += left_over.at(samples) @ tile.T
            product[:, some] = (product[:, some] + product[:, some].T) / 2.0
            self._gram[some], self._gram[:, some] = product, product.T

    def row(self, i: int) -> ReducedRow:
        """Row ``i`` in all pivoted features."""
        return self._elimination.row(
            i,
            self._elimination.pivoted,
            self._gram,
            np.ascontiguousarray(self._correlation[:, i]),
            float(self._squares[i]),
            self._alive,
        )


def solve_rows(rows: RowSet, tolerance: float, row_solver: RowSolver) -> np.ndarray:
    """Coefficients (r, d) of all rows: ``row_solver`` on what is left of each, the eliminated features after it."""
    elimination = Elimination(rows)
    w = np.zeros((rows.count, rows.design.d))
    if elimination.pivoted.size:
        shared = SharedGram(elimination)
        for i in range(rows.count):
            w[i, elimination.pivoted] = row_solver(shared.row(i), tolerance)
    return elimination.complete(w)
