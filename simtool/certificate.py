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

from simtool.penalty import Penalty
from simtool.problem import RowSet, primal_values

KINDS = ("duality-gap", "normal-equations", "fixed-support", "equality")
DUALITY_GAP, NORMAL_EQUATIONS = 0, 1
KAPPA_SLACK = 1e-12
# A dual bound above the primal value by more than rounding means the bound itself is wrong: never certified.
_ROUNDING_GAP = 1e-9
_PROJECTION_LIMIT = 1e-9
_SCALE_STEPS = 24
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


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
    return np.abs(w[:, subset]).sum(axis=1)


@np.errstate(over="ignore", invalid="ignore")  # what overflows ends as an infinite gap, below
def certify(rows: RowSet, w: np.ndarray, tolerance: float) -> Certificates:
    """Certificates of the stored rows ``w`` (r, d), which are only read."""
    objective = rows.objective
    free = rows.penalty_free
    residual_norms, linear, square, correlation = _projected(rows, w) if free.any() else _one_pass(rows, w)
    primal = primal_values(rows, w, residual_norms)
    own = rows.excluded >= 0
    correlation[np.flatnonzero(own), rows.excluded[own]] = 0.0

    projection_error = np.zeros(rows.count)
    if free.any():
        # Per feature, relative to the largest that theta could reach: 2 loss_weight ||z|| ||W_j||.
        largest = 2.0 * objective.loss_weight * np.sqrt(np.outer(rows.target_norms, _squares(rows, free)))
        error = np.abs(correlation[:, free])
        relative_error = np.divide(error, largest, out=np.zeros_like(error), where=largest > 0)
        projection_error = relative_error.max(axis=1, initial=0.0)
        correlation[:, free] = 0.0

    bound = _DualBound(linear, square, np.abs(correlation), rows.bounded, objective.penalty, objective.kappa)
    dual, multiplier = bound.best()

    relative = _relative_gap(rows, primal, dual)
    norm = l1_norms(w, rows.bounded)
    kappa = np.inf if objective.kappa is None else objective.kappa
    certified = (
        (np.abs(relative) <= np.where(relative < 0, _ROUNDING_GAP, tolerance))
        & np.isfinite(w).all(axis=1)
        & (norm <= kappa * (1.0 + KAPPA_SLACK))
        & (projection_error <= _PROJECTION_LIMIT)
    )
    certified[own] &= w[np.flatnonzero(own), rows.excluded[own]] == 0.0
    return Certificates(
        primal=primal,
        dual=dual,
        relative_gap=np.abs(relative),
        kappa_slack=kappa - norm,
        multiplier=multiplier,
        projection_error=projection_error,
        kind=np.full(rows.count, NORMAL_EQUATIONS if free.any() else DUALITY_GAP, dtype=np.uint8),
        certified=certified,
    )


def _one_pass(rows: RowSet, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """||r||^2, theta' z, ||theta||^2 / (4 loss_weight) and W theta for theta = 2 loss_weight r, in one reading of W."""
    weight = rows.objective.loss_weight
    norms, linear = np.zeros(rows.count), np.zeros(rows.count)
    correlation = np.zeros((rows.count, rows.design.d))
    for samples, tile in rows.design.tiles():
        target = np.asarray(rows.targets[:, samples], dtype=np.float64)
        residual = target - w @ tile
        norms += np.einsum("ij,ij->i", residual, residual)
        linear += np.einsum("ij,ij->i", residual, target)
        correlation += residual @ tile.T
    return norms, 2.0 * weight * linear, weight * norms, 2.0 * weight * correlation


def _projected(rows: RowSet, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same for theta projected on null(W_F), which needs the whole residual first."""
    weight = rows.objective.loss_weight
    residual = np.empty((rows.count, rows.design.m))
    for samples, tile in rows.design.tiles():
        residual[:, samples] = np.asarray(rows.targets[:, samples], dtype=np.float64) - w @ tile
    norms = np.einsum("ij,ij->i", residual, residual)
    theta = rows.free_basis.project_out(residual)
    linear = np.zeros(rows.count)
    correlation = np.zeros((rows.count, rows.design.d))
    for samples, tile in rows.design.tiles():
        target = np.asarray(rows.targets[:, samples], dtype=np.float64)
        linear += np.einsum("ij,ij->i", theta[:, samples], target)
        correlation += theta[:, samples] @ tile.T
    square = np.einsum("ij,ij->i", theta, theta)
    return norms, 2.0 * weight * linear, weight * square, 2.0 * weight * correlation


def _relative_gap(rows: RowSet, primal: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """The gap over max(primal, 1e-2 loss_weight ||z||^2); 0 only if both vanish, infinite if it is no number."""
    denominator = np.maximum(primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
    gap = primal - dual
    vanishing = (denominator == 0) & (gap == 0)
    relative = np.divide(gap, denominator, out=np.full(gap.shape, np.inf), where=denominator > 0)
    relative[vanishing] = 0.0
    return np.where(np.isfinite(relative), relative, np.inf)


def _squares(rows: RowSet, features: np.ndarray) -> np.ndarray:
    """||W_j||^2 of each of ``features``."""
    total = np.zeros(int(features.sum()))
    for _, tile in rows.design.tiles():
        total += np.einsum("ij,ij->i", tile[features], tile[features])
    return total


class _DualBound:
    """The bound as a concave function of the scale s of theta, with mu maximised exactly for every s."""

    def __init__(
        self,
        linear: np.ndarray,
        square: np.ndarray,
        correlation: np.ndarray,
        bounded: np.ndarray,
        penalty: Penalty,
        kappa: float | None,
    ) -> None:
        self.linear, self.square, self.penalty = linear, square, penalty
        self.kappa = 0.0 if kappa is None else kappa
        self.inside = -np.sort(-correlation[:, bounded], axis=1)
        self.outside = correlation[:, ~bounded]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest bound found and its mu, per row."""
        return self._without_curvature() if self.penalty.lam2 == 0 else self._with_curvature()

    def _without_curvature(self) -> tuple[np.ndarray, np.ndarray]:
        """lam2 = 0: the conjugate is an indicator, and the best s is one of two vertices."""
        slope = self.penalty.slope
        top = self.inside.max(axis=1, initial=0.0)
        largest = np.minimum(_ratio(slope, self.outside.max(axis=1, initial=0.0)), 1.0)
        corner = np.minimum(_ratio(slope, top), largest)
        stationary = _ratio(self.linear, 2.0 * self.square)
        below = np.clip(stationary, 0.0, corner)
        above = np.clip(_ratio(self.linear - self.kappa * top, 2.0 * self.square), corner, largest)
        best = np.full(self.linear.shape, -np.inf)
        multiplier = np.zeros_like(best)
        for s in (below, above):
            s = np.where(np.isfinite(s), s, 0.0)
            mu = np.maximum(s * top - slope, 0.0)
            value = s * self.linear - s * s * self.square - self.kappa * mu
            better = value > best
            best, multiplier = np.where(better, value, best), np.where(better, mu, multiplier)
        return best, multiplier

    def _with_curvature(self) -> tuple[np.ndarray, np.ndarray]:
        """lam2 > 0: s = 1 is nearly right; a golden section below it takes off what rounding left over."""
        one = np.ones_like(self.linear)
        best, multiplier = self._at(one)
        top = np.maximum(
            self.inside.max(axis=1, initial=0.0) - multiplier, self.outside.max(axis=1, initial=0.0)
        )
        low, high = np.minimum(_ratio(self.penalty.slope, top), 1.0), one
        for _ in range(_SCALE_STEPS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            (value_left, mu_left), (value_right, mu_right) = self._at(left), self._at(right)
            go_left = value_left > value_right
            value, mu = np.where(go_left, value_left, value_right), np.where(go_left, mu_left, mu_right)
            better = value > best
            best, multiplier = np.where(better, value, best), np.where(better, mu, multiplier)
            low, high = np.where(go_left, low, left), np.where(go_left, right, high)
        return best, multiplier

    def _at(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bound and best mu at scale ``s`` (r,), lam2 > 0."""
        mu = self._best_multiplier(s)
        value = s * self.linear - s * s * self.square - self.kappa * mu
        value -= self.penalty.conjugate(s[:, None] * self.inside, mu[:, None]).sum(axis=1)
        value -= self.penalty.conjugate(s[:, None] * self.outside).sum(axis=1)
        return value, mu

    def _best_multiplier(self, s: np.ndarray) -> np.ndarray:
        """argmax over mu >= 0 of -kappa mu - sum over S of pen*_mu.

        The derivative falls in mu: -kappa + sum over {s v_j > slope + mu} of ( knee + (s v_j - slope - mu) /
        (2 lam2) ). With S sorted, k features inside give the root mu_k by prefix sums; the answer is the first
        k at which the derivative at the next breakpoint is no longer positive.
        """
        r, size = self.inside.shape
        if size == 0:
            return np.zeros(r)
        pen = self.penalty
        v = s[:, None] * self.inside
        counts = np.arange(1, size + 1)
        prefix = np.cumsum(v, axis=1)
        following = np.concatenate([v[:, 1:], np.zeros((r, 1))], axis=1)
        # At mu + slope = v_{k+1} exactly k features count; positive means the optimum mu is at least there.
        pull = counts * pen.knee + (prefix - counts * following) / (2.0 * pen.lam2) - self.kappa
        k = np.minimum((pull <= 0).sum(axis=1), size - 1)
        at = np.arange(r)
        root = (prefix[at, k] - 2.0 * pen.lam2 * (self.kappa - (k + 1) * pen.knee)) / (k + 1)
        threshold = np.clip(root, following[at, k], v[at, k])
        return np.maximum(threshold - pen.slope, 0.0)


def _ratio(numerator: np.ndarray | float, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, +inf where the denominator is 0."""
    top = np.broadcast_to(np.asarray(numerator, dtype=float), denominator.shape)
    return np.divide(top, denominator, out=np.full(denominator.shape, np.inf), where=denominator > 0)
