"""A row space by the Gram matrix of its features."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from simtool.row_space.base import RowSpace
from simtool.row_space.vectors import Features, LeftOver, Vectors, as_vectors

_REPETITIONS = 8
_CONVERGED = 4.0 * float(np.finfo(float).eps)
# What is left of a square once others are eliminated is taken from the Gram matrix alone to this relative error.
_SURE = 1e-9
_CHUNK = 512


class GramSpace(RowSpace):
    """By the Cholesky factor of diag(scale) (W_K W_K^T + ridge I) diag(scale), K the features ``kept`` (indices).

    The other features of F have the coefficient 0.
    """

    def __init__(
        self, w: Features, ridge: float, kept: np.ndarray, scale: np.ndarray, factor: np.ndarray
    ) -> None:
        self._features, self._kept = w.shape[0], kept
        # Rows of W in file order read fastest; the factor has its own order.
        self._w = w.chosen(np.sort(kept))
        self._order = np.argsort(np.argsort(kept))
        self._ridge, self._scale, self._factor = ridge, scale, factor

    def restricted(self, members: np.ndarray) -> GramSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(type(self))
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

    def _negligible(self, gradient: np.ndarray, sizes: np.ndarray) -> bool:
        """Whether ``gradient`` (r, |K|) is rounding beside what the norms ``sizes`` (r,) of the vectors allow."""
        units = np.empty_like(self._scale)
        units[self._order] = self._scale
        return bool(np.all(np.abs(gradient) * units <= _CONVERGED * sizes[:, None]))

    def _solution(self, vectors: Vectors | np.ndarray) -> tuple[np.ndarray, LeftOver]:
        """Coefficients (r, |K|) in file order, and what they leave; refined, as the Gram matrix squares the condition."""
        left = LeftOver(as_vectors(vectors), self._w)
        products, sizes = left.products()
        w = self._solve(products)
        for _ in range(_REPETITIONS):
            left.replace(w)
            products, _ = left.products()
            gradient = products - self._ridge * w
            if self._negligible(gradient, sizes):
                break
            w = w + self._solve(gradient)
        left.replace(w)
        return w, left

    def coefficients(self, vectors: Vectors | np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        w, left = self._solution(vectors)
        out = np.zeros((left.count, self._features))
        out[:, np.sort(self._kept)] = w
        return out

    def left_over(self, vectors: Vectors | np.ndarray) -> Vectors:
        """See :class:`RowSpace`."""
        if self._ridge > 0.0:
            return self._solution(vectors)[1]
        left = LeftOver(as_vectors(vectors), self._w)
        gradient, sizes = left.products()
        for _ in range(_REPETITIONS):
            if self._negligible(gradient, sizes):
                break
            left.take_off(self._solve(gradient))
            gradient, _ = left.products(settle=True)
        return left

    def schur(self, gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        before = np.diag(gram).copy()
        scaled = (cross[:, np.sort(self._kept)][:, self._order] * self._scale).T
        half = scipy.linalg.solve_triangular(self._factor, scaled, lower=True, overwrite_b=True)
        whole = scipy.linalg.solve_triangular(self._factor, half, lower=True, trans="T")
        # The factor's rounding is a relative change of every feature's square, which the coefficients magnify.
        error = _CONVERGED * (before + np.einsum("ij,ij->j", whole, whole))
        del whole
        for start in range(0, gram.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            gram[rows, start:] -= half[:, rows].T @ half[:, start:]
            gram[rows, rows] = (gram[rows, rows] + gram[rows, rows].T) / 2.0
            gram[start:, rows] = gram[rows, start:].T
        return np.asarray(np.diag(gram) * _SURE >= error)
