"""Rows without a shared Gram matrix: d far above m, or too large for memory.

Every row keeps a working set of features with a small Gram matrix of its own, which the compiled kernel solves. A
block of rows then shares one product of W with all their residuals, in the precision the states are stored in; it
says which other features pay, and those it is not sure of are asked again in float64. A row is finished when no
feature outside its working set pays more than the certificate can bear.
"""

from __future__ import annotations

import numpy as np

from simtool.problem import RowSet
from simtool.solvers.elimination import Elimination
from simtool.solvers.face import solve_reduced

BLOCK = 64
_FIRST = 64
_LEAST_NEW = 32
_CHUNK = 512
# A violation this small, relative to the tolerance, costs the certificate a fraction of it.
_SLACK = 0.1
_ROUNDING = 1e-14


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) of all rows, to be certified at ``tolerance``."""
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
            _solve_block(rows, block)
            for row in block:
                w[row.index, row.members] = row.w
    return elimination.complete(w)


def _solve_block(rows: RowSet, block: list[_WorkingSet]) -> None:
    """Grow and solve the working sets of ``block`` until no row finds another feature that pays."""
    unfinished = block
    while unfinished:
        rough = rows.design.rough_correlation(np.array([row.residual for row in unfinished]))
        growing = []
        for i, row in enumerate(unfinished):
            found = row.find(rough[:, i])
            if found.size:
                row.grow(found)
                growing.append(row)
        unfinished = growing


class _WorkingSet:
    """One row in the features that matter so far.

    Attributes
    ----------
    members : (k,) int, features of the working set
    w : (k,), their coefficients
    residual : (m,), R (z - W^T w), from which every feature's gradient follows
    """

    def __init__(
        self, elimination: Elimination, index: int, target: np.ndarray, square: float, tolerance: float
    ) -> None:
        self._elimination, self.index = elimination, index
        self._target, self._square, self._tolerance = target, square, tolerance
        self._rows = elimination.rows
        self._two_l = 2.0 * self._rows.objective.loss_weight
        self._norms = np.sqrt(self._rows.design.squares)
        self._gram = np.zeros((0, 0))
        self._correlation = np.zeros(0)
        self._alive = np.zeros(0, dtype=bool)
        self._multiplier = 0.0
        self.members = np.zeros(0, dtype=np.int64)
        self.w = np.zeros(0)
        self.residual = target

    def find(self, rough: np.ndarray) -> np.ndarray:
        """The features that pay most among those outside the set; ``rough`` (d,) is nearly W residual."""
        design, two_l = self._rows.design, self._two_l
        threshold = self._rows.objective.penalty.slope + self._multiplier * self._elimination.inside
        margin = design.rough_error * float(np.sqrt(self.residual @ self.residual)) * self._norms
        size = np.abs(rough)
        candidates = np.flatnonzero(size > threshold / two_l - margin)
        candidates = candidates[~np.isin(candidates, self.members)]
        enters = self._elimination.may_enter(self.index, rough[candidates], margin[candidates], candidates)
        candidates = candidates[enters]
        excess = two_l * size[candidates] - threshold[candidates]
        wanted = max(_LEAST_NEW, np.count_nonzero(self.w) // 2) if self.members.size else _FIRST
        slack = self._slack()
        # Mostly the first chunk decides; a row whose features are all uncertain is looked through to the end.
        step = wanted
        while candidates.size:
            order = np.argpartition(-excess, min(step, excess.size) - 1)
            candidates, excess = candidates[order], excess[order]
            best = np.argsort(-excess[:step], kind="stable")
            chunk = candidates[:step][best]
            candidates, excess = candidates[step:], excess[step:]
            exact = two_l * (design.dense(chunk) @ self.residual)
            pays = np.abs(exact) - threshold[chunk] > slack
            pays &= self._elimination.may_enter(self.index, exact, np.zeros(chunk.size), chunk)
            if pays.any():
                return chunk[pays][:wanted]
            step = _CHUNK
        return candidates

    def _slack(self) -> float:
        """The violation that may be left: a fraction of what the certificate allows."""
        objective = self._rows.objective
        reference = float(self._rows.target_norms[self.index])
        scales = [objective.penalty.slope] if objective.penalty.slope > 0 else []
        if self._elimination.inside.any() and objective.kappa:
            fit = self._square - self.w @ (2.0 * self._correlation - self._gram @ self.w)
            primal = objective.loss_weight * fit + float(objective.penalty.value(self.w).sum())
            floor = 1e-2 * objective.loss_weight * reference
            scales.append(max(float(primal), floor) / objective.kappa)
        largest = float(np.sqrt(reference * self._rows.design.squares.max(initial=0.0)))
        return max(_ROUNDING * self._two_l * largest, _SLACK * self._tolerance * min(scales, default=0.0))

    def grow(self, found: np.ndarray) -> None:
        """Take ``found`` into the set and solve it again, from where it stands."""
        design, elimination = self._rows.design, self._elimination
        new = design.dense(found)
        shrunk = elimination.shrink(new)
        k = self.members.size
        self.members = np.concatenate([self.members, found])
        everything = design.dense(self.members)
        cross = shrunk @ everything.T
        gram = np.empty((self.members.size, self.members.size))
        gram[:k, :k] = self._gram
        gram[k:], gram[:, k:] = cross, cross.T
        gram[k:, k:] = (cross[:, k:] + cross[:, k:].T) / 2.0
        self._gram = gram
        self._correlation = np.concatenate([self._correlation, new @ self._target])
        squares = np.einsum("ij,ij->i", new, new)
        self._alive = np.concatenate([self._alive, elimination.alive(np.diag(gram)[k:], squares)])
        start = np.concatenate([self.w, np.zeros(found.size)])
        row = elimination.row(self.index, self.members, gram, self._correlation, self._square, self._alive)
        self.w, self._multiplier = solve_reduced(row, self._tolerance, start)
        used = np.flatnonzero(self.w)
        self.residual = self._target - elimination.shrink((self.w[used] @ everything[used])[None])[0]
