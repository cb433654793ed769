"""Rows of an implicit model as convex problems that share one design matrix.

    minimise over w in R^d   loss_weight ||z - W^T w||^2 + sum_j pen(w_j)   subject to   ||w_S||_1 <= kappa

W (d features, m samples) holds the rows of [X; U] that the structure allows, z is a row of Z or of Y, S is the
set that kappa bounds. Sums over samples run in fixed tiles, in float64 whatever the states are stored in, so a
result never depends on how much memory or how many processes a machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from simtool.penalty import Penalty

SAMPLE_TILE = 4096


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
    """The design matrix W (d, m) that many rows share; read in tiles of samples, never modified."""

    def __init__(self, w: np.ndarray, gram: np.ndarray | None = None) -> None:
        self._w = w
        self.d, self.m = w.shape
        if gram is not None:
            self.__dict__["gram"] = gram

    def tiles(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Sample ranges and W restricted to them, as float64 (d, tile)."""
        for start in range(0, self.m, SAMPLE_TILE):
            samples = slice(start, min(start + SAMPLE_TILE, self.m))
            yield samples, np.ascontiguousarray(self._w[:, samples], dtype=np.float64)

    @cached_property
    def gram(self) -> np.ndarray:
        """G = W W^T, (d, d) float64."""
        total = np.zeros((self.d, self.d))
        for _, tile in self.tiles():
            total += tile @ tile.T
        return total

    @cached_property
    def dead(self) -> np.ndarray:
        """Features that are zero on every sample, (d,) bool."""
        if "gram" in self.__dict__:
            return np.asarray(np.diag(self.gram) == 0.0)
        return np.array([not np.any(self._w[j]) for j in range(self.d)], dtype=bool)

    def correlate(self, targets: np.ndarray) -> np.ndarray:
        """W targets^T for targets (r, m): (d, r) float64."""
        total = np.zeros((self.d, targets.shape[0]))
        for samples, tile in self.tiles():
            total += tile @ np.asarray(targets[:, samples], dtype=np.float64).T
        return total

    def dense(self, features: np.ndarray) -> np.ndarray:
        """The rows ``features`` (indices or mask) of W as one float64 array."""
        return np.asarray(self._w[features], dtype=np.float64)


@dataclass(frozen=True)
class RowSet:
    """Rows that share a design, an objective and the set S.

    Attributes
    ----------
    design : W (d, m)
    targets : (r, m), rows of Z or Y
    objective : loss weight, penalty, kappa
    constrained : (d,) bool, the set S
    excluded : (r,) int, the one feature each row may not use (its own state), or -1
    """

    design: Design
    targets: np.ndarray
    objective: Objective
    constrained: np.ndarray
    excluded: np.ndarray

    def __post_init__(self) -> None:
        rows = self.targets.shape[0]
        if self.targets.ndim != 2 or self.targets.shape[1] != self.design.m:
            raise ValueError(f"targets must be (rows, {self.design.m}), got {self.targets.shape}")
        if self.constrained.shape != (self.design.d,) or self.excluded.shape != (rows,):
            raise ValueError("constrained must be (d,) and excluded (rows,)")
        own = self.excluded[self.excluded >= 0]
        if not (self.objective.penalty.slope > 0 or self.bounded[own].all()):
            raise ValueError("an excluded feature must lie in S with a kappa, or have a penalty with a slope")
        if not self.objective.loss_weight > 0:
            raise ValueError(f"loss_weight must be > 0, got {self.objective.loss_weight!r}")

    @property
    def count(self) -> int:
        return self.targets.shape[0]

    @property
    def bounded(self) -> np.ndarray:
        """S where kappa applies, the empty set where there is none; (d,) bool."""
        return self.constrained if self.objective.kappa is not None else np.zeros(self.design.d, dtype=bool)

    @property
    def penalty_free(self) -> np.ndarray:
        """Features that neither the penalty nor kappa touches, (d,) bool."""
        return ~self.bounded & self.objective.penalty.free

    @cached_property
    def target_norms(self) -> np.ndarray:
        """||z||^2 per row, (r,)."""
        return np.array([np.sum(np.square(row, dtype=np.float64)) for row in self.targets])

    @cached_property
    def free_basis(self) -> RowSpace:
        """The row space of the penalty-free features; computed once for all rows."""
        return RowSpace(self.design.dense(self.penalty_free))


class RowSpace:
    """Thin singular value decomposition W_F = diag(norms) left diag(singular) right of a feature subset F.

    ``left`` (|F|, k), ``singular`` (k,), ``right`` (k, m). Without a ridge the features are brought to unit norm
    first, so that a feature in small units counts as much as one in large units; a ridge fixes the units, and
    ``norms`` is then 1. Singular values below the rounding level of the largest are dropped: dependent features
    share their coefficient (least norm).
    """

    def __init__(self, w: np.ndarray, ridge: float = 0.0) -> None:
        features, samples = w.shape
        self.ridge = ridge
        self.norms = np.ones(features)
        if ridge == 0.0:
            norms = np.sqrt(np.einsum("ij,ij->i", w, w))
            self.norms = np.where(norms > 0, norms, 1.0)
            w = w / self.norms[:, None]
        if features == 0 or samples == 0 or not np.any(w):
            self.left, self.singular = np.zeros((features, 0)), np.zeros(0)
            self.right = np.zeros((0, samples))
            return
        # Reducing to a triangle first costs one pass over the samples; the decomposition is then d x d.
        if samples > features:
            q, r = scipy.linalg.qr(w.T, mode="economic", check_finite=False)
            left, singular, inner = scipy.linalg.svd(r.T, full_matrices=False, check_finite=False)
            right = inner @ q.T
        else:
            left, singular, right = scipy.linalg.svd(w, full_matrices=False, check_finite=False)
        keep = singular > singular[0] * max(features, samples) * np.finfo(float).eps
        self.left, self.singular, self.right = left[:, keep], singular[keep], right[keep]

    def restricted(self, members: np.ndarray) -> RowSpace:
        """This space seen by some of its features; the others must be zero on every sample."""
        view = object.__new__(RowSpace)
        view.ridge, view.norms, view.left = self.ridge, self.norms[members], self.left[members]
        view.singular, view.right = self.singular, self.right
        return view

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` (r, m) minus their part in the row space; twice, as once leaves rounding behind."""
        for _ in range(2):
            vectors = vectors - (vectors @ self.right.T) @ self.right
        return vectors

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """argmin over w of ||v - W_F^T w||^2 + ridge ||w||^2 (least norm) per row of ``vectors``: (r, |F|)."""
        weights = self.singular / (self.singular**2 + self.ridge)
        return (((vectors @ self.right.T) * weights) @ self.left.T) / self.norms

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` (r, m) applied to I - W_F^T (W_F W_F^T + ridge I)^-1 W_F."""
        if self.ridge == 0.0:
            return self.project_out(vectors)
        weights = self.singular**2 / (self.singular**2 + self.ridge)
        return vectors - ((vectors @ self.right.T) * weights) @ self.right


def primal_values(rows: RowSet, w: np.ndarray, residual_norms: np.ndarray) -> np.ndarray:
    """loss_weight ||r||^2 + sum_j pen(w_j) per row; ``w`` (r, d), ``residual_norms`` (r,) = ||z - W^T w||^2."""
    return rows.objective.loss_weight * residual_norms + rows.objective.penalty.value(w).sum(axis=1)
