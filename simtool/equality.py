"""The proof of a row that must match its target exactly: SIM (2b), (2c) with the objectives of (4) and (6).

    minimise over w   sum_j pen(w_j)   subject to   W^T w = z,   ||w_S||_1 <= kappa,   lower <= w <= upper

The states are float32, so equality holds to rounding: ``match`` = ||W^T w - z|| / ||z|| must not exceed 1e-6. Beyond that
the stored row is compared with every row that gives the same states as it does. For any nu in R^m, any mu >= 0 and any v
with W^T v = W^T w and the constraints above, with g = W nu (weak duality):

    sum_j pen(v_j)  >=  g' w - kappa mu - sum_j  sup over lower <= x <= upper of ( g_j x - pen(x) - mu [j in S] |x| )

since g' v = nu' W^T v = g' w. nu is a hint from whoever solved the row: a bad one gives a poor bound, never a wrong one. It
is scaled (nu = 0 bounds by 0) and mu is maximised here. Rounding in g is allowed for: every g_j is taken larger by
sqrt(m) eps ||W_j|| ||nu||, so that an ill-conditioned nu cannot prove what it should not. What is not penalised needs no
proof but the match: with pen = 0 both values are 0.
"""

from __future__ import annotations

import numpy as np

from simtool.certificate import EQUALITY, KAPPA_SLACK, Certificates, l1_norms
from simtool.problem import RowSet

MATCH_TOLERANCE = 1e-6
# A dual bound above the primal value by more than rounding means the bound itself is wrong: never certified.
_ROUNDING_GAP = 1e-9
_STEPS = 60
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def mismatch(rows: RowSet, w: np.ndarray) -> np.ndarray:
    """||W^T w - z|| / ||z|| per row, (r,), on W as it is; for z = 0 it is 0 or infinite."""
    squares = np.zeros(rows.count)
    for samples, tile in rows.design.tiles():
        residual = rows.target(samples) - w @ tile
        squares += np.einsum("ij,ij->i", residual, residual)
    return _over(np.sqrt(squares), np.sqrt(rows.target_norms))


@np.errstate(over="ignore", invalid="ignore")  # what overflows ends as an infinite gap, below
def certify_equality(rows: RowSet, w: np.ndarray, nu: np.ndarray, tolerance: float) -> Certificates:
    """Certificates of the stored rows ``w`` (r, d) with the hints ``nu`` (r, m); both are only read."""
    penalty, kappa = rows.objective.penalty, rows.objective.kappa
    primal = penalty.value(w).sum(axis=1)
    match = mismatch(rows, w)
    g, rounding = _correlations(rows, nu)
    dual, multiplier = np.zeros(rows.count), np.zeros(rows.count)
    for i in range(rows.count if not penalty.free else 0):
        linear = float(g[i] @ w[i] - rounding[i] @ np.abs(w[i]))
        dual[i], multiplier[i] = _Bound(rows, i, linear, g[i], rounding[i]).best()
    gap = primal - dual
    relative = _over(gap, primal)
    relative = np.where(np.isfinite(relative), relative, np.inf)
    norm = l1_norms(w, rows.bounded)
    limit = np.inf if kappa is None else kappa
    certified = (
        (np.abs(relative) <= np.where(relative < 0, _ROUNDING_GAP, tolerance))
        & np.isfinite(w).all(axis=1)
        & (norm <= limit * (1.0 + KAPPA_SLACK))
        & (match <= MATCH_TOLERANCE)
        & ~outside(rows, w)
    )
    return Certificates(
        primal=primal,
        dual=dual,
        relative_gap=np.abs(relative),
        kappa_slack=limit - norm,
        multiplier=multiplier,
        projection_error=match,
        kind=np.full(rows.count, EQUALITY, dtype=np.uint8),
        certified=certified,
    )


def outside(rows: RowSet, w: np.ndarray) -> np.ndarray:
    """Rows of ``w`` (r, d) that use a feature they may not, or leave the box; (r,) bool."""
    wrong = np.zeros(rows.count, dtype=bool)
    if rows.allowed is not None:
        wrong |= np.any((w != 0.0) & ~rows.allowed, axis=1)
    if rows.lower is not None:
        wrong |= np.any(w < rows.lower, axis=1)
    if rows.upper is not None:
        wrong |= np.any(w > rows.upper, axis=1)
    return wrong


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, 0 where both vanish, infinite where only ``bottom`` does."""
    out = np.full(np.shape(top), np.inf)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return np.where((bottom == 0) & (top == 0), 0.0, out)


def _correlations(rows: RowSet, nu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """g = W nu (r, d), and how far rounding may have moved each of its entries."""
    g = np.zeros((rows.count, rows.design.d))
    for samples, tile in rows.design.tiles():
        g += nu[:, samples] @ tile.T
    unit = np.sqrt(rows.design.m) * np.finfo(float).eps
    sizes = np.sqrt(np.einsum("ij,ij->i", nu, nu))
    return g, unit * np.outer(sizes, np.sqrt(rows.design.squares))


class _Bound:
    """The bound of one row as a concave function of the scale s >= 0 of nu and of mu >= 0.

    ``up`` and ``down`` (d,) are how hard each coefficient is pulled to either side, rounding included; each side has
    its own supremum, and counting both where rounding leaves the sign open keeps the bound valid.
    """

    def __init__(self, rows: RowSet, i: int, linear: float, g: np.ndarray, rounding: np.ndarray) -> None:
        one = np.ones((1, g.size))
        allowed = slice(None) if rows.allowed is None else rows.allowed[i]
        self.linear, self.penalty = linear, rows.objective.penalty
        self.kappa = 0.0 if rows.objective.kappa is None else rows.objective.kappa
        self.inside = np.tile(rows.bounded[allowed], 2)
        pull = np.stack([g + rounding, rounding - g])[:, allowed]
        self.pull = np.maximum(pull, 0.0).ravel()
        self.reach = np.concatenate([rows.reach(one), rows.reach(-one)])[:, allowed].ravel()

    def best(self) -> tuple[float, float]:
        """The largest bound found and its mu; (0, 0), which nu = 0 gives, if nothing is larger."""
        if not (np.isfinite(self.linear) and np.isfinite(self.pull).all()):
            return 0.0, 0.0
        slope = self.penalty.slope
        # Where neither curvature nor a bound holds a coefficient, its pull must stay within the slope (plus mu in S).
        held = np.isinf(self.reach) & (self.penalty.lam2 == 0)
        pinned = self.pull[held & ~self.inside].max(initial=0.0)
        most = slope / pinned if pinned > 0 else np.inf
        top = self.pull[self.inside].max(initial=0.0)
        # Without curvature and bounds the best scale is one of these; the search covers everything else.
        scales = [s for s in (most, slope / top if top > 0 else np.inf, 1.0) if 0 < s <= most]
        found = [self._best_multiplier(s) for s in scales if np.isfinite(s)]
        if self.penalty.lam2 > 0 or not held.all():
            found.append(self._search(min(1.5, most)))
        return max([(0.0, 0.0), *found])

    def _search(self, most: float) -> tuple[float, float]:
        """Golden section on the scale."""
        low, high = 0.0, most
        best = (0.0, 0.0)
        for _ in range(_STEPS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            at_left, at_right = self._best_multiplier(left), self._best_multiplier(right)
            best = max(best, at_left, at_right)
            if at_left[0] > at_right[0]:
                high = right
            else:
                low = left
        return best

    def _best_multiplier(self, s: float) -> tuple[float, float]:
        """The bound at scale ``s`` with the best mu, and that mu: the derivative in mu falls, so it is bisected."""
        if not self.inside.any():
            return self._at(s, 0.0), 0.0
        excess = s * self.pull[self.inside] - self.penalty.slope
        endless = np.isinf(self.reach[self.inside]) & (self.penalty.lam2 == 0)
        low = max(0.0, float(excess[endless].max(initial=0.0)))
        high = max(low, float(excess.max()))
        if self._beyond_kappa(s, low) <= 0:
            return self._at(s, low), low
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._beyond_kappa(s, middle) > 0 else (low, middle)
        return max((self._at(s, low), low), (self._at(s, high), high))

    def _at(self, s: float, mu: float) -> float:
        conjugate = self.penalty.conjugate(s * self.pull, mu * self.inside, self.reach)
        return s * self.linear - self.kappa * mu - float(conjugate.sum())

    def _beyond_kappa(self, s: float, mu: float) -> float:
        """A derivative of the bound in mu: how far the l1 norm of the maximisers on S exceeds kappa."""
        excess = s * self.pull[self.inside] - self.penalty.slope - mu
        return float(self.penalty.maximiser(excess, self.reach[self.inside]).sum()) - self.kappa
