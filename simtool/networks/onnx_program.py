"""From an ONNX model to a :class:`Program`: constants computed by ONNX Runtime, nodes translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from simtool.errors import InputError
from simtool.importing import describe
from simtool.networks import onnx_layers, onnx_ops, onnx_picks, onnx_session, onnx_shapes
from simtool.networks.program import Op, Program

_WITH_WEIGHTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "RNN", "GRU", "LSTM")


def _inner_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes of the graphs that a node (If, Loop, Scan) holds, however deep."""
    graphs = [graph for item in node.attribute for graph in ([item.g] if item.HasField("g") else item.graphs)]
    found = [nested for graph in graphs for nested in graph.node]
    return found + [deep for nested in found for deep in _inner_nodes(nested)]


class Translator:
    """ONNX nodes to a :class:`Program`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: str,
        source: str,
        probe: Callable[[list[str], int], list[np.ndarray] | None],
        reasons: Mapping[str, str],
    ) -> None:
        self._probe = probe
        self._reasons = reasons
        self._model = model
        self._network = network
        self._source = source
        self._constants: dict[str, np.ndarray] = {}
        self.own: dict[str, np.ndarray] = {}  # the network's own tensors of floats
        self._roots: dict[str, frozenset[str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._turned: dict[str, str] = {}
        self._moved: dict[str, np.ndarray] | None = None

    def program(self) -> Program:
        """The program; constant sub-expressions are computed by ONNX Runtime."""
        for tensor in self._model.graph.initializer:
            self._root(tensor.name, numpy_helper.to_array(tensor))
        self._fold()
        fixed = onnx_shapes.shape_nodes(self._model, self._constants)
        self._constants |= onnx_shapes.fixed_values(fixed, self._probe)
        for node in fixed:  # a part of a weight whose bounds follow from shapes
            if node.output[0] not in self._constants:
                continue
            roots = [self._roots.get(name, frozenset()) for name in node.input]
            self._roots[node.output[0]] = frozenset().union(*roots)
        ops: list[Op] = []
        for node in self._model.graph.node:
            if node.op_type == "Split" and not node.domain and node.output[0] not in self._constants:
                ops += [self._part(node, index) for index, name in enumerate(node.output) if name]
            elif reason := next((self._reasons[name] for name in node.output if name in self._reasons), None):
                ops += [self._kept(node, name, reason) for name in node.output if name]
            elif node.output[0] not in self._constants:
                ops.append(self._translate(node))
                ops += [self._extra_output(node, name) for name in node.output[1:] if name]
        output = self._model.graph.output[0].name
        return Program(ops, self._constants, self._source, output, self._roots, self._sizes)

    def picks(self, name: str) -> np.ndarray | None:
        """For each entry of the constant ``name`` which entry of the network's own tensor it is; None for one that is computed."""
        if name in self._turned:
            before = self.picks(self._turned[name])
            return None if before is None else before.T
        if name in self.own:
            return np.arange(self.own[name].size).reshape(self.own[name].shape)
        if self._moved is None:
            self._moved = onnx_picks.moved(self._model, self._network, self._constants, self.own, self._roots)
        return self._moved.get(name)

    def _root(self, name: str, value: np.ndarray) -> None:
        self._constants[name] = value
        if value.ndim > 0 and value.dtype.kind == "f":
            self._roots[name] = frozenset({name})
            self._sizes[name] = (int(np.count_nonzero(value)), int(value.size))
            self.own[name] = value

    def _fold(self) -> None:
        """Compute every node that does not depend on the input."""
        folded: list[onnx.NodeProto] = []
        known = set(self._constants)
        for node in self._model.graph.node:
            inputs = [name for name in node.input if name]
            nested = any(
                attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for attribute in node.attribute
            )
            if (
                nested
                or (len(node.output) != 1 and node.op_type != "Split")
                or any(name not in known for name in inputs)
            ):
                continue
            folded.append(node)
            known.update(node.output)
            roots = [self._roots.get(name, frozenset()) for name in inputs]
            self._roots |= dict.fromkeys(node.output, frozenset().union(*roots))
        if not folded:
            return
        names = [name for node in folded for name in node.output]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for field in (model.graph.node, model.graph.output, model.graph.input, model.graph.value_info):
            del field[:]
        model.graph.node.extend(folded)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            values = onnx_session.opened(model, self._network, limited=True).run(names, {})
        except InputError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"the constants of {self._network} cannot be computed by ONNX Runtime: {describe(error)}. Export it again."
            ) from error
        own = {node.output[0] for node in folded if node.op_type == "Constant"}
        for name, value in zip(names, values, strict=True):
            if name in own:
                self._root(name, np.asarray(value))
            else:
                self._constants[name] = np.asarray(value)

    def _translate(self, node: onnx.NodeProto) -> Op:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        kind, indices, found = onnx_ops.meaning(
            node.domain, node.op_type, attributes, self._known_inputs(node)
        )
        operands = [node.input[i] for i in indices if i < len(node.input) and node.input[i]]
        why = self._objection(node, attributes)
        if kind == "unsupported" or why:
            kind, found = "unsupported", {"why": why} if why else found
            operands = [name for name in node.input if name]
        if kind == "map" and found["axis"] is None:
            found["axis"] = 1 if onnx_session.opset(self._model) < 13 else -1
        if found.pop("transpose", False) and operands[1] in self._constants:
            turned = f"{operands[1]}.T"
            self._constants[turned] = self._constants[operands[1]].T
            self._roots[turned] = self._roots.get(operands[1], frozenset())
            self._turned[turned] = operands[1]
            operands[1] = turned
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        return Op(kind, operator, node.name or node.output[0], tuple(operands), node.output[0], found)

    def _known_inputs(self, node: onnx.NodeProto) -> list[np.ndarray | None]:
        """The constants among the inputs; None for what is computed, empty for what is left out."""
        return [self._constants.get(name) if name else np.empty(0) for name in node.input]

    def _part(self, node: onnx.NodeProto, index: int) -> Op:
        """One of the results of a Split."""
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        inputs = self._known_inputs(node)
        kind, _, found = onnx_layers.part(attributes, inputs, len(node.output), index)
        name = node.output[index]
        return Op(kind, node.op_type, node.name or name, (node.input[0],), name, found)

    @staticmethod
    def _kept(node: onnx.NodeProto, name: str, why: str) -> Op:
        """One result of a recurrent node that could not be written out."""
        inputs = tuple(i for i in node.input if i)
        return Op("unsupported", node.op_type, node.name or name, inputs, name, {"why": why})

    def _extra_output(self, node: onnx.NodeProto, name: str) -> Op:
        """A second output (the mask of a dropout, the indices of a pooling): nothing that is taken has one that matters."""
        values = tuple(i for i in node.input if i and i not in self._constants)
        why = {"why": f"its further output {name} is used"}
        return Op("unsupported", node.op_type, node.name or node.output[0], values, name, why)

    def _objection(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str | None:
        """Why a node that is taken in general is refused here."""
        if inner := _inner_nodes(node):
            layers = sum(nested.op_type in _WITH_WEIGHTS for nested in inner)
            return f"it runs {len(inner)} nodes of its own, {layers} of them with weights, which are not looked into"
        if node.op_type == "Dropout":
            training = self._constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            if (training is not None and bool(training)) or (
                len(node.input) > 2 and node.input[2] and training is None
            ):
                return "dropout in training mode"
        if node.op_type == "Cast" and attributes.get("to") not in onnx_session.FLOATS:
            return "casts to a type that is not float or double"
        return None
