"""What the graph asks of a linear operator."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.sparse as sp

Shape = tuple[int, ...]


class LinearOperator(Protocol):
    """A linear map between flattened samples; ``in_shape`` and ``out_shape`` are what they were before flattening."""

    @property
    def in_shape(self) -> Shape: ...

    @property
    def out_shape(self) -> Shape: ...

    @property
    def in_size(self) -> int: ...

    @property
    def out_size(self) -> int: ...

    @property
    def entries(self) -> int:
        """At least the non-zeros of the matrix, known without forming it."""
        ...

    @property
    def row_entries(self) -> int:
        """At least the non-zeros of any row."""
        ...

    @property
    def column_entries(self) -> int:
        """At least the non-zeros of any column."""
        ...

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(k, in_size) to (k, out_size)."""
        ...

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        """(k, out_size) to (k, in_size), by the transposed matrix."""
        ...

    def matrix(self) -> sp.csr_array:
        """The (out_size, in_size) matrix, float64."""
        ...

    def scaled(self, factor: np.ndarray) -> LinearOperator:
        """diag(factor) times this operator, ``factor`` of shape (out_size,)."""
        ...
