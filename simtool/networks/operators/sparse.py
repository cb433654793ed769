"""Operators given by few numbers: a diagonal, and the sparse pieces of an implicit model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import Shape


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Elementwise multiplication by ``factor`` of shape (size,); all ones is the identity."""

    factor: np.ndarray

    @property
    def in_shape(self) -> Shape:
        return (self.in_size,)

    @property
    def out_shape(self) -> Shape:
        return (self.out_size,)

    @property
    def in_size(self) -> int:
        return int(self.factor.size)

    @property
    def out_size(self) -> int:
        return int(self.factor.size)

    @property
    def entries(self) -> int:
        return self.in_size

    @property
    def row_entries(self) -> int:
        return 1

    @property
    def column_entries(self) -> int:
        return 1

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
    def in_shape(self) -> Shape:
        return (self.in_size,)

    @property
    def out_shape(self) -> Shape:
        return (self.out_size,)

    @property
    def in_size(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_size(self) -> int:
        return int(self.weight.shape[0])

    @property
    def entries(self) -> int:
        return int(self.weight.nnz)

    @property
    def row_entries(self) -> int:
        return int(np.diff(self.weight.indptr).max(initial=0))

    @property
    def column_entries(self) -> int:
        return int(np.bincount(self.weight.indices, minlength=1).max())

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((self.weight @ x.T).T)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return np.asarray((self.weight.T @ g.T).T)

    def matrix(self) -> sp.csr_array:
        return self.weight

    def scaled(self, factor: np.ndarray) -> Sparse:
        weight = sp.csr_array(sp.diags_array(factor) @ self.weight)
        weight.sort_indices()
        return Sparse(weight)


def identity(size: int) -> Diagonal:
    """The identity on ``size`` values."""
    return Diagonal(np.ones(size))
