"""Which entries of an ONNX file's own tensors its folded constants are: the nodes that only move values are run on indices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from simtool.errors import InputError
from simtool.importing import describe
from simtool.networks import onnx_session

_MOVES = frozenset(
    (
        "Transpose",
        "Slice",
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Split",
        "Gather",
        "Cast",
    )
)


def moved(
    model: onnx.ModelProto,
    network: str,
    constants: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    roots: Mapping[str, frozenset[str]],
) -> dict[str, np.ndarray]:
    """By the names of the constants that are ``own`` tensors with their values elsewhere: which entry each of theirs is.

    Values may agree by chance (a symmetric matrix and its transpose), indices do not. A constant that a node computes has none.
    """
    nodes: list[onnx.NodeProto] = []
    known = set(own)
    given: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if not _moves(node, known, constants) or any(roots.get(name) for name in node.input[1:]):
            continue
        source = node.input[0]
        if source in own:
            given[source] = np.arange(own[source].size).reshape(own[source].shape)
        if node.op_type == "Cast":
            nodes.append(helper.make_node("Identity", [source], list(node.output)))
        else:
            nodes.append(node)
            given |= {name: constants[name] for name in node.input[1:] if name}
        known.update(name for name in node.output if name)
    names = [name for node in nodes for name in node.output if name]
    if not names:
        return {}
    tensors = [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in given.items()]
    graph = helper.make_graph(nodes, "indices", [], [onnx.ValueInfoProto(name=n) for n in names], tensors)
    indices = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        values = onnx_session.opened(indices, network, limited=True).run(names, {})
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(
            f"ONNX Runtime cannot follow how {network} reads its weights: {describe(error)}. Export it again."
        ) from error
    return dict(zip(names, values, strict=True))


def _moves(node: onnx.NodeProto, known: set[str], constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a folded node puts values of a known tensor elsewhere and changes none, whatever they are."""
    if node.op_type not in _MOVES or node.domain not in ("", "ai.onnx") or not node.input:
        return False
    if node.input[0] not in known or any(name and name not in constants for name in node.input[1:]):
        return False
    if any(name and name not in constants for name in node.output):
        return False
    # A cast to a type that holds every value of the old one.
    before, after = constants[node.input[0]].dtype, constants[node.output[0]].dtype
    return node.op_type != "Cast" or np.can_cast(before, after, "safe")
