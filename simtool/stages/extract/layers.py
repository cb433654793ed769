"""The columns of layers whose weights are shared over positions: which positions of each sample, and their im2col values.

A layer with many positions gives more columns than its rows need, so a few positions of each sample are taken: one fixed random order of
the positions, seeded, goes round and round over the samples, so that every position is seen equally often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simtool.errors import InputError, OptionError
from simtool.layers import LayerSpec
from simtool.networks import Network
from simtool.networks.layers import Layer

# Columns of a layer unless --positions says otherwise: so many in all, or so many for each feature of a row.
COLUMNS, COLUMNS_A_FEATURE = 10_000, 16
_TOLERANCE = 1e-4  # float32 sums against float64 ones


@dataclass(frozen=True)
class Recorded:
    """A layer with its columns: ``each`` positions of each sample, out of ``order`` (positions,)."""

    layer: Layer
    order: np.ndarray
    each: int

    def chosen(self, samples: np.ndarray) -> np.ndarray:
        """Positions (k, each) of the samples with these numbers (k,) in the file."""
        turn = samples[:, None] * self.each + np.arange(self.each)
        return np.asarray(self.order[turn % self.order.size])

    def columns(
        self, tensors: Mapping[str, np.ndarray], samples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Design (features, k * each) and targets (rows, k * each), checked to be finite."""
        design, targets = self.layer.columns(tensors, self.chosen(samples))
        for what, values in (("what feeds", design), ("the result of", targets)):
            if not np.isfinite(values).all():
                raise InputError(
                    f"{what} the layer {self.layer.spec.name} holds NaN or infinity. Check the network's weights and the range of the data."
                )
        return design, targets

    def check(self, design: np.ndarray, targets: np.ndarray) -> None:
        """Raise InputError unless the layer's own weights give its targets."""
        found = self.layer.spec.outputs(self.layer.table, design.astype(np.float64))
        error = float(
            np.abs(found - targets).max(initial=0.0) / max(1.0, float(np.abs(targets).max(initial=0.0)))
        )
        if not error <= _TOLERANCE:
            raise InputError(
                f"the layer {self.layer.spec.name} as it was read does not give what the network computes: relative error {error:.3g}, at "
                f"most {_TOLERANCE:g} is allowed. Please report this network."
            )


def shared(network: Network) -> bool:
    """Whether rows of this network are those of its layers: some weight is used at several positions, there is no graph, or what
    a layer gives goes through a batch norm, a sum or a factor before it is a state, so that a row of that state is no row of the layer.
    """
    found = network.outline
    if found.whole is None:
        return True
    if any(layer.positions() > 1 for layer in found.layers):
        return True
    producers = {op.output: op for op in found.program.ops}
    states = set()
    for tensor in [*(node.z_tensor for node in found.whole.nodes), found.whole.output_tensor]:
        while tensor in producers and producers[tensor].kind == "pass":
            states.add(tensor)
            tensor = producers[tensor].inputs[0]
        states.add(tensor)
    return any(use.result not in states for layer in found.layers for use in layer.uses)


def tensors_of(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The program's tensors that hold what feeds the layers and what they give."""
    names = [name for layer in layers for use in layer.uses for name in (use.source, use.result)]
    return tuple(dict.fromkeys(names))


def plan(
    network: Network, probe: np.ndarray, samples: int, positions: int | None, seed: int
) -> tuple[Recorded, ...]:
    """Every layer of ``network`` with its positions; ``probe`` is one sample (1, ...).

    ``positions`` are taken of each sample, by default as many as give the columns that the rows need.
    """
    if positions is not None and positions < 1:
        raise OptionError(f"--positions must be above 0, got {positions}.")
    result = []
    for layer, order in _orders(network, probe, seed):
        features = layer.spec.fan_in + int(layer.spec.has_bias)
        wanted = max(COLUMNS, COLUMNS_A_FEATURE * features)
        each = min(order.size, positions or -(-wanted // samples))
        spec = replace(layer.spec, columns=each * samples)
        result.append(Recorded(replace(layer, spec=spec), order, each))
    return tuple(result)


def recorded_again(
    network: Network, probe: np.ndarray, specs: Sequence[LayerSpec], samples: int, seed: int
) -> tuple[Recorded, ...]:
    """The layers of ``network`` with the positions that a file of so many ``samples`` holds, whose layers are ``specs``.

    Raises InputError where the network has other layers.
    """
    found = _orders(network, probe, seed)
    own = [replace(layer.spec, columns=spec.columns) for (layer, _), spec in zip(found, specs, strict=False)]
    if len(found) != len(specs) or tuple(own) != tuple(specs):
        raise InputError(
            f"the network has {len(found)} layers, the states file {len(specs)}, and they differ. Pass the network that was extracted."
        )
    return tuple(
        Recorded(replace(layer, spec=spec), order, spec.columns // samples)
        for (layer, order), spec in zip(found, specs, strict=True)
    )


def _orders(network: Network, probe: np.ndarray, seed: int) -> list[tuple[Layer, np.ndarray]]:
    """Every layer of ``network`` with the random order of its positions; ``probe`` is one sample (1, ...)."""
    layers = network.outline.layers
    tensors = network.tensors(probe, tensors_of(layers))
    return [
        (
            layer,
            np.random.default_rng((seed, index)).permutation(
                layer.positions(lambda name: len(tensors[name]))
            ),
        )
        for index, layer in enumerate(layers)
    ]
