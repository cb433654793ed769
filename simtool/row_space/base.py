"""What every row space can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from simtool.row_space.vectors import Vectors


class RowSpace(ABC):
    """The row space of features F, under a ridge or not."""

    @abstractmethod
    def restricted(self, members: np.ndarray) -> RowSpace:
        """This space seen by some of its features, (|F|,) bool; the others must be zero on every sample."""

    @abstractmethod
    def coefficients(self, vectors: Vectors | np.ndarray) -> np.ndarray:
        """argmin over w of ||v - W_F^T w||^2 + ridge ||w||^2 per vector: (r, |F|)."""

    @abstractmethod
    def left_over(self, vectors: Vectors | np.ndarray) -> Vectors:
        """``vectors`` applied to R = I - W_F^T (W_F W_F^T + ridge I)^-1 W_F; without a ridge, the complement's projection."""

    def schur(self, gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """Take V W_F^T (W_F W_F^T + ridge I)^-1 W_F V^T off ``gram`` = V V^T in place; ``cross`` is V W_F^T (r, |F|).

        What is then V R V^T is exact to rounding beside V V^T only: returns (r,) bool, whose rows and columns are
        known nearly as well beside themselves.
        """
        return np.zeros(gram.shape[0], dtype=bool)

    def project_out(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` (r, m) in memory minus their part in the row space; without a ridge only."""
        return self.shrink_out(vectors)

    def shrink_out(self, vectors: np.ndarray) -> np.ndarray:
        """:meth:`left_over` of ``vectors`` (r, m) in memory."""
        return self.left_over(vectors).at(slice(0, vectors.shape[1]))
