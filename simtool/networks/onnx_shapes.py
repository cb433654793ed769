"""What an ONNX file computes from the shapes of its tensors: exporters write the bounds of a slice, or a table of positions, that way."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import onnx

BATCHES = (2, 3, 5)


def shape_nodes(model: onnx.ModelProto, constants: Container[str]) -> list[onnx.NodeProto]:
    """The nodes that depend on the input by the shapes of tensors alone, in order."""
    found: list[onnx.NodeProto] = []
    names: set[str] = set()
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        nested = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if node.domain or nested or len(node.output) != 1:
            continue
        known = all(name in names or name in constants for name in inputs)
        if node.op_type == "Shape" or (known and any(name in names for name in inputs)):
            found.append(node)
            names.add(node.output[0])
    return found


def fixed_values(
    nodes: list[onnx.NodeProto], probe: Callable[[list[str], int], list[np.ndarray] | None]
) -> dict[str, np.ndarray]:
    """The values of ``nodes`` that are the same for every number of samples; ``probe`` runs zeros, and gives None where that fails."""
    names = [node.output[0] for node in nodes]
    if not names:
        return {}
    runs = [probe(names, batch) for batch in BATCHES]
    first, others = runs[0], runs[1:]
    if first is None:
        return {}
    return {
        name: value
        for at, (name, value) in enumerate(zip(names, first, strict=True))
        if all(other is not None and np.array_equal(value, other[at]) for other in others)
    }
