"""Linear operators between blocks: what a layer does to what feeds it.

Each acts on rows: ``apply`` maps (k, in_size) to (k, out_size), ``adjoint`` maps gradients back, ``matrix`` is the
explicit (out_size, in_size) form that becomes a piece of A, B, C or D. A convolution would be one more class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp


class LinearOperator(Protocol):
    """What the graph asks of a linear operator."""

    @property
    def in_size(self) -> int: ...

    @property
    def out_size(self) -> int: ...

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


@dataclass(frozen=True, eq=False)
class Dense:
    """A full weight matrix, ``weight`` of shape (out_size, in_size), float64."""

    weight: np.ndarray

    @property
    def in_size(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_size(self) -> int:
        return int(self.weight.shape[0])

    def apply(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return g @ self.weight

    def matrix(self) -> sp.csr_array:
        return sp.csr_array(self.weight)

    def scaled(self, factor: np.ndarray) -> Dense:
        return Dense(factor[:, None] * self.weight)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Elementwise multiplication by ``factor`` of shape (size,); all ones is the identity."""

    factor: np.ndarray

    @property
    def in_size(self) -> int:
        return int(self.factor.size)

    @property
    def out_size(self) -> int:
        return int(self.factor.size)

    @property
    def is_identity(self) -> bool:
        """Whether every factor is exactly 1."""
        return bool(np.all(self.factor == 1.0))

    def apply(self, x: np.ndarray) -> np.ndarray:
        return x * self.factor

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return g * self.factor

    def matrix(self) -> sp.csr_array:
        return sp.csr_array(sp.diags_array(self.factor))

    def scaled(self, factor: np.ndarray) -> Diagonal:
        return Diagonal(factor * self.factor)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse matrix of shape (out_size, in_size), float64: the pieces of an implicit model."""

    weight: sp.csr_array

    @property
    def in_size(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_size(self) -> int:
        return int(self.weight.shape[0])

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((self.weight @ x.T).T)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return np.asarray((self.weight.T @ g.T).T)

    def matrix(self) -> sp.csr_array:
        return self.weight

    def scaled(self, factor: np.ndarray) -> Sparse:
        return Sparse(sp.csr_array(sp.diags_array(factor) @ self.weight))


def identity(size: int) -> Diagonal:
    """The identity on ``size`` values."""
    return Diagonal(np.ones(size))
