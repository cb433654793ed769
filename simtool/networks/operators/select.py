"""Index maps: permutations, slices, concatenations, zero padding, repetition, all without parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import Shape


@dataclass(frozen=True, eq=False)
class Gather:
    """Output i is ``factor[i] * input[index[i]]``, and 0 where the index is -1; ``factor`` None stands for ones."""

    index: np.ndarray
    in_shape: Shape
    out_shape: Shape
    factor: np.ndarray | None = None

    @property
    def in_size(self) -> int:
        return prod(self.in_shape)

    @property
    def out_size(self) -> int:
        return prod(self.out_shape)

    @property
    def entries(self) -> int:
        return int(np.count_nonzero(self.index >= 0))

    @property
    def row_entries(self) -> int:
        return 1

    @property
    def column_entries(self) -> int:
        return int(np.bincount(self.index[self.index >= 0], minlength=1).max())

    def apply(self, x: np.ndarray) -> np.ndarray:
        taken = x[:, self.index]
        if self.factor is not None:
            taken = taken * self.factor
        if np.any(self.index < 0):
            taken[:, self.index < 0] = 0.0
        return taken

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return np.asarray((self.matrix().T @ g.T).T)

    def matrix(self) -> sp.csr_array:
        used = self.index >= 0
        data = np.ones(self.out_size) if self.factor is None else self.factor
        indptr = np.concatenate([[0], np.cumsum(used)])
        return sp.csr_array((data[used], self.index[used], indptr), shape=(self.out_size, self.in_size))

    def scaled(self, factor: np.ndarray) -> Gather:
        if np.all(factor == 1.0):
            return self
        whole = factor if self.factor is None else factor * self.factor
        return Gather(self.index, self.in_shape, self.out_shape, whole)

    def of(self, inner: Gather) -> Gather:
        """This after ``inner``, as one index map."""
        index = np.where(self.index >= 0, inner.index[self.index], -1)
        factor = self.factor
        if inner.factor is not None:
            taken = inner.factor[self.index]
            factor = taken if factor is None else factor * taken
        return Gather(index, inner.in_shape, self.out_shape, factor)

    def input_scaled(self, factor: np.ndarray) -> Gather:
        """This after diag(factor)."""
        taken = factor[self.index]
        whole = taken if self.factor is None else taken * self.factor
        return Gather(self.index, self.in_shape, self.out_shape, whole)

    def joined(self, other: Gather) -> Gather | None:
        """The sum of both, None where both give a value to the same output."""
        if np.any((self.index >= 0) & (other.index >= 0)):
            return None
        mine = self.index >= 0
        factor = None
        if self.factor is not None or other.factor is not None:
            ones = np.ones(self.out_size)
            factors = [ones if f is None else f for f in (self.factor, other.factor)]
            factor = np.where(mine, factors[0], factors[1])
        return Gather(np.where(mine, self.index, other.index), self.in_shape, self.out_shape, factor)
