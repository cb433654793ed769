"""The row space of a set of features F: projections onto its complement, and least-squares coefficients.

Features that nothing penalises are projected out of a problem; features under a ridge alone are shrunk out of it.
Three ways with one interface: by the Gram matrix, which is a matter of two products, each repeated until rounding is all
that is left; the same with a few features that depend on the others set apart; and by a singular value
decomposition, which copes with everything and is much slower.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.linalg

# Features of unit norm whose square beside the others falls below this are set apart.
_APART = 1e-10
# Each repetition leaves eps / rcond of the error: below this the Gram matrix does not converge.
_LEAST_RCOND = 1e-13
_REPETITIONS = 8
_CONVERGED = 4.0 * float(np.finfo(float).eps)
# A feature set apart whose norm falls by this factor is nothing but a combination of the others.
_DEPENDENT = 1e-11


class RowSpace(Protocol):
    """Vectors are rows of arrays (r, m)."""

    def restricted(self, members: np.ndarray) -> RowSpace:
        """This space seen by some of its features, (|F|,) bool; the others must be zero on every sample."""

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """argmin over w of ||v - W_F^T w||^2 + ridge ||w||^2 per row of ``vectors``: (r, |F|)."""

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` minus their part in the row space."""

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` applied to I - W_F^T (W_F W_F^T + ridge I)^-1 W_F."""


def row_space(w: np.ndarray, ridge: float = 0.0, gram: np.ndarray | None = None) -> RowSpace:
    """The row space of ``w`` (|F|, m), float64; ``gram`` is w w^T where it is known."""
    features, samples = w.shape
    if features and (samples >= features or ridge > 0.0):
        space = _by_gram(w, ridge, w @ w.T if gram is None else gram)
        if space is not None:
            return space
    return SingularSpace(w, ridge)


def _by_gram(w: np.ndarray, ridge: float, gram: np.ndarray) -> RowSpace | None:
    """A space on the Gram matrix; None where too many features depend on each other."""
    alive = np.flatnonzero(np.diag(gram) > 0)
    scale = 1.0 / np.sqrt(np.diag(gram)[alive] + ridge)
    if not alive.size or not np.isfinite(scale).all():
        return None
    equilibrated = gram[np.ix_(alive, alive)] * scale[:, None] * scale
    equilibrated[np.diag_indices(scale.size)] = 1.0
    factor, order, rank, _ = scipy.linalg.lapack.dpstrf(equilibrated, tol=_APART, lower=1)
    order = order - 1
    kept, apart = order[:rank], order[rank:]
    factor = np.asfortranarray(factor[:rank, :rank])
    norm = np.abs(equilibrated[np.ix_(kept, kept)]).sum(axis=0).max(initial=0.0)
    rcond, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    if not rcond >= _LEAST_RCOND:
        return None
    space = GramSpace(w, ridge, alive[kept], scale[kept], factor)
    if not apart.size:
        return space
    if ridge > 0.0 or apart.size > max(16, rank // 8):
        return None
    return ApartSpace(space, w, alive[apart])


class GramSpace:
    """By the Cholesky factor of diag(scale) (W_K W_K^T + ridge I) diag(scale), K the features ``kept`` (indices).

    The other features of F have the coefficient 0.
    """

    def __init__(
        self, w: np.ndarray, ridge: float, kept: np.ndarray, scale: np.ndarray, factor: np.ndarray
    ) -> None:
        self._features, self._kept = w.shape[0], kept
        self._w = np.ascontiguousarray(w[np.sort(kept)])
        # Rows of W in file order read fastest; the factor has its own order.
        self._order = np.argsort(np.argsort(kept))
        self._ridge, self._scale, self._factor = ridge, scale, factor

    def restricted(self, members: np.ndarray) -> GramSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(GramSpace)
        view.__dict__.update(self.__dict__)
        view._features = int(members.sum())
        view._kept = (np.cumsum(members) - 1)[self._kept]
        return view

    def _solve(self, correlation: np.ndarray) -> np.ndarray:
        """(W_K W_K^T + ridge I)^-1 applied to the rows of ``correlation`` (r, |K|), features in file order."""
        scaled = (correlation[:, self._order] * self._scale).T
        solved, _ = scipy.linalg.lapack.dpotrs(self._factor, scaled, lower=1)
        out = np.empty_like(correlation)
        out[:, self._order] = solved.T * self._scale
        return out

    def _negligible(self, gradient: np.ndarray, vectors: np.ndarray) -> bool:
        """Whether ``gradient`` (r, |K|) is rounding beside what the norms of ``vectors`` allow."""
        sizes = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        scale = np.empty_like(self._scale)
        scale[self._order] = self._scale
        return bool(np.all(np.abs(gradient) * scale <= _CONVERGED * sizes[:, None]))

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; refined on the residual, as the Gram matrix squares the condition."""
        w = self._solve(vectors @ self._w.T)
        for _ in range(_REPETITIONS):
            gradient = (vectors - w @ self._w) @ self._w.T - self._ridge * w
            if self._negligible(gradient, vectors):
                break
            w = w + self._solve(gradient)
        out = np.zeros((vectors.shape[0], self._features))
        out[:, np.sort(self._kept)] = w
        return out

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; without a ridge only."""
        left_over = vectors
        for _ in range(_REPETITIONS):
            gradient = left_over @ self._w.T
            if self._negligible(gradient, vectors):
                break
            left_over = left_over - self._solve(gradient) @ self._w
        return left_over

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        if self._ridge == 0.0:
            return self.project_out(vectors)
        return vectors - self.coefficients(vectors)[:, np.sort(self._kept)] @ self._w


class ApartSpace:
    """A space on the Gram matrix and, orthogonal to it, what is left of the few features ``apart`` (indices)."""

    def __init__(self, space: GramSpace, w: np.ndarray, apart: np.ndarray) -> None:
        self._space, self._apart = space, apart
        self._features = w[apart]
        left_over = space.project_out(self._features)
        before = np.einsum("ij,ij->i", self._features, self._features)
        after = np.einsum("ij,ij->i", left_over, left_over)
        left_over[after <= _DEPENDENT**2 * before] = 0.0
        self._rest = SingularSpace(left_over)

    def restricted(self, members: np.ndarray) -> RowSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(ApartSpace)
        view.__dict__.update(self.__dict__)
        view._space = self._space.restricted(members)
        view._apart = (np.cumsum(members) - 1)[self._apart]
        return view

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; a solution of least squares, not the one of least norm."""
        rest = self._rest.coefficients(self._space.project_out(vectors))
        out = self._space.coefficients(vectors - rest @ self._features)
        out[:, self._apart] = rest
        return out

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        return self._space.project_out(self._rest.project_out(self._space.project_out(vectors)))

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; there is no ridge here."""
        return self.project_out(vectors)


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
