"""An implicit model as the network: its states are its own fixed points (SIM Algorithm 1, fixed-point branch)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from simtool.blocks import BIAS, INPUT
from simtool.errors import InputError
from simtool.networks.graph import AffineForm, Graph, Node, OperatorUse
from simtool.networks.network import Recorded, shaped
from simtool.networks.operators import LinearOperator, Sparse
from simtool.networks.outline import outlined

if TYPE_CHECKING:
    from simtool.model import ImplicitModel


class ImplicitNetwork:
    """A model file with the graph that its blocks and matrices describe."""

    def __init__(self, model: ImplicitModel, network: str, sha256: str) -> None:
        self.model = model
        self.outline = outlined(graph_of(model))
        self.sha256 = sha256
        self.description: dict[str, Any] = {
            "network": network,
            "format": "model.h5",
            "input_shape": list(model.input_shape),
        }

    @property
    def graph(self) -> Graph:
        return self.outline.graph

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.graph.input_shape

    @property
    def output_size(self) -> int:
        return self.graph.output_size

    def run(self, inputs: np.ndarray) -> Recorded:
        """Run float32 ``inputs`` (k, *input_shape) to the fixed point."""
        states = self.model.forward(self.model.states_inputs(shaped(inputs, self.input_shape)))
        z = {block.name: states.Z[block.rows].T.astype(np.float32) for block in self.model.blocks}
        x = {block.name: states.X[block.rows].T.astype(np.float32) for block in self.model.blocks}
        return Recorded(z, x, states.Y.T.astype(np.float32))

    def tensors(self, inputs: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """It has no program, so no tensors but those that :meth:`run` gives."""
        return {}

    @property
    def takes_whole_numbers(self) -> bool:
        return False

    def weights(self) -> dict[str, np.ndarray]:
        """Its weights are A, B, C, D: none go by a name of their own."""
        return {}

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> ImplicitNetwork:
        """Refused: an implicit model has no layers with weights of their own names."""
        raise InputError(
            f"{self.description['network']} is an implicit model; weights of layers ({', '.join(sorted(changed)[:3])}) have no place in "
            "it. Pass the network that the layers belong to."
        )


def _form(
    model: ImplicitModel, states: sp.csr_array, inputs: sp.csr_array, parents: tuple[str, ...]
) -> AffineForm:
    """One block row of (A, B) or (C, D); the sources are ``parents`` and whatever else has a non-zero."""
    width = model.p - 1 if model.has_bias else model.p
    terms: list[tuple[str, LinearOperator]] = []
    for block in model.blocks:
        piece = sp.csr_array(states[:, block.rows])
        if piece.nnz or block.name in parents:
            terms.append((block.name, Sparse(piece)))
    direct = sp.csr_array(inputs[:, :width])
    if direct.nnz or INPUT in parents:
        terms.append((INPUT, Sparse(direct)))
    bias: np.ndarray | None = None
    if model.has_bias:
        column = inputs[:, [width]].toarray().reshape(-1)
        bias = column if BIAS in parents or column.any() else None
    return AffineForm(tuple(terms), bias, int(states.shape[0]))


def graph_of(model: ImplicitModel) -> Graph:
    """The graph of an implicit model: one node a block, sparse operators between them."""
    nodes = [
        Node(
            block.name,
            block.activation,
            _form(model, model.A[block.rows], model.B[block.rows], block.parents),
            block.shape,
        )
        for block in reversed(model.blocks)
    ]
    uses = [
        OperatorUse(f"implicit block ({node.activation.spec})", node.name, "activation") for node in nodes
    ]
    # The exact form of a network adds identity links that are not parameters; any other model is its own baseline.
    count = model.baseline_nnz if model.structure == "exact" else model.nnz
    parameters = model.baseline_bytes // 4 if model.structure == "exact" else model.nnz
    return Graph(
        input_shape=tuple(model.input_shape),
        nodes=tuple(nodes),
        output=_form(model, model.C, model.D, model.output_parents),
        output_tensor="",
        output_map=model.output_map,
        baseline_nnz=count,
        baseline_parameters=parameters,
        operators=tuple(uses),
    )


def read_implicit(path: Path) -> ImplicitNetwork:
    """The model in ``path`` (a model.h5 or a run folder) as a network."""
    from simtool.model import load_model

    model = load_model(path)
    file = path / "model.h5" if path.is_dir() else path
    return ImplicitNetwork(model, str(path), hashlib.sha256(file.read_bytes()).hexdigest())
