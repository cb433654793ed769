"""A fully connected network as dense layers in the order they run, read from a states file: what the peers prune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from simtool.activations import Activation
from simtool.errors import InputError
from simtool.model import ImplicitModel
from simtool.stages.sparsify.structure import row_groups
from simtool.states import open_states

_BATCH = 1024


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """phi(weight f + bias), f the ``features`` (d,) of [X; U] that it reads, without the bias; ``rows`` of [Z; Y] that it makes.

    ``activation`` is None for the outputs.
    """

    name: str
    rows: slice
    features: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    activation: Activation | None

    @property
    def nnz(self) -> int:
        """Non-zero weights, and biases."""
        return int(np.count_nonzero(self.weight) + np.count_nonzero(self.bias))


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """``layers`` in the order they run; ``n`` states, ``p`` inputs (the bias included where ``has_bias``), ``q`` outputs."""

    layers: tuple[DenseLayer, ...]
    n: int
    p: int
    q: int
    has_bias: bool

    @property
    def nnz(self) -> int:
        return sum(layer.nnz for layer in self.layers)

    @property
    def sizes(self) -> str:
        """The widths as 784-64-32-16-10."""
        return "-".join(str(size) for size in (self.p - self.has_bias, *(len(x.bias) for x in self.layers)))

    def states(self, inputs: np.ndarray) -> np.ndarray:
        """[X; U] (n + p, k) float64 for ``inputs`` (k, size), states still 0."""
        found = np.zeros((self.n + self.p, len(inputs)))
        found[self.n : self.n + inputs.shape[1]] = inputs.reshape(len(inputs), -1).T
        if self.has_bias:
            found[-1] = 1.0
        return found

    def run(self, layer: DenseLayer, states: np.ndarray) -> np.ndarray:
        """What ``layer`` makes of ``states``, before its activation (r, k); where it has states, ``states`` receives them."""
        z = layer.weight @ states[layer.features] + layer.bias[:, None]
        if layer.activation is not None:
            states[layer.rows] = layer.activation(z)
        return np.asarray(z)

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """Y (k, q) for ``inputs`` (k, size)."""
        parts = []
        for start in range(0, len(inputs), _BATCH):
            states = self.states(inputs[start : start + _BATCH])
            y = np.zeros((self.q, states.shape[1]))
            for layer in self.layers:
                y = self.run(layer, states)
            parts.append(y.T)
        return np.concatenate(parts)

    def of_model(self, model: ImplicitModel) -> DenseNetwork:
        """The layers as ``model`` has them: its rows on the features of this network's layers."""
        whole = sparse.block_array([[model.A, model.B], [model.C, model.D]], format="csr")
        return self._with(lambda layer: _layer_of(whole, layer, self.has_bias))

    def _with(self, change: Callable[[DenseLayer], tuple[np.ndarray, np.ndarray]]) -> DenseNetwork:
        made = []
        for layer in self.layers:
            weight, bias = change(layer)
            made.append(replace(layer, weight=weight, bias=bias))
        return replace(self, layers=tuple(made))


def _layer_of(whole: sparse.csr_array, layer: DenseLayer, has_bias: bool) -> tuple[np.ndarray, np.ndarray]:
    rows = whole[layer.rows]
    bias = rows[:, [-1]].toarray()[:, 0] if has_bias else np.zeros(rows.shape[0])
    return rows[:, layer.features].toarray(), bias


@dataclass(frozen=True, eq=False)
class Calibration:
    """The samples that every contestant works on: ``inputs`` (m, size), and the dense network's ``targets`` [Z; Y] (n + q, m)."""

    inputs: np.ndarray
    targets: np.ndarray

    @property
    def m(self) -> int:
        return len(self.inputs)

    def part(self, columns: slice) -> Calibration:
        return Calibration(self.inputs[columns], self.targets[:, columns])


def read(path: Path) -> tuple[DenseNetwork, Calibration]:
    """The network and samples of the states file at ``path``. Raises InputError for networks that are not fully connected."""
    with open_states(path) as source:
        header, teacher = source.header, source.teacher()
        if header.layers:
            raise InputError(
                "the layers of this network share their weights over positions; bench quality compares fully connected networks. "
                "Pass one of linear layers and activations."
            )
        n, p, q = source.n, source.p, source.q
        u = np.asarray(source.U[:], dtype=np.float64)
        targets = np.concatenate([source.Z[:], source.Y[:]]).astype(np.float64)
        groups = row_groups("layered", source.blocks, header.output_parents, p, q, header.has_bias)
        activations = {block.name: block.activation for block in source.blocks}
    if not sum(matrix.nnz for matrix in teacher.values()):
        raise InputError(f"{path.name} lacks the network's own weights, which the peers prune.")
    whole = sparse.block_array([[teacher["A"], teacher["B"]], [teacher["C"], teacher["D"]]], format="csr")
    layers = []
    # Blocks are stacked last layer first, and the outputs come last of all.
    for group in (*reversed(groups[:-1]), groups[-1]):
        features = group.features[group.features != n + p - 1] if header.has_bias else group.features
        empty = DenseLayer(
            name=group.name,
            rows=slice(*group.rows),
            features=features,
            weight=np.zeros(0),
            bias=np.zeros(0),
            activation=None if group.is_output else activations[group.name],
        )
        weight, bias = _layer_of(whole, empty, header.has_bias)
        layers.append(replace(empty, weight=weight, bias=bias))
    pixels = u[:-1] if header.has_bias else u
    return DenseNetwork(tuple(layers), n, p, q, header.has_bias), Calibration(pixels.T.copy(), targets)


def agreement(outputs: np.ndarray, expected: np.ndarray) -> float:
    """The share of samples (k, q) on which both choose the same class."""
    return float((outputs.argmax(axis=1) == expected.argmax(axis=1)).mean())


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The share of samples whose class is right."""
    return float((outputs.argmax(axis=1) == labels).mean())


def layer_sizes(network: DenseNetwork) -> Sequence[int]:
    """Weights of each layer, biases not counted."""
    return [int(np.count_nonzero(layer.weight)) for layer in network.layers]
