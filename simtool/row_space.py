"""The row space of a set of features F: projections onto its complement, and least-squares coefficients.

Features that nothing penalises are projected out of a problem; features under a ridge alone are shrunk out of it.
Two ways with one interface: by the Gram matrix, which costs nothing where it is there, and by a singular value
decomposition, which copes with features that depend on each other.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.linalg

# Two projections leave (eps / rcond)^2 of a vector behind: below this the decomposition takes over.
_LEAST_RCOND = 1e-9


class RowSpace(Protocol):
    """Vectors are rows of arrays (r, m)."""

    def restricted(self, members: np.ndarray) -> RowSpace:
        """This space seen by some of its features, (|F|,) bool; the others must be zero on every sample."""

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """argmin over w of ||v - W_F^T w||^2 + ridge ||w||^2 (least norm) per row of ``vectors``: (r, |F|)."""

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` minus their part in the row space."""

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` applied to I - W_F^T (W_F W_F^T + ridge I)^-1 W_F."""


def row_space(w: np.ndarray, ridge: float = 0.0, gram: np.ndarray | None = None) -> RowSpace:
    """The row space of ``w`` (|F|, m), float64; ``gram`` is w w^T where it is known.

    The Gram matrix is used where it is well conditioned once the features are brought to one unit.
    """
    features, samples = w.shape
    if features and (samples >= features or ridge > 0.0):
        space = _by_gram(w, ridge, w @ w.T if gram is None else gram)
        if space is not None:
            return space
    return SingularSpace(w, ridge)


def _by_gram(w: np.ndarray, ridge: float, gram: np.ndarray) -> GramSpace | None:
    alive = np.diag(gram) > 0
    square = np.diag(gram)[alive] + ridge
    scale = 1.0 / np.sqrt(square)
    if not alive.any() or not np.isfinite(scale).all():
        return None
    equilibrated = gram[np.ix_(alive, alive)] * scale[:, None] * scale
    equilibrated[np.diag_indices(scale.size)] = 1.0
    norm = np.abs(equilibrated).sum(axis=0).max()
    factor, failed = scipy.linalg.lapack.dpotrf(equilibrated, lower=1, overwrite_a=1)
    if failed:
        return None
    rcond, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    if not rcond >= _LEAST_RCOND:
        return None
    return GramSpace(w, ridge, alive, scale, factor)


class GramSpace:
    """By the Cholesky factor of diag(scale) (W_F W_F^T + ridge I) diag(scale), over the features that are not dead."""

    def __init__(
        self, w: np.ndarray, ridge: float, alive: np.ndarray, scale: np.ndarray, factor: np.ndarray
    ) -> None:
        self._w, self._ridge, self._alive = w, ridge, alive
        self._scale, self._factor = scale, factor

    def restricted(self, members: np.ndarray) -> RowSpace:
        """See :class:`RowSpace`."""
        return GramSpace(self._w[members], self._ridge, self._alive[members], self._scale, self._factor)

    def _solve(self, correlation: np.ndarray) -> np.ndarray:
        """(W_F W_F^T + ridge I)^-1 applied to the rows of ``correlation`` (r, |F|)."""
        out = np.zeros_like(correlation)
        scaled = (correlation[:, self._alive] * self._scale).T
        solved, _ = scipy.linalg.lapack.dpotrs(self._factor, scaled, lower=1)
        out[:, self._alive] = solved.T * self._scale
        return out

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; one step of refinement on the residual takes off what the Gram matrix squares."""
        w = self._solve(vectors @ self._w.T)
        left_over = (vectors - w @ self._w) @ self._w.T - self._ridge * w
        return w + self._solve(left_over)

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; without a ridge only."""
        for _ in range(2):
            vectors = vectors - self._solve(vectors @ self._w.T) @ self._w
        return vectors

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        if self._ridge == 0.0:
            return self.project_out(vectors)
        return vectors - self.coefficients(vectors) @ self._w


class SingularSpace:
    """Thin singular value decomposition W_F = diag(norms) left diag(singular) right.

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
        # Reducing to a triangle first costs one pass over the longer side; the decomposition is then small.
        if samples > features:
            q, r = scipy.linalg.qr(w.T, mode="economic", check_finite=False)
            left, singular, inner = scipy.linalg.svd(r.T, full_matrices=False, check_finite=False)
            right = inner @ q.T
        else:
            q, r = scipy.linalg.qr(w, mode="economic", check_finite=False)
            inner, singular, right = scipy.linalg.svd(r, full_matrices=False, check_finite=False)
            left = q @ inner
        keep = singular > singular[0] * max(features, samples) * np.finfo(float).eps
        self.left, self.singular, self.right = left[:, keep], singular[keep], right[keep]

    def restricted(self, members: np.ndarray) -> RowSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(SingularSpace)
        view.ridge, view.norms, view.left = self.ridge, self.norms[members], self.left[members]
        view.singular, view.right = self.singular, self.right
        return view

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; twice, as once leaves rounding behind."""
        for _ in range(2):
            vectors = vectors - (vectors @ self.right.T) @ self.right
        return vectors

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        weights = self.singular / (self.singular**2 + self.ridge)
        return (((vectors @ self.right.T) * weights) @ self.left.T) / self.norms

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        if self.ridge == 0.0:
            return self.project_out(vectors)
        weights = self.singular**2 / (self.singular**2 + self.ridge)
        return vectors - ((vectors @ self.right.T) * weights) @ self.right
