"""Rows of an implicit model as convex problems that share one design matrix.

    minimise over w in R^d   loss_weight ||z - W^T w||^2 + sum_j pen(w_j)
    subject to   ||w_S||_1 <= kappa,   lower <= w <= upper,   w_j = 0 where the row's mask says so

W (d features, m samples) holds the rows of [X; U] that the structure allows, z is a row of Z or of Y, S is the
set that kappa bounds. Samples may have weights: the loss is then sum_t v_t (z - W^T w)_t^2, which is the same
problem with sqrt(v_t) in every sample of W and z, and that is what everything here returns. Sums over samples
run in fixed tiles, in float64 whatever the states are stored in, so a result never depends on how much memory or
how many processes a machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from simtool.penalty import Penalty
from simtool.row_space import RowSpace, row_space

SAMPLE_TILE = 4096
# A sparse product pays below one non-zero in so many: its memory traffic costs more a number.
_SPARSE = 12


@dataclass(frozen=True)
class Objective:
    """What is asked of a row, beside its design and target.

    Attributes
    ----------
    loss_weight : weight of the squared error, > 0 (already divided by m for a mean loss)
    penalty : the penalty of every coefficient
    kappa : bound of ||w_S||_1, or None
    """

    loss_weight: float
    penalty: Penalty
    kappa: float | None = None


class Design:
    """The design matrix W (d, m) that many rows share; read in tiles of samples, never modified.

    ``gram`` is W W^T where it is known already (sample weights included), ``sample_weight`` (m,) the weight of
    every sample in the loss, finite and >= 0; None for 1.
    """

    def __init__(
        self, w: np.ndarray, gram: np.ndarray | None = None, sample_weight: np.ndarray | None = None
    ) -> None:
        self._w = w
        self.d, self.m = w.shape
        self.root_weight: np.ndarray | None = None
        if sample_weight is not None:
            weight = np.asarray(sample_weight, dtype=np.float64)
            if weight.shape != (self.m,) or not np.isfinite(weight).all() or (weight < 0).any():
                raise ValueError(f"sample_weight must be ({self.m},), finite and >= 0")
            self.root_weight = np.sqrt(weight)
        if gram is not None:
            self.__dict__["gram"] = gram

    def weighted(self, values: np.ndarray, samples: slice = slice(None)) -> np.ndarray:
        """``values`` (k, m) at ``samples``, times the square roots of their weights: float64."""
        taken = np.ascontiguousarray(values[:, samples], dtype=np.float64)
        return taken if self.root_weight is None else taken * self.root_weight[samples]

    def tiles(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Sample ranges and the weighted W restricted to them, as float64 (d, tile)."""
        for start in range(0, self.m, SAMPLE_TILE):
            samples = slice(start, min(start + SAMPLE_TILE, self.m))
            yield samples, self.weighted(self._w, samples)

    def restricted(self, features: np.ndarray) -> Design:
        """The design of ``features`` (indices) alone, as float64 in memory."""
        part = Design(self.dense(features))
        if self.has_gram:
            part.__dict__["gram"] = self.gram[np.ix_(features, features)]
        return part

    @cached_property
    def gram(self) -> np.ndarray:
        """G = W W^T, (d, d) float64."""
        total = np.zeros((self.d, self.d))
        for _, tile in self.tiles():
            total += tile @ tile.T
        return total

    @property
    def has_gram(self) -> bool:
        """Whether G has been computed or given."""
        return "gram" in self.__dict__

    def rough_correlation(self, vectors: np.ndarray) -> np.ndarray:
        """W vectors^T for ``vectors`` (r, m) in the precision W is stored in: (d, r) in that type, one reading of W.

        Off by at most ``rough_error`` ||W_j|| ||vector||. Each vector goes in with norm 1, so that units do not
        leave the range of that type, and comes out with its own.
        """
        kind = self._w.dtype if self._w.dtype.kind == "f" else np.dtype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        unit = vectors / np.where(norms > 0, norms, 1.0)[:, None]
        if self.root_weight is not None:
            unit = unit * self.root_weight
        return (self._w @ unit.T.astype(kind)) * norms

    @property
    def rough_error(self) -> float:
        """Relative error of :meth:`rough_correlation`: a generous multiple of its type's rounding."""
        kind = self._w.dtype if self._w.dtype.kind == "f" else np.dtype(np.float64)
        return 64.0 * float(np.finfo(kind).eps)

    def known_gram(self, features: np.ndarray) -> np.ndarray | None:
        """G restricted to ``features`` (d,) bool if G has been computed, else None."""
        if not self.has_gram:
            return None
        return self.gram if features.all() else self.gram[np.ix_(features, features)]

    @cached_property
    def dead(self) -> np.ndarray:
        """Features that are zero on every sample, (d,) bool."""
        if self.has_gram:
            return np.asarray(np.diag(self.gram) == 0.0)
        counted = slice(None) if self.root_weight is None else self.root_weight > 0
        return ~np.any(self._w[:, counted], axis=1)

    @cached_property
    def squares(self) -> np.ndarray:
        """||W_j||^2 of every feature, (d,)."""
        if self.has_gram:
            return np.array(np.diag(self.gram))
        total = np.zeros(self.d)
        for _, tile in self.tiles():
            total += np.einsum("ij,ij->i", tile, tile)
        return total

    def dense(self, features: np.ndarray) -> np.ndarray:
        """The rows ``features`` (indices or mask) of the weighted W as one float64 array."""
        return self.weighted(self._w[features])


@dataclass(frozen=True)
class RowSet:
    """Rows that share a design, an objective, the set S and the bounds of their coefficients.

    Attributes
    ----------
    design : W (d, m)
    targets : (r, m), rows of Z or Y as stored; :meth:`target` gives them with their weights
    objective : loss weight, penalty, kappa
    constrained : (d,) bool, the set S
    allowed : (r, d) bool, the features each row may use, or None for all. What only some rows may use must lie in
        S with a kappa, or have a penalty with a slope: the other features are eliminated for all rows at once
    lower, upper : (d,), bounds of each coefficient with lower <= 0 <= upper, or None for none
    """

    design: Design
    targets: np.ndarray
    objective: Objective
    constrained: np.ndarray
    allowed: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows, d = self.targets.shape[0], self.design.d
        if self.targets.ndim != 2 or self.targets.shape[1] != self.design.m:
            raise ValueError(f"targets must be (rows, {self.design.m}), got {self.targets.shape}")
        if self.constrained.shape != (d,):
            raise ValueError("constrained must be (d,)")
        if not self.objective.loss_weight > 0:
            raise ValueError(f"loss_weight must be > 0, got {self.objective.loss_weight!r}")
        for bound in (self.lower, self.upper):
            if bound is not None and (bound.shape != (d,) or np.isnan(bound).any()):
                raise ValueError("lower and upper must be (d,) numbers")
        if (self.lower is not None and (self.lower > 0).any()) or (
            self.upper is not None and (self.upper < 0).any()
        ):
            raise ValueError("every coefficient must be allowed to be 0: lower <= 0 <= upper")
        if self.allowed is not None:
            if self.allowed.shape != (rows, d):
                raise ValueError(f"allowed must be ({rows}, {d}), got {self.allowed.shape}")
            if self.smooth[~self.allowed.all(axis=0)].any():
                raise ValueError("what only some rows may use must lie in S with a kappa, or have a slope")

    @property
    def count(self) -> int:
        return self.targets.shape[0]

    def target(self, samples: slice = slice(None)) -> np.ndarray:
        """The weighted targets at ``samples``, (r, k) float64."""
        return self.design.weighted(self.targets, samples)

    def subset(self, rows: np.ndarray) -> RowSet:
        """The rows ``rows`` (indices or mask) alone; W and what was computed from it are shared."""
        allowed = None if self.allowed is None else self.allowed[rows]
        part = replace(self, targets=self.targets[rows], allowed=allowed)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k == "free_basis"})
        return part

    def with_kappa(self, kappa: float) -> RowSet:
        """The same rows with another kappa; what was computed from them is shared."""
        other = replace(self, objective=replace(self.objective, kappa=kappa))
        if self.objective.kappa is not None:
            other.__dict__.update(
                {k: v for k, v in self.__dict__.items() if k in ("free_basis", "target_norms")}
            )
        return other

    @property
    def bounded(self) -> np.ndarray:
        """S where kappa applies, the empty set where there is none; (d,) bool."""
        return self.constrained if self.objective.kappa is not None else np.zeros(self.design.d, dtype=bool)

    @property
    def limited(self) -> np.ndarray:
        """Features whose coefficient has a finite bound, (d,) bool."""
        limited = np.zeros(self.design.d, dtype=bool)
        if self.lower is not None:
            limited |= np.isfinite(self.lower)
        if self.upper is not None:
            limited |= np.isfinite(self.upper)
        return limited

    @property
    def smooth(self) -> np.ndarray:
        """Features with nothing that makes a zero: no slope, not in S, no bounds; (d,) bool."""
        return ~self.bounded & ~self.limited & (self.objective.penalty.slope == 0.0)

    @property
    def penalty_free(self) -> np.ndarray:
        """Features that neither the penalty, nor kappa, nor bounds touch, (d,) bool."""
        return ~self.bounded & ~self.limited & self.objective.penalty.free

    @cached_property
    def target_norms(self) -> np.ndarray:
        """||z||^2 per row, (r,)."""
        one = (self.design.weighted(self.targets[i : i + 1]) for i in range(self.count))
        return np.array([np.sum(np.square(row)) for row in one])

    def reach(self, direction: np.ndarray) -> np.ndarray:
        """How far each coefficient may go in the direction of the sign of ``direction`` (r, d): (r, d), >= 0."""
        down = np.full(self.design.d, np.inf) if self.lower is None else -self.lower
        up = np.full(self.design.d, np.inf) if self.upper is None else self.upper
        return np.where(direction > 0, up, down)

    def correlation(self) -> np.ndarray:
        """W z for every row: (d, r) float64."""
        total = np.zeros((self.design.d, self.count))
        for samples, tile in self.design.tiles():
            total += tile @ self.target(samples).T
        return total

    @cached_property
    def free_basis(self) -> RowSpace:
        """The row space of the penalty-free features; computed once for all rows."""
        return self.row_space(self.penalty_free)

    def row_space(self, features: np.ndarray, ridge: float = 0.0) -> RowSpace:
        """The row space of ``features`` (d,) bool, from the Gram matrix where that is known and accurate enough."""
        return row_space(self.design.dense(features), ridge, self.design.known_gram(features))


def outputs(w: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """``w`` (r, d) times ``tile`` (d, k), by the non-zeros of ``w`` where they are few: (r, k)."""
    if np.count_nonzero(w) * _SPARSE < w.size:
        return np.asarray(sparse.csr_array(w) @ tile)
    return w @ tile


def primal_values(rows: RowSet, w: np.ndarray, residual_norms: np.ndarray) -> np.ndarray:
    """loss_weight ||r||^2 + sum_j pen(w_j) per row; ``w`` (r, d), ``residual_norms`` (r,) = ||z - W^T w||^2."""
    return rows.objective.loss_weight * residual_norms + rows.objective.penalty.value(w).sum(axis=1)
