"""Row spaces of features that depend on each other: a few in memory, or many that do not fit."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from simtool.row_space.base import RowSpace
from simtool.row_space.gram import GramSpace
from simtool.row_space.singular import SingularSpace
from simtool.row_space.vectors import Features, Held, LeftOver, Vectors, as_vectors

_EPS = float(np.finfo(float).eps)
# Of what a feature and the combination of others that it is close to can leave by rounding, in units of both.
_ROUNDING = 8.0 * _EPS


def rounding_left(
    space: GramSpace, features: Vectors | np.ndarray, norms: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """The norm that rounding alone can leave of ``features`` (r, m) once ``space`` is projected out, (r,).

    Above it what is left is a direction of its own, however small: hiding it from the dual point would make the point
    infeasible. ``norms`` (|F|,) are those of the features of ``space``, ``own`` (r,) those of ``features``.
    """
    return np.asarray(_ROUNDING * (np.abs(space.coefficients(features)) @ norms + own))


class ApartSpace(RowSpace):
    """A space on the Gram matrix and, orthogonal to it, what is left of the few features ``apart`` (indices)."""

    def __init__(self, space: GramSpace, w: Held, apart: np.ndarray, norms: np.ndarray) -> None:
        self._space, self._apart = space, apart
        self._features = w.chosen(apart)
        features = self._features.dense()
        left_over = np.array(space.project_out(features))
        after = np.sqrt(np.einsum("ij,ij->i", left_over, left_over))
        left_over[after <= rounding_left(space, features, norms, norms[apart])] = 0.0
        self._rest = SingularSpace(left_over)

    def restricted(self, members: np.ndarray) -> RowSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(ApartSpace)
        view.__dict__.update(self.__dict__)
        view._space = self._space.restricted(members)
        view._apart = (np.cumsum(members) - 1)[self._apart]
        return view

    def coefficients(self, vectors: Vectors | np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; a solution of least squares, not the one of least norm."""
        vectors = as_vectors(vectors)
        rest = self._rest.coefficients(self._space.left_over(vectors))
        out = self._space.coefficients(LeftOver(vectors, self._features, [rest]))
        out[:, self._apart] = rest
        return out

    def left_over(self, vectors: Vectors | np.ndarray) -> Vectors:
        """See :class:`RowSpace`; there is no ridge here."""
        return self._space.left_over(self._rest.left_over(self._space.left_over(vectors)))


class TriangularSpace(GramSpace):
    """By the singular values of the triangle that a QR factorisation leaves of W_F, one tile of samples after another.

    For features too many to hold and too dependent for their Gram matrix, whose singular values are squares. As in
    :class:`SingularSpace`, features have unit norm without a ridge, and small singular values are dropped.
    """

    def __init__(self, w: Features, ridge: float) -> None:
        features, samples = w.shape
        squares = np.zeros(features)
        for _, tile in w.tiles(slice(0, samples)):
            squares += np.einsum("ij,ij->i", tile, tile)
        self._features, self._kept = features, np.flatnonzero(squares)
        self._w, self._order, self._ridge = w.chosen(self._kept), np.arange(self._kept.size), ridge
        self._scale = 1.0 / np.sqrt(squares[self._kept])
        self._weight = self._scale if ridge == 0.0 else np.ones_like(self._scale)
        triangle = np.zeros((0, self._kept.size))
        for _, tile in self._w.tiles(slice(0, samples)):
            stacked = np.concatenate([triangle, (tile * self._weight[:, None]).T])
            (triangle,) = scipy.linalg.qr(stacked, mode="r", overwrite_a=True, check_finite=False)
            triangle = triangle[: self._kept.size]
        left, singular, _ = scipy.linalg.svd(triangle.T, overwrite_a=True, check_finite=False)
        keep = singular > singular[0] * samples * _EPS
        self._left, self._squares = left[:, keep], singular[keep] ** 2

    def _solve(self, correlation: np.ndarray) -> np.ndarray:
        inner = (correlation * self._weight) @ self._left / (self._squares + self._ridge)
        return np.asarray(inner @ self._left.T * self._weight)

    def schur(self, gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`; nothing is sure here."""
        return RowSpace.schur(self, gram, cross)
