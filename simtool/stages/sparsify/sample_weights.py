"""What a sample weighs in a row of a budget: ``--weight-samples gate`` and ``fisher``.

An error of a pre-activation that its activation does not let through costs nothing, and one where the network is sure costs little.

    gate      v_it = c + (1 - c) min(1, phi'(z_it)^2),                                     c = .3
    fisher    v_it = s_it / 2 + S_i (c + (1 - c) min(1, phi'(z_it)^2)) / 2,                 c = .1

with s_it = E_k ||d log p_k / dz_it||^2, p = softmax(y): the Fisher information of the pre-activation, taken from the network's own
operators, and S_i its mean over the open gates. Both are of first order, which says nothing of larger errors: c and S_i keep every
sample. Rows of Y have no gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from simtool.design import SAMPLE_TILE, Design
from simtool.errors import InputError
from simtool.model import ImplicitModel
from simtool.model.adjoint import state_adjoint
from simtool.stages.sparsify.budget_options import FISHER
from simtool.stages.sparsify.folder import RunFolder
from simtool.states import States

if TYPE_CHECKING:
    from simtool.stages.sparsify.plan import Plan

_ARRAY = "row-sample-weights"
_CLOSED_GATE, _CLOSED_FISHER, _OUTPUT_SHARE = 0.3, 0.1, 0.05
# With more outputs than this the sum over k is drawn, so many times a sample.
_MOST_OUTPUTS, _DRAWS, _CHUNK = 32, 16, 1024


def write(folder: RunFolder, plan: Plan, source: States) -> None:
    """Leave the weights of all rows for the workers, as (n + q, m) float32."""
    with threadpool_limits(limits=1):  # the bytes of a product may depend on how many threads share it
        weights = of_rows(plan, source)
    with folder.new_array(_ARRAY, weights.shape, np.float32) as mapped:
        mapped[:] = weights


def stored(folder: RunFolder, rows: slice) -> np.ndarray:
    """The weights (r, m) of ``rows``."""
    return np.asarray(folder.map_array(_ARRAY)[rows], dtype=np.float64)


def means(folder: RunFolder) -> np.ndarray:
    """The mean weight of each row, (n + q,)."""
    mapped = folder.map_array(_ARRAY)
    return np.array([np.asarray(row, dtype=np.float64).mean() for row in mapped])


def of_rows(plan: Plan, source: States) -> np.ndarray:
    """The weights (n + q, m) float32 that ``plan`` asks for."""
    fisher = plan.options.weight_samples == FISHER
    weights = np.ones((plan.n + plan.q, plan.m), dtype=np.float32)
    for start in range(0, plan.m, _CHUNK):
        samples = slice(start, min(start + _CHUNK, plan.m))
        z = np.asarray(source.Z[:, samples], dtype=np.float64)
        weights[: plan.n, samples] = _open(plan, z)
    if not fisher:
        weights[: plan.n] = _CLOSED_GATE + (1.0 - _CLOSED_GATE) * weights[: plan.n]
        return weights
    information = np.empty((plan.n + plan.q, plan.m), dtype=np.float32)
    network = _network(source)
    for start in range(0, plan.m, _CHUNK):
        samples = slice(start, min(start + _CHUNK, plan.m))
        information[:, samples] = _information(network, source, samples)
    total = information.sum(axis=1, dtype=np.float64)
    opened = weights[: plan.n].sum(axis=1, dtype=np.float64)
    mean = (total[: plan.n] / np.maximum(opened, 1.0))[:, None]
    gates = _CLOSED_FISHER + (1.0 - _CLOSED_FISHER) * weights[: plan.n]
    weights[: plan.n] = 0.5 * information[: plan.n] + 0.5 * mean * gates
    weights[plan.n :] = information[plan.n :] + _OUTPUT_SHARE * total[plan.n :, None] / plan.m
    return weights


def require_operators(source: States, weight_samples: str | None) -> None:
    """Raise InputError where the weights need the network's operators, or classes, and the file lacks them."""
    if weight_samples != FISHER:
        return
    if source.header.outputs < 2:
        raise InputError(
            f"--weight-samples {FISHER} weighs samples by how sure the network is of its class, but the network of {source.path} has one "
            "output: there is no choice of a class. Use --weight-samples gate."
        )
    if not source.header.whole:
        raise InputError(
            f"--weight-samples {FISHER} follows errors to the outputs through the network's own operators, but {source.path} holds some of its "
            "states only. Extract again without --blocks, or use --weight-samples gate."
        )


def _open(plan: Plan, z: np.ndarray) -> np.ndarray:
    """min(1, phi'(z)^2), (n, k)."""
    found = np.empty_like(z)
    for block in plan.blocks:
        found[block.rows] = np.minimum(1.0, block.activation.slope(z[block.rows]) ** 2)
    return found


def _network(source: States) -> ImplicitModel:
    """The network itself, in the units of the file."""
    header = source.header
    return ImplicitModel(
        **source.teacher(),
        blocks=header.blocks,
        output_parents=header.output_parents,
        output_map=header.output_map,
        has_bias=header.has_bias,
        input_shape=header.input_shape,
    )


def _information(network: ImplicitModel, source: States, samples: slice) -> np.ndarray:
    """s (n + q, k) of ``samples``: the sum over k of p_k ||d log p_k / dz_i||^2, or the mean of as many draws."""
    y = np.asarray(source.Y[:, samples], dtype=np.float64)
    z = np.asarray(source.Z[:, samples], dtype=np.float64)
    p = np.exp(y - y.max(axis=0))
    p /= p.sum(axis=0)
    found = np.zeros((network.n + network.q, y.shape[1]))
    many = network.q > _MOST_OUTPUTS
    rng = np.random.default_rng((samples.start, network.q))
    ends = np.cumsum(p, axis=0)
    for k in range(_DRAWS if many else network.q):
        root = -p
        if many:
            labels = np.minimum((rng.random(y.shape[1]) > ends).sum(axis=0), network.q - 1)
            root[labels, np.arange(y.shape[1])] += 1.0
            root /= np.sqrt(_DRAWS)
        else:
            root[k] += 1.0
            root *= np.sqrt(p[k])
        found[: network.n] += state_adjoint(network, z, root) ** 2
        found[network.n :] += root**2
    return found


# --- rows -----------------------------------------------------------------------------------------------------------------


class Sums:
    """The weighted sums of rows of one group over its design; see :mod:`simtool.budget.weighted`."""

    def __init__(self, design: Design, targets: np.ndarray, weights: np.ndarray) -> None:
        self._design, self._targets, self._weights = design, targets, weights

    def __call__(self, row: int, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        gram, correlation, square = np.zeros((features.size, features.size)), np.zeros(features.size), 0.0
        for start in range(0, self._design.m, SAMPLE_TILE):
            samples = slice(start, start + SAMPLE_TILE)
            v = self._weights[row, samples]
            z = np.asarray(self._targets[row, samples], dtype=np.float64)
            w = self._design.features(features, samples)
            weighted = w * v
            gram += weighted @ w.T
            correlation += weighted @ z
            square += float(v @ (z * z))
        return gram, correlation, square
