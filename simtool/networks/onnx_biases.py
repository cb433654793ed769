"""Biases that an ONNX file shares: exporters write equal tensors (the zeros of several layers) only once.

A Gemm or Conv whose bias something else reads too is written as a product and a sum, so that its weight is still a layer of its own.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_FUSED = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2}


def apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the shared biases added by nodes of their own; the same model where there are none."""
    # An Identity is another name of the same tensor.
    names = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    readers: dict[str, set[tuple[str, ...]]] = {}
    for node in model.graph.node:
        if node.op_type == "Identity":
            continue
        inputs = [names.get(name, name) for name in node.input]
        for name in inputs:
            # The same layer used again is one reader.
            own = (node.op_type, *inputs[1:]) if node.op_type in _FUSED else ("", *node.output)
            readers.setdefault(name, set()).add(own)
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    ranks |= {name: ranks[source] for name, source in names.items() if source in ranks}
    changed = [node for node in model.graph.node if _is_shared(node, names, readers, ranks)]
    if not changed:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if any(node is other for other in changed):
            nodes, constants = _split(node, ranks[node.input[1]])
            result.graph.node.extend(nodes)
            result.graph.initializer.extend(constants)
        else:
            result.graph.node.append(node)
    return result


def _is_shared(
    node: onnx.NodeProto,
    names: dict[str, str],
    readers: dict[str, set[tuple[str, ...]]],
    ranks: dict[str, int],
) -> bool:
    if node.op_type not in _FUSED or node.domain or len(node.input) < 3 or not node.input[2]:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    plain = attributes.get("beta", 1.0) == 1.0
    known = node.input[1] in ranks and ranks.get(node.input[2]) == 1
    return plain and known and len(readers[names.get(node.input[2], node.input[2])]) > 1


def _split(node: onnx.NodeProto, rank: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    name = node.output[0]
    product = onnx.NodeProto()
    product.CopyFrom(node)
    del product.input[2:]
    product.output[0] = f"{name}/without_bias"
    bias, nodes, constants = node.input[2], [product], []
    if node.op_type != "Gemm":
        shape = numpy_helper.from_array(np.array([-1] + [1] * (rank - 2)), f"{name}/bias_shape")
        constants.append(shape)
        nodes.append(helper.make_node("Reshape", [bias, shape.name], [f"{name}/bias"]))
        bias = f"{name}/bias"
    nodes.append(helper.make_node("Add", [product.output[0], bias], [name], name=f"{node.name or name}/bias"))
    return nodes, constants
