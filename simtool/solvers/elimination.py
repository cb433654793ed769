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

from simtool.penalty import Penalty
from simtool.problem import RowSet, RowSpace
from simtool.solvers.feasible import restore_feasibility

# A feature whose square falls by this factor when others are projected out depends on them.
_DEPENDENT = 1e-20

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


def solve_rows(rows: RowSet, tolerance: float, row_solver: RowSolver) -> np.ndarray:
    """Coefficients (r, d) of all rows: ``row_solver`` on what is left of each, the eliminated features after it."""
    objective, design = rows.objective, rows.design
    penalty, kappa = objective.penalty, objective.kappa
    bounded = rows.bounded
    usable = ~design.dead
    if kappa == 0.0:
        usable = usable & ~bounded
    smooth = usable & rows.smooth
    pivoted = np.flatnonzero(usable & ~smooth)
    w = np.zeros((rows.count, design.d))
    ridge = penalty.lam2 / objective.loss_weight
    space = _smooth_space(rows, smooth, ridge)

    if pivoted.size:
        reduced = _reduce(rows, pivoted, space)
        inside = bounded[pivoted]
        least = np.full(design.d, -np.inf) if rows.lower is None else rows.lower
        most = np.full(design.d, np.inf) if rows.upper is None else rows.upper
        for i in range(rows.count):
            usable_here = reduced.alive if rows.allowed is None else reduced.alive & rows.allowed[i, pivoted]
            row = row_solver(
                ReducedRow(
                    gram=reduced.gram,
                    correlation=np.ascontiguousarray(reduced.correlation[:, i]),
                    square=float(reduced.squares[i]),
                    reference=float(rows.target_norms[i]),
                    loss_weight=float(objective.loss_weight),
                    penalty=penalty,
                    kappa=0.0 if kappa is None else float(kappa),
                    inside=inside,
                    lower=np.where(usable_here, least[pivoted], 0.0),
                    upper=np.where(usable_here, most[pivoted], 0.0),
                    samples=design.m,
                ),
                tolerance,
            )
            if np.isfinite(row).all():
                w[i, pivoted] = row
            else:
                _log.warning(
                    "a row left the range of floating point and is stored as zero; rescale the states"
                )
        w = restore_feasibility(rows, w)

    if space is not None:
        left_over = np.array(rows.target())
        if pivoted.size:
            for samples, tile in design.tiles():
                left_over[:, samples] -= w @ tile
        w[:, smooth] = space.coefficients(left_over)
    return w


def _smooth_space(rows: RowSet, smooth: np.ndarray, ridge: float) -> RowSpace | None:
    """The row space of the eliminated features; shared with the certificate where it is the same set."""
    if not smooth.any():
        return None
    if ridge == 0.0 and not np.any(rows.penalty_free & ~smooth & ~rows.design.dead):
        return rows.free_basis.restricted(smooth[rows.penalty_free])
    return RowSpace(rows.design.dense(smooth), ridge)


@dataclass(frozen=True)
class _Reduced:
    """The problem in the pivoted features: Gram matrix, correlations (d', r), ||z||^2 (r,), and which features
    (d',) are more than rounding once the smooth ones are eliminated."""

    gram: np.ndarray
    correlation: np.ndarray
    squares: np.ndarray
    alive: np.ndarray


def _reduce(rows: RowSet, pivoted: np.ndarray, space: RowSpace | None) -> _Reduced:
    design = rows.design
    if space is None:
        gram = design.gram
        if pivoted.size < design.d:
            gram = gram[np.ix_(pivoted, pivoted)]
        correlation = rows.correlation()[pivoted]
        alive = np.ones(pivoted.size, dtype=bool)
        return _Reduced(np.ascontiguousarray(gram), correlation, rows.target_norms, alive)
    features = design.dense(pivoted)
    targets = rows.target()
    gram = space.shrink_out(features) @ features.T
    left_over = space.shrink_out(targets)
    squares = np.maximum(np.einsum("ij,ij->i", targets, left_over), 0.0)
    norms = np.einsum("ij,ij->i", features, features)
    gram = (gram + gram.T) / 2.0
    return _Reduced(gram, features @ left_over.T, squares, np.diag(gram) > _DEPENDENT * norms)
