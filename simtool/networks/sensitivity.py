"""How much each pre-activation moves the outputs: ||dy/dz_i||^2, by reverse accumulation through the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simtool.blocks import INPUT
from simtool.errors import InputError
from simtool.networks.graph import Graph

_SLICE_VALUES = 2**22  # gradients held at a time: samples x outputs x widest block


def is_acyclic(graph: Graph) -> bool:
    """Whether every node feeds on earlier nodes only (an implicit model may not)."""
    known = {INPUT}
    for node in graph.nodes:
        if any(source not in known for source, _ in node.form.terms):
            return False
        known.add(node.name)
    return True


def squared_gradients(graph: Graph, z: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sum over the k samples and all outputs of (dy/dz)^2, (size,) by node, at the pre-activations ``z`` (k, size).

    Only for acyclic graphs. Raises InputError where a gradient overflows.
    """
    total = {node.name: np.zeros(node.size) for node in graph.nodes}
    count = len(next(iter(z.values())))
    widest = max([graph.output_size, *(node.size for node in graph.nodes)])
    step = max(1, _SLICE_VALUES // (graph.output_size * widest))
    for start in range(0, count, step):
        _accumulate(graph, {name: values[start : start + step] for name, values in z.items()}, total)
    for name, values in total.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"the gradient of the outputs with respect to block {name} overflows. Check the network's weights."
            )
    return total


def _accumulate(graph: Graph, z: Mapping[str, np.ndarray], total: dict[str, np.ndarray]) -> None:
    k, q = len(next(iter(z.values()))), graph.output_size
    gradients: dict[str, np.ndarray] = {}

    def send(source: str, gradient: np.ndarray) -> None:
        if source != INPUT:
            gradients[source] = gradients[source] + gradient if source in gradients else gradient

    for source, operator in graph.output.terms:
        send(source, operator.adjoint(np.eye(q))[None])
    for node in reversed(graph.nodes):
        if node.name not in gradients:
            continue  # nothing after it depends on it
        with np.errstate(over="ignore", invalid="ignore"):
            slope = node.activation.slope(z[node.name].astype(np.float64))
            reached = gradients.pop(node.name) * slope[:, None, :]
            total[node.name] += np.square(reached).sum(axis=(0, 1))
            for source, operator in node.form.terms:
                if source != INPUT:
                    send(source, operator.adjoint(reached.reshape(k * q, -1)).reshape(k, q, -1))
