"""A row space by singular values: copes with everything, and is much slower than the Gram matrix."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from simtool.row_space.base import RowSpace
from simtool.row_space.vectors import Held, LeftOver, Vectors, as_vectors


class SingularSpace(RowSpace):
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

    @classmethod
    def of_nothing(cls, features: int, samples: int) -> SingularSpace:
        """The space of ``features`` features that are zero on all of ``samples`` samples."""
        space = object.__new__(cls)
        space.ridge, space.norms = 0.0, np.ones(features)
        space.left, space.singular = np.zeros((features, 0)), np.zeros(0)
        space.right = np.zeros((0, samples))
        return space

    def restricted(self, members: np.ndarray) -> RowSpace:
        """See :class:`RowSpace`."""
        view = object.__new__(SingularSpace)
        view.ridge, view.norms, view.left = self.ridge, self.norms[members], self.left[members]
        view.singular, view.right = self.singular, self.right
        return view

    def coefficients(self, vectors: Vectors | np.ndarray) -> np.ndarray:
        """See :class:`RowSpace`."""
        weights = self.singular / (self.singular**2 + self.ridge)
        products, _ = LeftOver(as_vectors(vectors), Held(self.right)).products()
        return ((products * weights) @ self.left.T) / self.norms

    def left_over(self, vectors: Vectors | np.ndarray) -> Vectors:
        """See :class:`RowSpace`; a projection is done twice, as once leaves rounding behind."""
        left = LeftOver(as_vectors(vectors), Held(self.right))
        weights = self.singular**2 / (self.singular**2 + self.ridge) if self.ridge > 0.0 else 1.0
        for _ in range(1 if self.ridge > 0.0 else 2):
            left.take_off(left.products(settle=True)[0] * weights)
        return left
