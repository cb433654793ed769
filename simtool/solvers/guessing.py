"""Which features a row will need, guessed on a sample of the samples.

The row's own problem on a fraction of the samples (its loss scaled up to all of them) has much the same solution, and
costs that fraction. It is solved like the row itself, by pools and pursuit; the features of its solution are where the
row on all samples begins. A guess can be as wrong as it likes: nothing that is stored comes from it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simtool.solvers.elimination import Elimination
from simtool.solvers.face import solve_reduced
from simtool.solvers.pursuit import choose, excess, largest

_POOL, _WANTED = 128, 32
_PASSES = 4  # over one pool
_TOLERANCE = 1e-3
# What pays by less than this on a sample may not pay at all.
_WORTH = 0.05


def guess(elimination: Elimination, indices: range, targets: np.ndarray) -> list[np.ndarray]:
    """The features (k,) that each of the rows ``indices``, with ``targets`` (r, m), is guessed to need; maybe none."""
    design = elimination.rows.design
    if design.sample is None or elimination.eliminates:
        return [np.zeros(0, dtype=np.int64) for _ in indices]
    part, step = design.sample
    rows = [_Sampled(elimination, i, targets[i, ::step], part, step) for i in indices]
    unfinished = rows
    while unfinished:
        rough = design.guessed_correlation(np.array([row.residual for row in unfinished]))
        unfinished = [row for row, found in zip(unfinished, rough, strict=True) if row.extend(found)]
    return [row.members[row.w != 0.0] for row in rows]


class _Sampled:
    """One row on the sampled samples: features ``members`` (k,), coefficients ``w`` (k,), ``residual``."""

    def __init__(
        self, elimination: Elimination, index: int, target: np.ndarray, part: np.ndarray, step: int
    ) -> None:
        self._elimination, self._index = elimination, index
        self._target, self._part, self._step = target, part, step
        self._two_l = 2.0 * elimination.rows.objective.loss_weight
        self._held = np.zeros((0, target.size))
        self._gram, self._correlation = np.zeros((0, 0)), np.zeros(0)
        self._multiplier = 0.0
        self._outside = np.ones(elimination.rows.design.d, dtype=bool)
        self.members = np.zeros(0, dtype=np.int64)
        self.w = np.zeros(0)
        self.residual = target

    def extend(self, rough: np.ndarray) -> bool:
        """Take what pays, from the products ``rough`` (d,); returns whether there may be more."""
        over, threshold = excess(self._elimination, rough, self._multiplier)
        candidates = np.flatnonzero((over > _WORTH * threshold) & self._outside)
        candidates = candidates[
            self._elimination.may_enter(self._index, rough[candidates], np.zeros(candidates.size), candidates)
        ]
        if not candidates.size:
            return False
        pool = largest(candidates, over, _POOL)
        held = self._part[pool].astype(np.float64)
        gram = (self._two_l * self._step) * (held @ held.T)
        left = np.ones(pool.size, dtype=bool)
        grown = False
        for _ in range(_PASSES):
            chosen = self._choose(pool, held, gram, left)
            if not chosen.size:
                break
            left[chosen] = False
            self._grow(pool[chosen], held[chosen])
            grown = True
        return grown

    def _choose(self, pool: np.ndarray, held: np.ndarray, gram: np.ndarray, left: np.ndarray) -> np.ndarray:
        product = self._step * (held @ self.residual)
        first = not self.members.size
        return choose(
            self._elimination,
            self._index,
            pool,
            left,
            product,
            gram,
            self._multiplier,
            first,
            _WORTH,
            0.0,
            _WANTED,
        )

    def _grow(self, found: np.ndarray, new: np.ndarray) -> None:
        self.members = np.concatenate([self.members, found])
        self._outside[found] = False
        k = self._held.shape[0]
        held = self._held = np.concatenate([self._held, new])
        cross = self._step * (new @ held.T)
        gram = np.empty((self.members.size, self.members.size))
        gram[:k, :k] = self._gram
        gram[k:], gram[:, k:] = cross, cross.T
        gram[k:, k:] = (cross[:, k:] + cross[:, k:].T) / 2.0
        self._gram = gram
        self._correlation = np.concatenate([self._correlation, self._step * (new @ self._target)])
        row = self._elimination.row(
            self._index,
            self.members,
            gram,
            self._correlation,
            self._step * float(self._target @ self._target),
            np.ones(self.members.size, dtype=bool),
        )
        row = replace(row, reference=row.square, samples=self._target.size)
        start = np.concatenate([self.w, np.zeros(found.size)])
        self.w, self._multiplier = solve_reduced(row, _TOLERANCE, start)
        self.residual = self._target - self.w @ held
