"""An ONNX model with other tensors in the place of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from simtool.errors import InputError


def changed_model(model: onnx.ModelProto, changed: Mapping[str, np.ndarray], network: str) -> onnx.ModelProto:
    """``model`` with ``changed`` in the place of its tensors of these names, in their own types; nothing else differs.

    Raises InputError for a name that is neither an initializer nor the result of a Constant node.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    left = set(changed)
    for tensor in result.graph.initializer:
        if tensor.name in changed:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(_proto(changed[tensor.name], kind, tensor.name))
            left.discard(tensor.name)
    for node in result.graph.node:
        if node.op_type == "Constant" and node.output[0] in left:
            name = node.output[0]
            kind = _kind(node)
            # A Constant may hold its numbers in other attributes too (value_floats, sparse_value).
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", _proto(changed[name], kind, name)))
            left.discard(name)
    if left:
        raise InputError(f"{network} has no tensors named {', '.join(sorted(left))}.")
    return result


def _kind(node: onnx.NodeProto) -> np.dtype:
    """The type of what a Constant gives."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return np.dtype(helper.tensor_dtype_to_np_dtype(attribute.t.data_type))
        if attribute.name == "sparse_value":
            return np.dtype(helper.tensor_dtype_to_np_dtype(attribute.sparse_tensor.values.data_type))
    whole = any(attribute.name in ("value_int", "value_ints") for attribute in node.attribute)
    return np.dtype(np.int64 if whole else np.float32)


def _proto(value: np.ndarray, kind: np.dtype, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=kind, order="C"), name)
