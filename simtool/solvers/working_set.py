"""Rows without a shared Gram matrix: d far above m, or too large for memory.

Every row keeps a working set of features with a small Gram matrix of its own, which the compiled kernel solves. A
block of rows shares one product of W with all their residuals, in the precision the states are stored in; it says
which other features may pay. The best of them are a row's pool: it takes from the pool what pays in float64, solves,
and asks the pool again, until that is exhausted. The first members are guessed on a sample of the
samples, where all that costs a fraction; then rows look at all features until no feature outside the working set pays more than the
certificate can bear. A row whose gap proves that only a pool of features can be in its solution is finished there.
"""

from __future__ import annotations

import numpy as np

from simtool.dual_bound import DualBound
from simtool.problem import RowSet
from simtool.screening import screen
from simtool.solvers.elimination import Elimination
from simtool.solvers.face import solve_reduced
from simtool.solvers.guessing import guess
from simtool.solvers.pursuit import choose, excess, largest

BLOCK = 64
_POOL, _LAST_POOL = 128, 512
_WANTED = 16  # features taken at a time
# The pool also holds features this near to paying: they are the next to do so.
_NEAR = 0.9
# Screening is tried where no feature exceeds its threshold by more: only a small gap eliminates many.
_NEARLY_SOLVED = 1.5
# A violation this small, relative to the tolerance, costs the certificate a fraction of it.
_SLACK = 0.1
_ROUNDING = 1e-14


def solve(rows: RowSet, tolerance: float, *, sample: bool = True, screening: bool = True) -> np.ndarray:
    """Coefficients (r, d) of all rows, to be certified at ``tolerance``; ``sample`` and ``screening`` switch both off."""
    elimination = Elimination(rows)
    w = np.zeros((rows.count, rows.design.d))
    if elimination.pivoted.size:
        targets = rows.target()
        shrunk = elimination.shrink(targets)
        squares = np.maximum(np.einsum("ij,ij->i", targets, shrunk), 0.0)
        for start in range(0, rows.count, BLOCK):
            block = [
                _WorkingSet(elimination, i, shrunk[i], float(squares[i]), tolerance)
                for i in range(start, min(start + BLOCK, rows.count))
            ]
            if sample:
                indices = range(start, start + len(block))
                for row, found in zip(block, guess(elimination, indices, shrunk), strict=True):
                    row.begin(found)
            _solve_block(rows, block, screening)
            for row in block:
                w[row.index, row.members] = row.w
    return elimination.complete(w)


def _solve_block(rows: RowSet, block: list[_WorkingSet], screening: bool) -> None:
    """Grow and solve the working sets of ``block`` until no row finds another feature that pays."""
    unfinished = block
    while unfinished:
        rough = rows.design.rough_correlation(np.array([row.residual for row in unfinished]))
        unfinished = [
            row for row, found in zip(unfinished, rough, strict=True) if row.extend(found, screening)
        ]


class _WorkingSet:
    """One row in the features that matter so far.

    Attributes
    ----------
    members : (k,) int, features of the working set
    w : (k,), their coefficients
    residual : (m,), R (z - W^T w), from which every feature's gradient follows
    """

    def __init__(
        self,
        elimination: Elimination,
        index: int,
        target: np.ndarray,
        square: float,
        tolerance: float,
    ) -> None:
        self._elimination, self.index = elimination, index
        self._target, self._square, self._tolerance = target, square, tolerance
        self._rows = elimination.rows
        self._two_l = 2.0 * self._rows.objective.loss_weight
        self._gram = np.zeros((0, 0))
        self._correlation = np.zeros(0)
        self._alive = np.zeros(0, dtype=bool)
        self._multiplier = 0.0
        self._outside = np.ones(self._rows.design.d, dtype=bool)
        self.members = np.zeros(0, dtype=np.int64)
        self.w = np.zeros(0)
        self.residual = target

    def begin(self, found: np.ndarray) -> None:
        """Take the features ``found`` (k,) into the empty set."""
        if found.size:
            self._grow(found, self._rows.design.dense(found))

    def extend(self, rough: np.ndarray, screening: bool) -> bool:
        """Take what pays; ``rough`` (d,) is nearly W residual. Returns whether another look at all features is needed."""
        over, threshold = excess(self._elimination, rough, self._multiplier)
        margin = self._rows.design.rough_error * float(np.sqrt(self.residual @ self.residual))
        spread = margin * self._rows.design.norms
        uncertain = np.flatnonzero((over > -spread) & self._outside)
        uncertain = uncertain[self._may_enter(uncertain, rough[uncertain], spread[uncertain])]
        if not uncertain.size:
            return False
        if screening and not np.any(over[uncertain] > ((_NEARLY_SOLVED - 1.0) * threshold)[uncertain]):
            left = self._screened(rough, margin)
            if left.size <= _LAST_POOL:
                self._exhaust(left)
                return False
        if uncertain.size < _POOL:
            near = np.flatnonzero((over > (_NEAR - 1.0) * threshold) & self._outside)
            pool = largest(near, over, _POOL)
            # All that are uncertain must be looked at before the row may be called solved.
            pool = np.union1d(pool, uncertain)
            return self._exhaust(pool)
        order = np.argsort(-over[uncertain], kind="stable")
        for start in range(0, order.size, _POOL):
            if self._exhaust(uncertain[order[start : start + _POOL]]):
                return True
        return False

    def _exhaust(self, pool: np.ndarray) -> bool:
        """Take from ``pool`` until none of it pays; returns whether anything did."""
        held = self._rows.design.dense(pool)
        gram, grown = None, False
        left = np.ones(pool.size, dtype=bool)
        while left.any():
            product = held @ self.residual
            pays = left & self._pays(pool, product)
            if not pays.any():
                break
            if gram is None:
                gram = self._two_l * self._inner_products(pool, held)
            first, slack = not self.members.size, self._slack(pool)
            chosen = choose(
                self._elimination,
                self.index,
                pool,
                pays,
                product,
                gram,
                self._multiplier,
                first,
                0.0,
                slack,
                _WANTED,
            )
            if not chosen.size:  # what pays only by rounding, or in units where pursuit cannot tell
                chosen = np.flatnonzero(pays)[np.argmax(np.abs(product[pays]))][None]
            left[chosen] = False
            self._grow(pool[chosen], held[chosen])
            grown = True
        return grown

    def _inner_products(self, pool: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Those of the pool's features, nearly: they only decide what is taken first."""
        sample = self._rows.design.sample
        if sample is None:
            return held @ held.T
        features, step = sample
        part = features[pool]
        gram = step * (part @ part.T).astype(np.float64)
        np.fill_diagonal(gram, self._rows.design.squares[pool])
        return gram

    def _threshold(self, features: np.ndarray) -> np.ndarray:
        """What the gradients of ``features`` must exceed."""
        return self._rows.objective.penalty.slope + self._multiplier * self._elimination.inside[features]

    def _may_enter(self, features: np.ndarray, product: np.ndarray, error: np.ndarray) -> np.ndarray:
        return self._elimination.may_enter(self.index, product, error, features)

    def _pays(self, features: np.ndarray, product: np.ndarray) -> np.ndarray:
        """Which of ``features`` with the exact ``product`` (k,) = W residual lower the objective noticeably."""
        excess = self._two_l * np.abs(product) - self._threshold(features)
        return (excess > self._slack(features)) & self._may_enter(features, product, np.zeros(features.size))

    def _screened(self, rough: np.ndarray, margin: float) -> np.ndarray:
        """Features outside the set that the gap of the current point does not prove inactive."""
        rows, objective = self._rows, self._rows.objective
        if rows.limited.any() or rows.allowed is not None or self._elimination.eliminates:
            return np.flatnonzero(self._outside)
        correlation = self._two_l * np.abs(rough)[None]
        error = self._two_l * margin
        fit = float(self.residual @ self.residual)
        primal = objective.loss_weight * fit + float(objective.penalty.value(self.w).sum())
        linear = self._two_l * float(self.residual @ self._target)
        bound = DualBound(
            np.array([linear]),
            np.array([objective.loss_weight * fit]),
            correlation + error * rows.design.norms,
            rows.bounded,
            objective.penalty,
            objective.kappa,
        )
        dual, _ = bound.best()
        rounding = _ROUNDING * rows.design.m * (abs(primal) + abs(linear))
        inactive = screen(
            correlation,
            rows.design.norms,
            primal - dual + rounding,
            objective.penalty,
            objective.kappa,
            rows.bounded,
            objective.loss_weight,
            error=np.array([error]),
        )[0]
        return np.flatnonzero(~inactive & self._outside)

    def _slack(self, features: np.ndarray) -> np.ndarray:
        """The violation that may be left to ``features``: a fraction of what the certificate allows, or rounding.

        The slope or the ball absorbs a violation; where a feature has neither, nothing does.
        """
        objective, inside = self._rows.objective, self._elimination.inside[features]
        reference = float(self._rows.target_norms[self.index])
        unit = _ROUNDING * self._two_l * float(np.sqrt(reference))
        scale = objective.penalty.slope if objective.penalty.slope > 0 else np.inf
        if objective.kappa and self._elimination.inside.any():
            fit = self._square - self.w @ (2.0 * self._correlation - self._gram @ self.w)
            primal = objective.loss_weight * fit + float(objective.penalty.value(self.w).sum())
            scale = min(scale, max(float(primal), 1e-2 * objective.loss_weight * reference) / objective.kappa)
        absorbed = inside | (objective.penalty.slope > 0.0)
        norms = self._rows.design.norms
        rounding = unit * np.where(absorbed, norms.max(initial=0.0), norms[features])
        return np.maximum(rounding, np.where(absorbed, _SLACK * self._tolerance * scale, 0.0))

    def _grow(self, found: np.ndarray, new: np.ndarray) -> None:
        """Take ``found``, with rows ``new`` (k, m) of W, into the set and solve it again, from where it stands."""
        design, elimination = self._rows.design, self._elimination
        shrunk = elimination.shrink(new)
        k = self.members.size
        self.members = np.concatenate([self.members, found])
        self._outside[found] = False
        everything = design.dense(self.members)
        cross = shrunk @ everything.T
        gram = np.empty((self.members.size, self.members.size))
        gram[:k, :k] = self._gram
        gram[k:], gram[:, k:] = cross, cross.T
        gram[k:, k:] = (cross[:, k:] + cross[:, k:].T) / 2.0
        self._gram = gram
        self._correlation = np.concatenate([self._correlation, new @ self._target])
        squares = design.squares[found]
        self._alive = np.concatenate([self._alive, elimination.alive(np.diag(gram)[k:], squares)])
        start = np.concatenate([self.w, np.zeros(found.size)])
        row = elimination.row(self.index, self.members, gram, self._correlation, self._square, self._alive)
        self.w, self._multiplier = solve_reduced(row, self._tolerance, start)
        used = np.flatnonzero(self.w)
        self.residual = self._target - elimination.shrink((self.w[used] @ everything[used])[None])[0]
