"""The baseline network beside the model: its outputs, its states in the model's units, its gradient."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np

from simtool.errors import InputError
from simtool.model import ImplicitModel
from simtool.networks import Network, NetworkSpec, load_network

_log = logging.getLogger("simtool")


class Baseline:
    """A loaded baseline that fits ``model``. Raises InputError where its inputs or outputs do not."""

    def __init__(self, spec: NetworkSpec, model: ImplicitModel) -> None:
        # the samples are already in the model's shape, so that is what the network is offered
        self.network: Network = load_network(spec, model.input_shape)
        inputs = int(np.prod(self.network.input_shape))
        if inputs != model.p - int(model.has_bias) or self.network.output_size != model.q:
            raise InputError(
                f"the baseline {spec.network} takes {inputs} numbers and gives {self.network.output_size}; the model "
                f"takes {model.p - int(model.has_bias)} and gives {model.q}. Pass the network that the model came from."
            )
        known = model.fingerprints.get("network")
        if known and known != self.network.sha256:
            _log.warning(
                "the baseline %s is not the network whose states made this model (other fingerprint)",
                spec.network,
            )
        self._scaling = model.scaling if model.scaling is not None else np.ones(model.n)
        self._blocks = model.blocks
        sizes = {node.name: node.size for node in self.network.graph.nodes}
        self.comparable = bool(model.blocks) and all(sizes.get(b.name) == b.size for b in model.blocks)
        if not self.comparable and model.blocks:
            _log.warning("the baseline's blocks are not the model's: state errors cannot be measured")

    def run(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """y (q, k) before the output map, and x (n, k) in the model's units, for inputs ``u`` without a bias row."""
        inputs = np.ascontiguousarray(u.T, dtype=np.float32).reshape(u.shape[1], *self.network.input_shape)
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
