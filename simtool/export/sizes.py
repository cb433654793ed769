"""What exported weights weigh, densely and sparsely, counted and not measured: no container, no compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from simtool.export.plan import Step, dense_entries, plan

if TYPE_CHECKING:
    from simtool.model import ImplicitModel

SPEED_NOTE = (
    "Zeros save storage, not time: a runtime that multiplies dense matrices runs a sparse model no faster "
    "than a dense one of the same shape. Only removing whole states makes it smaller and faster."
)


@dataclass(frozen=True)
class Sizes:
    """``dense_bytes``: 4 for every entry of the steps' matrices and biases, zeros included, as a dense float32 file holds them.

    ``sparse_bytes``: A, B, C, D as CSR with float32 values and the smallest unsigned index types.
    """

    dense_bytes: int
    sparse_bytes: int


def smallest_index(largest: int) -> np.dtype:
    """The smallest unsigned integer type that holds ``largest``."""
    return np.min_scalar_type(max(int(largest), 0))


def csr_bytes(matrix: sparse.csr_array, value_bytes: int = 4) -> int:
    """Bytes of ``matrix`` as values, column indices and row starts, each index of the smallest type."""
    column = smallest_index(matrix.shape[1] - 1).itemsize
    start = smallest_index(matrix.nnz).itemsize
    return int(matrix.nnz * (value_bytes + column) + (matrix.shape[0] + 1) * start)


def sizes(model: ImplicitModel, steps: tuple[Step, ...] | None = None) -> Sizes:
    """The sizes of ``model``; ``steps`` is its plan where that is known already."""
    steps = plan(model) if steps is None else steps
    return Sizes(
        dense_bytes=4 * dense_entries(steps),
        sparse_bytes=sum(csr_bytes(matrix) for matrix in (model.A, model.B, model.C, model.D)),
    )
