"""A network with sparse layers in it, run by its own runtime: for networks that have no implicit form, or too large a one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from simtool.blocks import Block
from simtool.errors import InputError, NoImplicitForm
from simtool.model import CertificateTable, Forward, ImplicitModel, SparseLayers, load_layers, load_model
from simtool.model.wellposed import Verdict
from simtool.networks import Network, NetworkSpec, load_network
from simtool.stages.dropin import require_same

_log = logging.getLogger("simtool")


@dataclass(frozen=True, eq=False)
class SparseNetwork:
    """What evaluation asks of a model, answered by ``network``, which already has the rows of ``layers`` in it.

    It has no states of its own: ``n`` is 0, and what is defined by A, B, C, D is None.
    """

    layers: SparseLayers
    network: Network

    n = 0
    has_bias = True
    blocks: tuple[Block, ...] = ()
    scaling = None
    norm_a_inf = None
    norm_a_inf_raw = None
    structure = "layered"

    @classmethod
    def of(cls, layers: SparseLayers, network: Network) -> SparseNetwork:
        """``layers`` put into the ``network`` that they belong to. Raises InputError where they do not."""
        warning = require_same(layers, network)
        if warning is not None:
            _log.warning("%s", warning)
        return cls(layers, network.with_weights(layers.tensors(network.weights())))

    @property
    def p(self) -> int:
        return prod(self.layers.input_shape) + 1

    @property
    def q(self) -> int:
        return self.layers.outputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.layers.input_shape

    @property
    def output_map(self) -> str | None:
        return self.layers.output_map

    @property
    def fingerprints(self) -> dict[str, str]:
        return self.layers.fingerprints

    @property
    def header_extra(self) -> dict[str, object]:
        return self.layers.header_extra

    @property
    def baseline_nnz(self) -> int:
        return self.layers.baseline_nnz

    @property
    def baseline_bytes(self) -> int:
        return self.layers.baseline_bytes

    @property
    def parameters(self) -> int:
        """Non-zero explicit parameters."""
        return self.layers.nnz

    @property
    def sparsity(self) -> float:
        return self.layers.sparsity

    @property
    def proofs(self) -> CertificateTable | None:
        return self.layers.certificates

    def states_inputs(self, inputs: np.ndarray) -> np.ndarray:
        """U (p, k), float64, for ``inputs`` (k, ...) of the right size, with the bias row."""
        array = np.asarray(inputs)
        size = self.p - 1
        if array.ndim == 0 or prod(array.shape[1:]) != size:
            raise InputError(
                f"a sample has shape {array.shape[1:]}, the network takes {self.input_shape} ({size} numbers). Pass data of that size."
            )
        u = np.ones((self.p, len(array)))
        u[:size] = array.reshape(len(array), size).T
        return u

    def forward(self, U: np.ndarray) -> Forward:
        """Outputs for ``U`` (p, m), in the network's own precision; no states."""
        m = U.shape[1]
        inputs = np.ascontiguousarray(U[:-1].T, dtype=np.float32).reshape(m, *self.network.input_shape)
        outline = self.network.outline
        y = outline.output(self.network.tensors(inputs, (outline.output_tensor,))).y.T.astype(np.float64)
        if not np.isfinite(y).all():
            raise InputError(
                "the network with the sparse layers gives NaN or infinity on these data. Check their range."
            )
        empty = np.zeros((0, m))
        return Forward(empty, empty, y, np.zeros(m, dtype=np.int64), np.ones(m, dtype=bool))

    def well_posedness(self) -> Verdict:
        """The network runs its operators one after another: no value feeds itself."""
        return Verdict(
            True, "acyclic", (), "the network computes its values one after another, none feeds itself"
        )


Model = ImplicitModel | SparseNetwork


def load_runnable(model: str | Path, network: NetworkSpec | None) -> Model:
    """The implicit model in a file, or ``network`` with the sparse layers in it where the file holds those alone.

    Raises NoImplicitForm where the network is needed and missing, and whatever loading raises.
    """
    try:
        return load_model(model)
    except NoImplicitForm:
        layers = load_layers(model)
        if network is None or layers is None:
            raise
    return SparseNetwork.of(layers, load_network(network, layers.input_shape))
