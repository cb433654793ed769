"""What an operator is, as bytes for a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import LinearOperator
from simtool.networks.operators.chain import Chain
from simtool.networks.operators.convolution import Convolution
from simtool.networks.operators.dense import Dense, SharedDense
from simtool.networks.operators.pool import Pool
from simtool.networks.operators.select import Gather
from simtool.networks.operators.sparse import Diagonal, Sparse


def signature(operator: LinearOperator) -> Iterator[bytes]:
    """The pieces that tell ``operator`` from every other one: its kind, its geometry, its numbers."""
    yield f"{type(operator).__name__} {operator.in_shape} {operator.out_shape}\n".encode()
    match operator:
        case Chain():
            yield from signature(operator.outer)
            yield from signature(operator.inner)
        case Convolution():
            yield f"{operator.windows} {operator.groups} {operator.transposed}\n".encode()
            yield _bytes(operator.kernel)
        case Dense() | SharedDense():
            yield _bytes(operator.weight)
        case Diagonal():
            yield _bytes(operator.factor)
        case Gather():
            yield _bytes(operator.index.astype(np.int64))
            yield b"" if operator.factor is None else _bytes(operator.factor)
        case Pool():
            yield from _sparse(operator.weights)
        case Sparse():
            yield from _sparse(operator.weight)


def _sparse(matrix: sp.csr_array) -> Iterator[bytes]:
    yield _bytes(matrix.data)
    yield _bytes(matrix.indices.astype(np.int64))
    yield _bytes(matrix.indptr.astype(np.int64))


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
