"""Averages and sums over windows and axes: fixed weights, never counted as parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import Shape
from simtool.networks.operators.window import Window


@dataclass(frozen=True, eq=False)
class Pool:
    """Fixed ``weights`` (out_size, in_size), CSR float64."""

    weights: sp.csr_array
    in_shape: Shape
    out_shape: Shape

    @classmethod
    def along(cls, in_shape: Shape, by_axis: Mapping[int, sp.csr_array]) -> Pool:
        """The product of one (positions, size) matrix for each axis in ``by_axis``; the other axes stay as they are."""
        parts = [by_axis.get(axis, sp.eye_array(size, format="csr")) for axis, size in enumerate(in_shape)]
        weights = reduce(lambda a, b: sp.kron(a, b, format="csr"), parts)
        return cls(sp.csr_array(weights), in_shape, tuple(int(part.shape[0]) for part in parts))

    @property
    def in_size(self) -> int:
        return prod(self.in_shape)

    @property
    def out_size(self) -> int:
        return prod(self.out_shape)

    @property
    def entries(self) -> int:
        return int(self.weights.nnz)

    @property
    def row_entries(self) -> int:
        return int(np.diff(self.weights.indptr).max(initial=0))

    @property
    def column_entries(self) -> int:
        return int(np.bincount(self.weights.indices, minlength=1).max())

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((self.weights @ x.T).T)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return np.asarray((self.weights.T @ g.T).T)

    def matrix(self) -> sp.csr_array:
        return self.weights

    def scaled(self, factor: np.ndarray) -> Pool:
        weights = sp.csr_array(sp.diags_array(factor) @ self.weights)
        weights.sort_indices()
        return Pool(weights, self.in_shape, self.out_shape)


def average(window: Window, high: int, include_pad: bool) -> sp.csr_array:
    """The averages of one axis, (positions, size). ``high`` is the padding after the last value.

    ``include_pad`` divides by the taps that see a value or padding, else by those that see a value. What a window covers beyond
    the padding (it was rounded up) never counts.
    """
    seen = window.seen()
    place = np.arange(window.positions)[:, None] * window.stride - window.low
    place = place + np.arange(window.taps) * window.dilation
    counted = (place < window.size + high) if include_pad else (seen >= 0)
    position, tap = np.nonzero(seen >= 0)
    data = 1.0 / np.maximum(counted.sum(axis=1), 1)[position]
    columns = seen[position, tap]
    return sp.csr_array(sp.coo_array((data, (position, columns)), shape=(window.positions, window.size)))
