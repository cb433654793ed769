"""Two operators after one another, kept apart: a fixed part before or after a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import LinearOperator, Shape


@dataclass(frozen=True, eq=False)
class Chain:
    """``outer`` of ``inner``. Made by :func:`simtool.networks.operators.compose`, which first joins what can be joined."""

    outer: LinearOperator
    inner: LinearOperator

    @property
    def in_shape(self) -> Shape:
        return self.inner.in_shape

    @property
    def out_shape(self) -> Shape:
        return self.outer.out_shape

    @property
    def in_size(self) -> int:
        return self.inner.in_size

    @property
    def out_size(self) -> int:
        return self.outer.out_size

    @property
    def entries(self) -> int:
        return min(
            self.in_size * self.out_size,
            self.outer.entries * self.inner.row_entries,
            self.outer.column_entries * self.inner.entries,
        )

    @property
    def row_entries(self) -> int:
        return min(self.in_size, self.outer.row_entries * self.inner.row_entries)

    @property
    def column_entries(self) -> int:
        return min(self.out_size, self.outer.column_entries * self.inner.column_entries)

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self.outer.apply(self.inner.apply(x))

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return self.inner.adjoint(self.outer.adjoint(g))

    def matrix(self) -> sp.csr_array:
        product = sp.csr_array(self.outer.matrix() @ self.inner.matrix())
        product.sort_indices()
        return product

    def scaled(self, factor: np.ndarray) -> LinearOperator:
        return Chain(self.outer.scaled(factor), self.inner)
