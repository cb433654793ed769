"""The proof of optimality of a row, computed from the row as it is stored and from nothing else.

For any theta in R^m and any multiplier mu >= 0, weak duality gives

    primal(w) >= theta' z - ||theta||^2 / (4 loss_weight) - kappa mu - sum_j pen*_{mu [j in S]}( W_j' theta )

with pen*_mu the conjugate of pen + mu |.|. The natural theta is 2 loss_weight (z - W^T w), scaled by s in
[0, 1]; mu (and s) are then chosen to make the bound as large as possible, without asking the solver. Features
that nothing penalises (F) need W_F theta = 0: theta is projected on null(W_F) and the remaining error is
reported (kind ``normal-equations``).

    relative gap = gap / max(primal, 1e-2 loss_weight ||z||^2),   0 if both vanish
    certified    = relative gap <= tol  and  ||w_S||_1 <= kappa (1 + 1e-12)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simtool.dual_bound import BoxedDualBound, DualBound
from simtool.problem import RowSet, primal_values
from simtool.row_space import keep

KINDS = ("duality-gap", "normal-equations", "fixed-support", "equality", "solver-gap")
DUALITY_GAP, NORMAL_EQUATIONS, FIXED_SUPPORT, EQUALITY, SOLVER_GAP = 0, 1, 2, 3, 4
KAPPA_SLACK = 1e-12
# A dual bound above the primal value by more than rounding means the bound itself is wrong: never certified.
_ROUNDING_GAP = 1e-9
_PROJECTION_LIMIT = 1e-9


@dataclass(frozen=True)
class Certificates:
    """One entry per row: primal and dual value, gap relative to the denominator above, kappa - ||w_S||_1
    (infinite without kappa), the multiplier mu, the projection error, and the kind of proof."""

    primal: np.ndarray
    dual: np.ndarray
    relative_gap: np.ndarray
    kappa_slack: np.ndarray
    multiplier: np.ndarray
    projection_error: np.ndarray
    kind: np.ndarray
    certified: np.ndarray


def l1_norms(w: np.ndarray, subset: np.ndarray) -> np.ndarray:
    """||w_S||_1 per row of ``w`` (r, d)."""
    return np.abs(w if subset.all() else w[:, subset]).sum(axis=1)


@np.errstate(over="ignore", invalid="ignore")  # what overflows ends as an infinite gap, below
def certify(rows: RowSet, w: np.ndarray, tolerance: float) -> Certificates:
    """Certificates of the stored rows ``w`` (r, d), which are only read."""
    objective = rows.objective
    free = rows.penalty_free
    residual_norms, linear, square, correlation = _projected(rows, w) if free.any() else _one_pass(rows, w)
    primal = primal_values(rows, w, residual_norms)
    if rows.allowed is not None:
        correlation[~rows.allowed] = 0.0
    reach = rows.reach(correlation) if rows.limited.any() else None

    projection_error = np.zeros(rows.count)
    # Nothing holds these back in the direction of their correlation: it must vanish.
    loose = np.broadcast_to(objective.penalty.free & ~rows.bounded, correlation.shape)
    if reach is not None:
        loose = loose & np.isinf(reach)
    if loose.any():
        # Per feature, relative to the largest that theta could reach: 2 loss_weight ||z|| ||W_j||.
        largest = (
            2.0 * objective.loss_weight * np.sqrt(np.outer(rows.target_norms, rows.design.measured_squares))
        )
        error = np.where(loose, np.abs(correlation), 0.0)
        # A square that underflows must not hide a correlation that does not.
        unseen = np.where(error > 0, np.inf, 0.0)
        relative_error = np.divide(error, largest, out=unseen, where=largest > 0)
        projection_error = relative_error.max(axis=1, initial=0.0)
        correlation[loose] = 0.0

    size = np.abs(correlation)
    bound: DualBound | BoxedDualBound
    if reach is None:
        bound = DualBound(linear, square, size, rows.bounded, objective.penalty, objective.kappa)
    else:
        bound = BoxedDualBound(linear, square, size, reach, rows.bounded, objective.penalty, objective.kappa)
    dual, multiplier = bound.best()
    # Where what must vanish does not, theta is not dual feasible, and its value bounds nothing.
    dual = np.where(projection_error <= _PROJECTION_LIMIT, dual, -np.inf)

    relative = _relative_gap(rows, primal, dual)
    norm = l1_norms(w, rows.bounded)
    kappa = np.inf if objective.kappa is None else objective.kappa
    certified = (
        (np.abs(relative) <= np.where(relative < 0, _ROUNDING_GAP, tolerance))
        & np.isfinite(w).all(axis=1)
        & (norm <= kappa * (1.0 + KAPPA_SLACK))
        & (projection_error <= _PROJECTION_LIMIT)
    )
    if rows.allowed is not None:
        certified &= ~np.any((w != 0.0) & ~rows.allowed, axis=1)
    if rows.lower is not None:
        certified &= (w >= rows.lower).all(axis=1)
    if rows.upper is not None:
        certified &= (w <= rows.upper).all(axis=1)
    return Certificates(
        primal=primal,
        dual=dual,
        relative_gap=np.abs(relative),
        kappa_slack=kappa - norm,
        multiplier=multiplier,
        projection_error=projection_error,
        kind=np.full(rows.count, NORMAL_EQUATIONS if loose.any() else DUALITY_GAP, dtype=np.uint8),
        certified=certified,
    )


def _one_pass(rows: RowSet, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """||r||^2, theta' z, ||theta||^2 / (4 loss_weight) and W theta for theta = 2 loss_weight r, in one reading of W."""
    weight = rows.objective.loss_weight
    norms, linear = np.zeros(rows.count), np.zeros(rows.count)
    correlation = np.zeros((rows.count, rows.design.d))
    for part in rows.design.parts():
        target = rows.target(part.samples)
        residual = target - part.outputs(w)
        norms += np.einsum("ij,ij->i", residual, residual)
        linear += np.einsum("ij,ij->i", residual, target)
        correlation += part.correlations(residual)
    return norms, 2.0 * weight * linear, weight * norms, 2.0 * weight * correlation


def _projected(rows: RowSet, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same for theta projected on null(W_F)."""
    weight = rows.objective.loss_weight
    residual = keep(rows.residuals(w), rows.design.m)
    theta = rows.free_basis.left_over(residual)
    norms, linear, square = np.zeros(rows.count), np.zeros(rows.count), np.zeros(rows.count)
    correlation = np.zeros((rows.count, rows.design.d))
    for part in rows.design.parts():
        target = rows.target(part.samples)
        before, here = residual.at(part.samples), theta.at(part.samples)
        norms += np.einsum("ij,ij->i", before, before)
        linear += np.einsum("ij,ij->i", here, target)
        square += np.einsum("ij,ij->i", here, here)
        correlation += part.correlations(here)
    return norms, 2.0 * weight * linear, weight * square, 2.0 * weight * correlation


def _relative_gap(rows: RowSet, primal: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """The gap over max(primal, 1e-2 loss_weight ||z||^2); 0 only if both vanish, infinite if it is no number."""
    denominator = np.maximum(primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
    gap = primal - dual
    vanishing = (denominator == 0) & (gap == 0)
    if vanishing.any():  # a target whose square underflows is not the zero target
        at = np.flatnonzero(vanishing)
        vanishing[at] = [not rows.subset(at[k : k + 1]).target().any() for k in range(at.size)]
    relative = np.divide(gap, denominator, out=np.full(gap.shape, np.inf), where=denominator > 0)
    relative[vanishing] = 0.0
    return np.where(np.isfinite(relative), relative, np.inf)
