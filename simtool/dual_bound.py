"""The largest dual bound that a given theta proves: scale s and multiplier mu chosen, features given by W theta.

    bound(s, mu) = s theta'z - s^2 ||theta||^2 / (4 loss_weight) - kappa mu - sum_j pen*_{mu [j in S]}( s W_j'theta )

Any 0 <= s and mu >= 0 give a valid bound; here they are chosen to make it as large as possible, for many rows at once.
"""

from __future__ import annotations

import numpy as np

from simtool.penalty import Penalty

_SCALE_STEPS = 24
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_HALVINGS = 70


class DualBound:
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
        self.inside = correlation if bounded.all() else correlation[:, bounded]
        self.outside = correlation[:, ~bounded]
        if penalty.lam2 > 0:  # else the largest is all that matters
            self.inside = -np.sort(-self.inside, axis=1)

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


class BoxedDualBound:
    """The same where coefficients have bounds: the conjugates are then finite wherever the bounds are.

    ``reach`` (r, d) is how far w_j may go in the direction of its correlation. The scale is 1, or what coefficients
    without a bound allow; mu maximises the bound at that scale, by bisection on its derivative.
    """

    def __init__(
        self,
        linear: np.ndarray,
        square: np.ndarray,
        correlation: np.ndarray,
        reach: np.ndarray,
        bounded: np.ndarray,
        penalty: Penalty,
        kappa: float | None,
    ) -> None:
        self.linear, self.square, self.penalty = linear, square, penalty
        self.kappa = 0.0 if kappa is None else kappa
        self.correlation, self.reach, self.bounded = correlation, reach, bounded

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The bound and its mu, per row."""
        scale = np.ones_like(self.linear)
        if self.penalty.lam2 == 0:
            outside = np.where(np.isinf(self.reach) & ~self.bounded, self.correlation, 0.0)
            scale = np.minimum(_ratio(self.penalty.slope, outside.max(axis=1, initial=0.0)), 1.0)
        v = scale[:, None] * self.correlation
        mu = self._best_multiplier(v)
        value = scale * self.linear - scale**2 * self.square - self.kappa * mu
        return value - self.penalty.conjugate(v, mu[:, None] * self.bounded, self.reach).sum(axis=1), mu

    def _best_multiplier(self, v: np.ndarray) -> np.ndarray:
        """argmax over mu >= 0 of -kappa mu - sum over S of pen*_mu, whose derivative is ||w_S(mu)||_1 - kappa."""
        inside, reach = v[:, self.bounded], self.reach[:, self.bounded]
        high = np.maximum(inside.max(axis=1, initial=0.0) - self.penalty.slope, 0.0)
        low = np.zeros_like(high)
        if self.penalty.lam2 == 0:
            # A coefficient without a bound must not pay at all.
            unbounded = np.where(np.isinf(reach), inside, 0.0).max(axis=1, initial=0.0)
            low = np.maximum(unbounded - self.penalty.slope, 0.0)
        for step in range(_HALVINGS):
            mu = low if step == 0 else 0.5 * (low + high)
            excess = inside - self.penalty.slope - mu[:, None]
            pays = self.penalty.maximiser(excess, reach).sum(axis=1) > self.kappa
            low, high = np.where(pays, mu, low), np.where(pays, high, mu)
        return high
