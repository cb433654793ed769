"""Safe feature elimination: which coefficients are zero in every optimal row, proven from any feasible row.

The dual of a row (see :mod:`simtool.certificate`) is, with nu the multiplier of the residual and mu that of kappa,

    D(nu, mu) = nu'z - ||nu||^2 / (4 L) - kappa mu - sum_j pen*_{mu [j in S]}( W_j'nu ),        L = loss_weight.

**A ball for nu.** D is concave and, through -||nu||^2 / (4 L), strongly so in nu: maximised over mu it obeys
D(nu) <= D(nu*) - ||nu - nu*||^2 / (4 L), so the optimal nu* = 2 L (z - W'w*) is unique, and a dual point at gap
g = P(w) - D(nu, mu) has ||nu - nu*|| <= sqrt(4 L g). The residual of w itself, nu = 2 L (z - W'w), lies in the same
ball although it may not be dual feasible: P(w) - P(w*) >= L ||W'(w - w*)||^2 = ||nu - nu*||^2 / (4 L). Projecting
nu on null(W_F), where penalty-free features F force nu* to be, only shortens the distance.

**The rule.** Every optimal w* minimises the Lagrangian at (nu*, mu*), so w*_j = 0 where

    |W_j'nu*| < slope + mu* [j in S].

The inequality is strict, so a tie (a duplicated column at the threshold) is never eliminated. mu* is not known,
but it maximises -kappa mu - sum_{i in S} pen*_mu(v_i), v = |W_S'nu*|, whose derivative in mu grows with every v_i: mu*
is a monotone function of v. With rho the radius, putting max(|W_i'nu| - rho ||W_i||, 0) for v_i into it gives a lower
bound mu_low, and j is inactive when |W_j'nu| + rho ||W_j|| < slope + mu_low [j in S]. For the lasso (slope = lam2 = 0)
mu* = max_S v: a feature goes when even its largest possible correlation is below what some other one has at least.

**In the papers.** The OOD report (section 5, eq. 2-5; L = 1/2, lam2 = gamma / 2, and nu with the opposite sign) writes
t >= a >= -t with multipliers mu1, mu2 >= 0, mu1 + mu2 = delta e. Its Lagrangian is stationary in a_j where
W_j'nu + mu1_j - mu2_j = -gamma a_j, so at a_j = 0: mu1_j, mu2_j = (delta -/+ W_j'nu) / 2, and *both are positive*
exactly when |W_j'nu| < delta: the rule above, delta being mu*. (With |a_j| > 0 one of them is zero, and
|W_j'nu| = delta + gamma |a_j|.) What the report leaves open: it needs the exact dual solution, where the ball makes the
rule hold for any approximate one; its text speaks of "non-zero indices of mu1 and mu2" where both must be non-zero;
at delta = 0 (kappa slack) nothing can be eliminated by it; and repeating it on the reduced problem changes nothing,
as the solution is the same one, so going down to a wanted number of features needs a heuristic.

The thesis holds that screening does not apply to the constrained form (3.4); the strong concavity in nu is all it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simtool.certificate import _PROJECTION_LIMIT, KAPPA_SLACK, Certificates, _one_pass, _projected, certify
from simtool.design import SAMPLE_TILE
from simtool.dual_bound import BoxedDualBound, DualBound
from simtool.penalty import Penalty
from simtool.problem import RowSet

_EPS = float(np.finfo(float).eps)


def screen(
    correlation: np.ndarray,
    norms: np.ndarray,
    gap: np.ndarray,
    penalty: Penalty,
    kappa: float | None,
    bounded: np.ndarray,
    loss_weight: float,
    *,
    allowed: np.ndarray | None = None,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    error: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Features that are zero in every optimal row, (r, d) bool; what a row may not use counts as such.

    Parameters
    ----------
    correlation : (r, d), W nu, or |W nu| where there are no bounds; nu is 2 L (z - W'w) of a feasible w, or the
        dual point that the gap was computed with (for instance a scaled residual)
    norms : (d,), ||W_j||, or anything larger
    gap : (r,), primal value minus dual bound; what is negative by rounding counts as 0, NaN as infinite
    penalty, kappa, bounded, loss_weight : the objective; ``bounded`` (d,) bool is S, ignored without kappa
    allowed : (r, d) bool or None, the features each row may use
    lower, upper : (d,) or None, bounds that contain 0
    error : (r,), what rounding may have added to W_j'nu, as a multiple of ||W_j||
    """
    distance = np.sqrt(4.0 * loss_weight * np.where(np.isnan(gap), np.inf, np.maximum(gap, 0.0))) + error
    # Products round upwards here: an infinite radius on a zero column must not give NaN.
    with np.errstate(invalid="ignore"):
        spread = np.where(norms > 0, distance[:, None] * norms, 0.0) * (1.0 + 4.0 * _EPS)
    v = correlation if allowed is None else np.where(allowed, correlation, 0.0)
    threshold = np.full(v.shape, penalty.slope)
    if kappa is not None and bounded.any():
        low = np.maximum(np.abs(v) - spread, 0.0)
        if allowed is not None:
            low = np.where(allowed, low, 0.0)
        multiplier = multiplier_bound(low, v, penalty, kappa, bounded, lower, upper)
        threshold[:, bounded] += multiplier[:, None]
    threshold *= 1.0 - 4.0 * _EPS
    # A coefficient can leave zero upwards, downwards, or is held at zero by a bound.
    stays = np.ones(v.shape, dtype=bool)
    with np.errstate(invalid="ignore"):  # infinity minus infinity compares as False: not eliminated
        for sign, bound in ((1.0, upper), (-1.0, lower)):
            held = sign * v + spread < threshold
            stays &= held if bound is None else held | (bound == 0.0)
    if kappa == 0.0:
        stays |= bounded
    if allowed is not None:
        stays |= ~allowed
    return stays


def multiplier_bound(
    low: np.ndarray,
    v: np.ndarray,
    penalty: Penalty,
    kappa: float,
    bounded: np.ndarray,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
) -> np.ndarray:
    """A lower bound (r,) of mu* from ``low`` (r, d) <= |W nu*|; ``v`` has the signs that low's entries belong to."""
    nothing = np.zeros(low.shape[0])
    top = low[:, bounded].max(axis=1, initial=0.0)
    if lower is not None or upper is not None:
        down = np.full(low.shape[1], np.inf) if lower is None else -lower
        up = np.full(low.shape[1], np.inf) if upper is None else upper
        reach = np.where(v > 0, up, down)
        mu = BoxedDualBound(nothing, nothing, low, reach, bounded, penalty, kappa)._best_multiplier(low)
    elif penalty.lam2 == 0:
        return np.maximum(top - penalty.slope, 0.0)
    else:
        mu = DualBound(nothing, nothing, low, bounded, penalty, kappa)._best_multiplier(np.ones(low.shape[0]))
    # Prefix sums over S and bisection round: relative to the largest entry and to what kappa adds.
    weight = (int(bounded.sum()) + 16) * _EPS
    slack = weight * (top + penalty.slope + 2.0 * penalty.lam2 * (kappa + penalty.knee))
    return np.maximum(mu - slack, 0.0)


@dataclass(frozen=True)
class Screening:
    """What one feasible row proves.

    Attributes
    ----------
    inactive : (r, d) bool, zero in every optimal row; includes what a row may not use
    gap : (r,), the duality gap used, rounding included
    radius : (r,), rho: the optimal nu lies within it of 2 loss_weight (z - W'w)
    """

    inactive: np.ndarray
    gap: np.ndarray
    radius: np.ndarray


@np.errstate(over="ignore", invalid="ignore")  # what overflows is an infinite radius: nothing is eliminated
def inactive(rows: RowSet, w: np.ndarray, proof: Certificates | None = None) -> Screening:
    """Screen all features of ``rows`` from the feasible coefficients ``w`` (r, d), reading W once.

    ``proof`` is certify(rows, w, ...) where it is known already; certified or not, its gap is what counts. The
    radius includes the worst that rounding can do to the sums in float64, so that the answer is safe as computed.
    A row whose ``w`` is infeasible or not finite proves nothing.
    """
    objective = rows.objective
    if proof is None:
        proof = certify(rows, w, 0.0)
    correlation = (_projected if rows.penalty_free.any() else _one_pass)(rows, w)[3]
    unit, error, gap_error = _rounding(rows, w, proof, correlation)
    usable = _feasible(rows, w, proof) & np.isfinite(correlation).all(axis=1)
    gap = np.where(usable, np.maximum(proof.primal - proof.dual, 0.0) + gap_error, np.inf)
    gap = np.where(np.isnan(gap), np.inf, gap)
    error = np.where(np.isfinite(error), error, np.inf)
    proven = screen(
        np.where(usable[:, None], correlation, 0.0),
        np.sqrt(rows.design.squares) * (1.0 + unit),
        gap,
        objective.penalty,
        objective.kappa,
        rows.bounded,
        objective.loss_weight,
        allowed=rows.allowed,
        lower=rows.lower,
        upper=rows.upper,
        error=error,
    )
    return Screening(proven, gap, np.sqrt(4.0 * objective.loss_weight * gap) + error)


def _feasible(rows: RowSet, w: np.ndarray, proof: Certificates) -> np.ndarray:
    """Rows (r,) whose primal and dual points satisfy their constraints, to the certificate's slack."""
    kappa = rows.objective.kappa
    # A dual point that leaves a feature unbounded proves nothing: the certificate reports it as projection error.
    fine = np.isfinite(w).all(axis=1) & (proof.projection_error <= _PROJECTION_LIMIT)
    if kappa is not None:
        fine &= proof.kappa_slack >= -KAPPA_SLACK * kappa
    if rows.allowed is not None:
        fine &= ~np.any((w != 0.0) & ~rows.allowed, axis=1)
    if rows.lower is not None:
        fine &= (w >= rows.lower).all(axis=1)
    if rows.upper is not None:
        fine &= (w <= rows.upper).all(axis=1)
    return np.asarray(fine)


def _rounding(
    rows: RowSet, w: np.ndarray, proof: Certificates, correlation: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The relative error of one inner product, of a correlation (r,) per ||W_j||, and the error of the gap (r,).

    A sum of k products in any order errs by at most k eps times the sum of their sizes; tiles of samples are summed
    one after the other, and an entry of the residual has d products. The dual bound holds for whatever theta was
    computed, so only its sums err: dv_j of W_j'theta costs |d pen* / dv_j| dv_j, the coefficient that the dual
    point implies. Without lam2 that is paid through the multiplier (kappa max dv_j), or by scaling theta until it is
    feasible, which loses the fraction dv_j / slope of theta'z: whichever is less.
    """
    objective, design = rows.objective, rows.design
    weight, penalty, bounded = objective.loss_weight, objective.penalty, rows.bounded
    unit = (min(design.m, SAMPLE_TILE) + design.m / SAMPLE_TILE + 2 * design.d + 16) * _EPS
    norms = np.sqrt(design.squares)
    target = np.sqrt(rows.target_norms)
    # No vector that enters a residual is longer than ``size``; the residual itself is often much shorter.
    size = target + np.abs(w) @ norms
    residual = np.sqrt(np.maximum(proof.primal, 0.0) / weight) + unit * size
    kappa = 0.0 if objective.kappa is None else objective.kappa
    if rows.limited.any() or penalty.lam2 > 0:
        excess = np.abs(correlation) - penalty.slope - proof.multiplier[:, None] * bounded
        implied = penalty.maximiser(excess, rows.reach(correlation))
        moved = np.where(np.isfinite(implied), implied, 0.0) @ norms
    else:
        moved = np.zeros(rows.count)
    if penalty.lam2 == 0:
        linear = 2.0 * weight * residual * target
        shrunk = linear / penalty.slope if penalty.slope > 0 else np.full(rows.count, np.inf)
        if bounded.any():
            moved += norms[bounded].max() * np.minimum(kappa, shrunk)
        if penalty.slope > 0 and not bounded.all():
            moved += norms[~bounded].max() * shrunk
    # Penalty-free features: what the projection left of W_F theta, times coefficients (taken to be at most twice w's).
    loose = 4.0 * weight * proof.projection_error * target * size
    sums = weight * residual * (size + target + residual + moved) + np.abs(proof.primal) + np.abs(proof.dual)
    # kappa exceeded by its slack counts as feasible: the primal value may be that much too low.
    slack = 2.0 * KAPPA_SLACK * kappa * proof.multiplier
    return unit, 4.0 * unit * weight * size, 4.0 * unit * sums + slack + loose
