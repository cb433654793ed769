"""A peer at work on a whole network: budgets of its layers, layer after layer on what the pruned part makes, and its tuning.

Biases are nobody's to prune, but they are counted: weights and biases together come to the budget that our model has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simtool.bench.pruners import Layer, Peer
from simtool.bench.pruners.layer import largest, shares
from simtool.bench.pruners.peers import GLOBAL, UNIFORM
from simtool.bench.quality_network import Calibration, DenseLayer, DenseNetwork, agreement, layer_sizes
from simtool.errors import OptionError

# Towards the layer's own weights, of the features' mean square, where the targets are the dense network's.
_RIDGE = 1e-2
VALIDATION = 0.2


def budgets(network: DenseNetwork, total: int, kind: str, ours: DenseNetwork) -> list[int]:
    """Weights that each layer keeps, so that they and the biases are ``total``: ``kind`` of pruners.BUDGETS.

    Raises OptionError where the biases alone are more than ``total``.
    """
    biases = [int(np.count_nonzero(layer.bias)) for layer in network.layers]
    weights = total - sum(biases)
    if weights < 0:
        raise OptionError(
            f"{total} non-zeros are fewer than the {sum(biases)} biases, which no peer prunes. Pass a smaller --sparsity."
        )
    sizes = layer_sizes(network)
    if kind == UNIFORM:
        return shares(sizes, weights)
    if kind == GLOBAL:
        scores = np.concatenate([np.abs(layer.weight).ravel() for layer in network.layers])
        owner = np.repeat(np.arange(len(network.layers)), [layer.weight.size for layer in network.layers])
        return [int(count) for count in np.bincount(owner[largest(scores, weights)], minlength=len(sizes))]
    return _as_ours([layer.nnz for layer in ours.layers], biases, sizes, weights)


def _as_ours(nnz: Sequence[int], biases: Sequence[int], sizes: Sequence[int], weights: int) -> list[int]:
    """Our layers' non-zeros less the peers' biases; what does not fit a layer goes where there is room in proportion."""
    found = [min(max(own - bias, 0), size) for own, bias, size in zip(nnz, biases, sizes, strict=True)]
    missing = weights - sum(found)
    if missing > 0:
        more = shares([size - own for size, own in zip(sizes, found, strict=True)], missing)
        return [own + extra for own, extra in zip(found, more, strict=True)]
    less = shares(found, -missing)
    return [own - extra for own, extra in zip(found, less, strict=True)]


@dataclass
class Samples:
    """Calibration samples, and the Gram matrices of the layers that read inputs alone, which pruning leaves as they are."""

    calibration: Calibration
    _grams: dict[str, np.ndarray] = field(default_factory=dict)

    def gram(self, layer: DenseLayer, features: np.ndarray, fixed: bool) -> np.ndarray:
        """features features^T; kept where ``fixed``."""
        if not fixed:
            return np.asarray(features @ features.T)
        if layer.name not in self._grams:
            self._grams[layer.name] = features @ features.T
        return self._grams[layer.name]


def prune(
    network: DenseNetwork,
    samples: Samples,
    keep: Sequence[int],
    peer: Callable[..., np.ndarray],
    settings: dict[str, Any],
) -> DenseNetwork:
    """``network`` with ``keep`` weights in each layer, every layer fitted on what the pruned ones before it make.

    ``settings``: the peer's own, and for a peer that changes weights ``target`` (``layer``: what the dense layer makes of the same
    inputs, as the papers do; ``network``: what it makes in the dense network) and ``bias`` (``kept`` or ``updated``).
    """
    own = {name: value for name, value in settings.items() if name not in ("target", "bias")}
    dense, updated = settings.get("target") == "network", settings.get("bias") == "updated"
    calibration = samples.calibration
    states = network.states(calibration.inputs)
    layers = []
    for layer, count in zip(network.layers, keep, strict=True):
        features = states[layer.features]
        gram = samples.gram(layer, features, bool((layer.features >= network.n).all()))
        mean = features.mean(axis=1) if updated else np.zeros(len(features))
        centred = gram - calibration.m * np.outer(mean, mean)
        # Rounding leaves a trace of features that are constant.
        centred[np.diag_indices_from(centred)] = np.maximum(np.diag(centred), 0.0)
        weight, bias = layer.weight, layer.bias
        if dense:
            weight, bias = _towards(layer, centred, features, mean, calibration.targets[layer.rows])
        problem = Layer(weight, centred, np.sqrt(np.diag(gram)))
        found = peer(problem, count, **own)
        made = replace(layer, weight=found, bias=bias + (weight - found) @ mean)
        network.run(made, states)
        layers.append(made)
    return replace(network, layers=tuple(layers))


def _towards(
    layer: DenseLayer, centred: np.ndarray, features: np.ndarray, mean: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The dense weights and biases that best make ``targets`` (r, m) of ``features``, near the layer's own."""
    moved = mean.any()
    level = targets.mean(axis=1) if moved else layer.bias
    right = (targets - level[:, None]) @ (features - mean[:, None]).T
    ridge = _RIDGE * (float(np.diag(centred).mean()) or 1.0)
    left = centred + ridge * np.eye(len(centred))
    weight = np.linalg.solve(left, (right + ridge * layer.weight).T).T
    return weight, level - weight @ mean if moved else layer.bias


@dataclass(frozen=True)
class Chosen:
    """A peer's settings, and how often the model that they make of the first samples agrees with the dense one on the last."""

    settings: dict[str, Any]
    agreement: float
    tried: int


def tune(
    network: DenseNetwork, calibration: Calibration, keep: Sequence[int], peer: Peer, work: Work
) -> Chosen:
    """The peer's settings, one after the other, each by the agreement with the dense network on the last fifth of the samples.

    No labels are used. Where two agree as often, the one with the smaller error of the outputs is taken.
    """
    settings = peer.defaults
    fitted, held = work.split(calibration)
    expected = held.targets[-network.q :].T

    def judge(tried: dict[str, Any]) -> tuple[float, float]:
        outputs = prune(network, fitted, keep, work.function(peer), tried).outputs(held.inputs)
        return agreement(outputs, expected), -float(((outputs - expected) ** 2).sum())

    best, count = judge(settings), 1
    for name, values in peer.tuned.items():
        for value in values[1:]:
            tried = settings | {name: value}
            reached = judge(tried)
            count += 1
            if reached > best:
                best, settings = reached, tried
    return Chosen(settings, best[0], count)


@dataclass
class Work:
    """What is kept from one sparsity of a network to the next: Gram matrices, and what peers remember of layers."""

    _functions: dict[str, Callable[..., np.ndarray]] = field(default_factory=dict)
    _split: tuple[Samples, Calibration] | None = None
    _whole: Samples | None = None

    def function(self, peer: Peer) -> Callable[..., np.ndarray]:
        if peer.name not in self._functions:
            self._functions[peer.name] = peer.make()
        return self._functions[peer.name]

    def split(self, calibration: Calibration) -> tuple[Samples, Calibration]:
        """The first samples to fit on, the last to choose by."""
        if self._split is None:
            border = calibration.m - max(1, int(VALIDATION * calibration.m))
            self._split = (
                Samples(calibration.part(slice(0, border))),
                calibration.part(slice(border, None)),
            )
        return self._split

    def whole(self, calibration: Calibration) -> Samples:
        if self._whole is None:
            self._whole = Samples(calibration)
        return self._whole
