"""The one graph both readers produce: nodes are activations of affine forms of the input and of other nodes.

    z_node = sum over its sources s of  L_s(x_s) + bias,      x_node = phi(z_node)
    y      = the same kind of sum, without an activation

Nodes stand in execution order; states are stacked in the reverse order (last hidden layer first). The implicit
form (A, B, C, D) of the SIM paper is only a matter of placing the operators' matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import scipy.sparse as sp

from simtool.activations import Activation
from simtool.blocks import BIAS, INPUT, Block
from simtool.networks.operators import LinearOperator


@dataclass(frozen=True, eq=False)
class AffineForm:
    """``sum_s operator_s(source_s) + bias``; a source is INPUT or the name of a node, ``bias`` is (size,) or None."""

    terms: tuple[tuple[str, LinearOperator], ...]
    bias: np.ndarray | None
    size: int

    def apply(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The form's value (k, size) at the sources' ``values``, each (k, its size)."""
        if not self.terms:
            count = len(next(iter(values.values())))
            return np.broadcast_to(0.0 if self.bias is None else self.bias, (count, self.size))
        total = sum((operator.apply(values[source]) for source, operator in self.terms), start=np.zeros(()))
        if self.bias is not None:
            total = total + self.bias
        return np.asarray(total)

    @property
    def entries(self) -> int:
        """At least the non-zeros of the form's rows, bias included."""
        bias = 0 if self.bias is None else int(np.count_nonzero(self.bias))
        return bias + sum(operator.entries for _, operator in self.terms)

    @property
    def parents(self) -> tuple[str, ...]:
        """The sources, each once, and BIAS where there is one."""
        names = list(dict.fromkeys(source for source, _ in self.terms))
        return tuple(names + ([BIAS] if self.bias is not None else []))


@dataclass(frozen=True, eq=False)
class Node:
    """One block-to-be.

    ``z_tensor`` and ``x_tensor`` name the tensors in the reader's own program that hold this node's input and output. One that is ""
    is held by none (the relus that a max-pooling is written as): z then follows from the form, x from the activation.
    """

    name: str
    activation: Activation
    form: AffineForm
    shape: tuple[int, ...]
    z_tensor: str = ""
    x_tensor: str = ""

    @property
    def size(self) -> int:
        """Number of states of this node."""
        return prod(self.shape)


@dataclass(frozen=True)
class OperatorUse:
    """How one operator of the network was understood.

    ``role`` is ``linear`` (has weights), ``fixed`` (linear without parameters: pooling, slices, permutations, concatenations),
    ``activation``, ``arithmetic``, ``map`` or ``passed``; and in a network without a graph ``glue``, what its own runtime computes
    between its layers.
    """

    operator: str
    node: str
    role: str


@dataclass(frozen=True)
class Matrices:
    """The implicit form, CSR float64 with sorted indices: A (n, n), B (n, p), C (q, n), D (q, p); bias column last."""

    A: sp.csr_array
    B: sp.csr_array
    C: sp.csr_array
    D: sp.csr_array


@dataclass(frozen=True, eq=False)
class Graph:
    """A feed-forward (or, for an implicit model, possibly cyclic) network of affine forms and activations.

    Attributes
    ----------
    input_shape : one sample as the network takes it
    nodes : in execution order
    output, output_tensor : the affine form y, and the reader's tensor that holds it (before the output map)
    output_map : softmax, log_softmax, sigmoid or None
    baseline_nnz, baseline_parameters : non-zero and all explicit parameters used, each tensor counted once
    operators : every operator of the network with its role
    input_tensor : the reader's tensor that holds the input
    """

    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: AffineForm
    output_tensor: str
    output_map: str | None
    baseline_nnz: int
    baseline_parameters: int
    operators: tuple[OperatorUse, ...] = ()
    input_tensor: str = ""

    @property
    def input_size(self) -> int:
        return prod(self.input_shape)

    @property
    def output_size(self) -> int:
        return self.output.size

    @property
    def states(self) -> int:
        """n, the number of states."""
        return sum(node.size for node in self.nodes)

    @property
    def taken(self) -> tuple[OperatorUse, ...]:
        """Operators that became rows, activations or the output map."""
        return tuple(use for use in self.operators if use.role != "passed")

    @property
    def passed_through(self) -> tuple[OperatorUse, ...]:
        """Operators that change no value (reshapes, dropout in evaluation)."""
        return tuple(use for use in self.operators if use.role == "passed")

    @property
    def refused(self) -> tuple[str, ...]:
        """Always empty here: a network with a refused operator raises UnsupportedOperator, which lists them."""
        return ()

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the state vector, last hidden layer first."""
        blocks: list[Block] = []
        offset = 0
        for node in reversed(self.nodes):
            blocks.append(Block(node.name, node.activation, offset, node.size, node.shape, node.form.parents))
            offset += node.size
        return tuple(blocks)

    @property
    def output_parents(self) -> tuple[str, ...]:
        return self.output.parents

    @property
    def entries(self) -> int:
        """At least the non-zeros of the implicit form, counted without forming it."""
        forms = [*(node.form for node in self.nodes), self.output]
        return sum(form.entries for form in forms)

    def matrices(self) -> Matrices:
        """The implicit form of the SIM paper, eq. (1): x = phi(Ax + Bu), y = Cx + Du."""
        n, p, q = self.states, self.input_size + 1, self.output_size
        rows = {block.name: block.rows for block in self.blocks}
        state_pieces: list[tuple[int, AffineForm]] = [(rows[x.name].start, x.form) for x in self.nodes]
        a, b = _place(state_pieces, rows, n, n, p)
        c, d = _place([(0, self.output)], rows, q, n, p)
        return Matrices(a, b, c, d)

    def evaluate(self, inputs: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        """z, x (k, size) by node name and y (k, q) of flattened float64 ``inputs`` (k, input_size); acyclic graphs only."""
        values: dict[str, np.ndarray] = {INPUT: inputs}
        z: dict[str, np.ndarray] = {}
        for node in self.nodes:
            z[node.name] = node.form.apply(values)
            values[node.name] = node.activation(z[node.name])
        y = self.output.apply(values)
        del values[INPUT]
        return z, values, y


def _place(
    pieces: list[tuple[int, AffineForm]], rows: dict[str, slice], height: int, n: int, p: int
) -> tuple[sp.csr_array, sp.csr_array]:
    """The forms' matrices put side by side: (height, n) for states, (height, p) for inputs and bias."""
    data: list[list[np.ndarray]] = [[], []]
    index_i: list[list[np.ndarray]] = [[], []]
    index_j: list[list[np.ndarray]] = [[], []]

    def put(side: int, values: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
        data[side].append(values)
        index_i[side].append(i)
        index_j[side].append(j)

    for top, form in pieces:
        for source, operator in form.terms:
            matrix = operator.matrix().tocoo()
            left = 0 if source == INPUT else rows[source].start
            put(int(source == INPUT), matrix.data, matrix.row + top, matrix.col + left)
        if form.bias is not None:
            put(1, form.bias, top + np.arange(form.size), np.full(form.size, p - 1))
    result = []
    for side, width in ((0, n), (1, p)):
        if data[side]:
            values = np.concatenate(data[side]).astype(np.float64)
            indices = (np.concatenate(index_i[side]), np.concatenate(index_j[side]))
            matrix = sp.csr_array(sp.coo_array((values, indices), shape=(height, width)))
        else:
            matrix = sp.csr_array((height, width), dtype=np.float64)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        matrix.sort_indices()
        result.append(matrix)
    return result[0], result[1]
