"""The order in which an acyclic model is computed, as one CSR matrix over one vector [inputs; states; outputs].

States are sorted by the step that computes them, so that every step writes neighbouring rows and, in a layered model,
reads neighbouring rows. Rows of Y come last. The bias column becomes a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from simtool.activations import Activation
from simtool.model import ImplicitModel, levels

# The numbers that the kernels know the activations by.
CODES = {
    "identity": 0,
    "relu": 1,
    "leaky_relu": 2,
    "tanh": 3,
    "sigmoid": 4,
    "elu": 5,
    "silu": 6,
    "gelu": 7,
    "gelu_tanh": 8,
    "softplus": 9,
    "clip": 10,
    "square": 11,
}


@dataclass(frozen=True)
class Step:
    """Rows ``first`` to ``last`` of the matrix, which read only columns ``low`` to ``high``, all computed before."""

    first: int
    last: int
    low: int
    high: int
    nnz: int

    @property
    def entries(self) -> int:
        """The size of the dense matrix that holds them."""
        return (self.last - self.first) * (self.high - self.low)

    @property
    def density(self) -> float:
        return self.nnz / self.entries if self.entries else 0.0


@dataclass(frozen=True, eq=False)
class Schedule:
    """Row i of ``matrix`` (n + q, inputs + n) makes number inputs + i of the vector: phi_i(matrix_i v + bias_i).

    ``states`` (n,) says which state row i < n is; ``code`` and ``parameter`` (n + q,) name phi_i.
    """

    inputs: int
    states: np.ndarray
    matrix: sparse.csr_array
    bias: np.ndarray
    code: np.ndarray
    parameter: np.ndarray
    steps: tuple[Step, ...]


def obstacle(model: ImplicitModel) -> str | None:
    """Why ``model`` cannot be scheduled, None where it can."""
    if any(component.cyclic for component in model.components):
        return "its states depend on each other in cycles"
    unknown = sorted({b.activation.name for b in model.blocks} - set(CODES))
    return f"the kernels do not know the activation {', '.join(unknown)}" if unknown else None


def schedule(model: ImplicitModel) -> Schedule:
    """The schedule of an acyclic ``model`` (see :func:`obstacle`): block by block, or by levels of single states."""
    n, q, inputs = model.n, model.q, model.p - int(model.has_bias)
    groups = _by_blocks(model) or _by_levels(model)
    states = np.concatenate([*groups, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    hidden = sparse.hstack([sparse.csr_array(model.B[:, :inputs])[states], model.A[states][:, states]])
    outer = sparse.hstack([sparse.csr_array(model.D[:, :inputs]), model.C[:, states]])
    matrix = sparse.csr_array(sparse.vstack([hidden, outer]))
    matrix.sort_indices()
    bias = np.zeros(n + q)
    if model.has_bias:
        bias[:n] = model.B[:, inputs:].toarray()[states, 0]
        bias[n:] = model.D[:, inputs:].toarray()[:, 0]
    code, parameter = np.zeros(n + q, dtype=np.int64), np.zeros(n + q)
    sizes = [block.size for block in model.blocks]
    coded = [_coded(block.activation) for block in model.blocks]
    code[:n] = np.repeat(np.array([number for number, _ in coded], dtype=np.int64), sizes)[states]
    parameter[:n] = np.repeat(np.array([value for _, value in coded]), sizes)[states]
    ends = np.cumsum([len(group) for group in groups] + [q])
    starts = np.concatenate([[0], ends[:-1]])
    steps = tuple(_step(matrix, int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b > a)
    return Schedule(inputs, states, matrix, bias, code, parameter, steps)


def _coded(activation: Activation) -> tuple[int, float]:
    return CODES[activation.name], 0.0 if activation.parameter is None else activation.parameter


def _by_blocks(model: ImplicitModel) -> list[np.ndarray] | None:
    """The states of each block, where every block uses only earlier ones; None where blocks are entangled."""
    count = len(model.blocks)
    owner = np.repeat(np.arange(count), [block.size for block in model.blocks])
    rows = owner[np.repeat(np.arange(model.n), np.diff(model.A.indptr))]
    feeds = sparse.csr_array((np.ones(rows.size), (rows, owner[model.A.indices])), shape=(count, count))
    found = levels.order(feeds)
    if any(component.cyclic for component in found):
        return None
    return [np.arange(model.n)[model.blocks[i].rows] for component in found for i in component.rows]


def _by_levels(model: ImplicitModel) -> list[np.ndarray]:
    return [component.rows for component in model.components]


def _step(matrix: sparse.csr_array, first: int, last: int) -> Step:
    columns = matrix.indices[matrix.indptr[first] : matrix.indptr[last]]
    if not columns.size:
        return Step(first, last, 0, 0, 0)
    return Step(first, last, int(columns.min()), int(columns.max()) + 1, int(columns.size))
