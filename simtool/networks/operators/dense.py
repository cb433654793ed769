"""Full weight matrices: one for the whole sample, or the same one at every position of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import LinearOperator, Shape
from simtool.networks.operators.chain import Chain
from simtool.networks.operators.sparse import Diagonal


@dataclass(frozen=True, eq=False)
class Dense:
    """A full weight matrix, ``weight`` of shape (out_size, in_size), float64."""

    weight: np.ndarray

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
        return int(np.count_nonzero(self.weight))

    @property
    def row_entries(self) -> int:
        return self.in_size

    @property
    def column_entries(self) -> int:
        return self.out_size

    def apply(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return g @ self.weight

    def matrix(self) -> sp.csr_array:
        return sp.csr_array(self.weight)

    def scaled(self, factor: np.ndarray) -> Dense:
        return Dense(factor[:, None] * self.weight)


@dataclass(frozen=True, eq=False)
class SharedDense:
    """The same ``weight`` (outs, ins) on the last axis at each position of ``lead``: (*lead, ins) to (*lead, outs)."""

    weight: np.ndarray
    lead: Shape

    @property
    def positions(self) -> int:
        return prod(self.lead)

    @property
    def in_shape(self) -> Shape:
        return (*self.lead, int(self.weight.shape[1]))

    @property
    def out_shape(self) -> Shape:
        return (*self.lead, int(self.weight.shape[0]))

    @property
    def in_size(self) -> int:
        return prod(self.in_shape)

    @property
    def out_size(self) -> int:
        return prod(self.out_shape)

    @property
    def entries(self) -> int:
        return self.positions * int(np.count_nonzero(self.weight))

    @property
    def row_entries(self) -> int:
        return int(self.weight.shape[1])

    @property
    def column_entries(self) -> int:
        return int(self.weight.shape[0])

    def apply(self, x: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, self.weight.shape[1]) @ self.weight.T
        return rows.reshape(len(x), self.out_size)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        rows = g.reshape(-1, self.weight.shape[0]) @ self.weight
        return rows.reshape(len(g), self.in_size)

    def matrix(self) -> sp.csr_array:
        return sp.csr_array(sp.kron(sp.eye_array(self.positions), sp.csr_array(self.weight), format="csr"))

    def scaled(self, factor: np.ndarray) -> LinearOperator:
        table = factor.reshape(self.positions, -1)
        if np.all(table == table[0]):
            return SharedDense(table[0][:, None] * self.weight, self.lead)
        return Chain(Diagonal(factor), self)
