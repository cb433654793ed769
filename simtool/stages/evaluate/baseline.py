"""The baseline network beside the model: its outputs, its states in the model's units, its gradient."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np

from simtool.errors import InputError
from simtool.model import ImplicitModel
from simtool.networks import Network, NetworkSpec, load_network
from simtool.stages.evaluate.sparse_network import SparseNetwork

_log = logging.getLogger("simtool")
# Below this relative error a model reproduces the network given so well that the network must be its own.
_SAME_NETWORK = 1e-3


class Baseline:
    """A loaded baseline that fits ``model``. Raises InputError where its inputs or outputs do not."""

    def __init__(self, spec: NetworkSpec, model: ImplicitModel | SparseNetwork) -> None:
        # the samples are already in the model's shape, so that is what the network is offered
        self.network: Network = load_network(spec, model.input_shape)
        inputs = int(np.prod(self.network.input_shape))
        if inputs != model.p - int(model.has_bias) or self.network.output_size != model.q:
            raise InputError(
                f"the baseline {spec.network} takes {inputs} numbers and gives {self.network.output_size}; the model "
                f"takes {model.p - int(model.has_bias)} and gives {model.q}. Pass the network that the model came from."
            )
        self.name = spec.network
        known = model.fingerprints.get("network")
        self.same_fingerprint = not known or known == self.network.sha256
        self._recorded = model.baseline_nnz, model.baseline_bytes
        self._scaling = model.scaling if model.scaling is not None else np.ones(model.n)
        self._blocks = model.blocks
        found = self.network.outline.whole
        sizes = {node.name: node.size for node in found.nodes} if found is not None else {}
        self.comparable = bool(model.blocks) and all(sizes.get(b.name) == b.size for b in model.blocks)
        if not self.comparable and model.blocks:
            _log.warning("the baseline's blocks are not the model's: state errors cannot be measured")

    @property
    def nnz(self) -> int:
        """Non-zero explicit parameters of this network."""
        return self.network.outline.baseline_nnz

    @property
    def bytes(self) -> int:
        """4 bytes for each of its explicit parameters."""
        return 4 * self.network.outline.baseline_parameters

    @property
    def other_counts(self) -> bool:
        """Whether this network has other counts than the one that the model was made from, where those are known."""
        return self._recorded[0] > 0 and self._recorded != (self.nnz, self.bytes)

    def identity(self, error: float | None) -> tuple[list[str], list[str]]:
        """(warnings, notes) on whether this is the network that the model was made from.

        ``error`` is the relative error of the model against this network: of the states, or of the outputs where
        states cannot be compared.
        """
        if self.other_counts:
            nnz, size = self._recorded
            return [
                f"the baseline {self.name} is not the network the model was made from: it has {self.nnz} non-zero "
                f"parameters of {self.bytes // 4}, that network had {nnz} of {size // 4}. The baseline column is about "
                "the network given; sparsity is counted against the network the model was made from. Pass that network "
                "as --baseline to compare with it."
            ], []
        if self.same_fingerprint:
            return [], []
        if error is not None and error < _SAME_NETWORK:
            return [], [
                f"the baseline {self.name} has another fingerprint than the network the model was made from, as the same "
                f"weights in another format do; model and baseline agree (relative error {error:.1e})."
            ]
        shown = "could not be measured" if error is None else f"is {error:.1e}"
        return [
            f"the baseline {self.name} may not be the network the model was made from: it has as many parameters, but "
            f"another fingerprint, and the relative error of the model against it {shown}. The same weights in another "
            "format have another fingerprint, too; pass the file given to extract to be sure."
        ], []

    def run(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """y (q, k) before the output map, and x (n, k) in the model's units, for inputs ``u`` without a bias row."""
        inputs = np.ascontiguousarray(u.T, dtype=np.float32).reshape(u.shape[1], *self.network.input_shape)
        outline = self.network.outline
        if not self.comparable and outline.output_tensor:
            found = outline.output(self.network.tensors(inputs, (outline.output_tensor,)))
            return found.y.T.astype(np.float64), None
        recorded = self.network.run(inputs)
        x: np.ndarray | None = None
        if self.comparable:
            x = np.concatenate([recorded.x[block.name].T for block in self._blocks]).astype(np.float64)
            x *= self._scaling[:, None]
        return recorded.y.T.astype(np.float64), x

    @cached_property
    def implicit(self) -> ImplicitModel:
        """The exact implicit form, for gradients."""
        from simtool.stages.convert import implicit_form

        return implicit_form(self.network.graph)
