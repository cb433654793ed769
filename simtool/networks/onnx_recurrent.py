"""The RNN, GRU and LSTM nodes of an ONNX file written out step by step, so that their matrices are linear layers with many uses.

The written-out model reads the file's own tensors W, R and B, so a row of a layer is a row of theirs. What cannot be written out stays a
node, with the reason why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from simtool.networks.onnx_session import opset

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_MOST_STEPS = 512
# The shape that a tensor has when the model runs on a few zeros.
Sizes = Callable[[str], tuple[int, ...] | None]


def unrolled(model: onnx.ModelProto, sizes: Sizes) -> tuple[onnx.ModelProto, dict[str, str]]:
    """``model`` without the recurrent nodes that can be written out, and by their output the reasons of those that cannot."""
    if not any(_is_recurrent(node) for node in model.graph.node):
        return model, {}
    result = onnx.ModelProto()
    why: dict[str, str] = {}
    result.CopyFrom(model)
    del result.graph.node[:]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not _is_recurrent(node):
            result.graph.node.append(node)
            continue
        shape = sizes(node.input[0])
        reason = _objection(node, constants, shape)
        if reason is None and shape is not None:
            writer = _Writer(node, _attributes(node), shape, opset(model) >= 13)
            writer.write()
            result.graph.node.extend(writer.nodes)
            result.graph.initializer.extend(writer.constants)
        else:
            result.graph.node.append(node)
            why |= {name: str(reason) for name in node.output if name}
    return result, why


def _is_recurrent(node: onnx.NodeProto) -> bool:
    return node.op_type in _GATES and node.domain in ("", "ai.onnx")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _input(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if len(node.input) > index else ""


def _objection(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], shape: tuple[int, ...] | None
) -> str | None:
    """Why a recurrent node is not written out."""
    attributes = _attributes(node)
    if shape is None or len(shape) != 3:
        return "the shape of its input is not known before it runs"
    steps = shape[1 if attributes.get("layout", 0) else 0]
    if not 1 <= steps <= _MOST_STEPS:
        return f"it takes {steps} steps, from 1 to {_MOST_STEPS} are written out"
    lengths = _input(node, 4)
    if lengths:
        fixed = constants.get(lengths)
        if fixed is None or not np.all(numpy_helper.to_array(fixed) == steps):
            return "its sequences have lengths of their own"
    if _input(node, 7):
        return "it has peephole weights"
    if attributes.get("clip") or attributes.get("input_forget"):
        return "it clips its gates, or couples two of them"
    used = tuple(name.decode() for name in attributes.get("activations", []))
    for at in range(0, len(used), max(1, len(_ACTIVATIONS.get(node.op_type, ("one",))))):
        own = _ACTIVATIONS.get(node.op_type)
        if (own is not None and used[at : at + len(own)] != own) or (
            own is None and used[at] not in ("Tanh", "Relu")
        ):
            return f"its activations are {', '.join(used)}"
    if "hidden_size" not in attributes:
        return "it does not give its hidden_size"
    return None


@dataclass
class _Writer:
    """Writes the nodes that one recurrent node stands for; all tensors it makes begin with the name of its first output."""

    node: onnx.NodeProto
    attributes: dict[str, Any]
    shape: tuple[int, ...]
    axes_are_inputs: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hidden = int(self.attributes["hidden_size"])
        self.batch_first = bool(self.attributes.get("layout", 0))
        self.gates = _GATES[self.node.op_type]
        self.prefix = next(name for name in self.node.output if name)
        self.made = 0

    def write(self) -> None:
        direction = self.attributes.get("direction", b"forward").decode()
        backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
        x = self.node.input[0]
        if self.batch_first:
            x = self.add("Transpose", x, perm=[1, 0, 2])
        steps = self.shape[1 if self.batch_first else 0]
        taken = [self.add("Gather", x, self.number(step), axis=0) for step in range(steps)]
        results = [self.direction(at, taken, back) for at, back in enumerate(backwards)]
        outputs = [[found[0][step] for found in results] for step in range(steps)]
        names = [*self.node.output, "", "", ""]
        if names[0]:
            rows = [self.joined([self.unsqueezed(value) for value in row]) for row in outputs]
            self.give(names[0], self.joined([self.unsqueezed(row) for row in rows]), [2, 0, 1, 3])
        for index, name in enumerate(names[1:3]):
            if name:
                self.give(
                    name, self.joined([self.unsqueezed(found[1][index]) for found in results]), [1, 0, 2]
                )

    def direction(self, at: int, taken: list[str], backwards: bool) -> tuple[list[str], list[str]]:
        """(the outputs in the order of the steps, the final states) of direction number ``at``."""
        weight, recurrent = (self.add("Gather", self.node.input[i], self.number(at), axis=0) for i in (1, 2))
        own = (
            self.rows(self.add("Gather", _input(self.node, 3), self.number(at), axis=0))
            if _input(self.node, 3)
            else None
        )
        states = [
            self.state(5 + index, at, taken[0]) for index in range(2 if self.node.op_type == "LSTM" else 1)
        ]
        cell = {"RNN": self.rnn, "GRU": self.gru, "LSTM": self.lstm}[self.node.op_type]
        turned = self.add("Transpose", weight, perm=[1, 0])
        outputs = []
        for x in reversed(taken) if backwards else taken:
            given = self.add("MatMul", x, turned)
            given = given if own is None else self.add("Add", given, own(0, self.gates))
            states = cell(at, given, states, recurrent, own)
            outputs.append(states[0])
        return outputs[::-1] if backwards else outputs, states

    def rnn(self, at: int, given: str, states: list[str], recurrent: str, own: Any) -> list[str]:
        used = self.attributes.get("activations", [])
        name = used[at].decode() if len(used) > at else "Tanh"
        return [self.add(name, self.recurred(given, states[0], recurrent, own, 0, 1))]

    def lstm(self, at: int, given: str, states: list[str], recurrent: str, own: Any) -> list[str]:
        total = self.recurred(given, states[0], recurrent, own, 0, 4)
        take, give, keep, new = (self.gate(total, index) for index in range(4))
        kept = self.add("Mul", self.add("Sigmoid", keep), states[1])
        c = self.add("Add", kept, self.add("Mul", self.add("Sigmoid", take), self.add("Tanh", new)))
        return [self.add("Mul", self.add("Sigmoid", give), self.add("Tanh", c)), c]

    def gru(self, at: int, given: str, states: list[str], recurrent: str, own: Any) -> list[str]:
        (h,) = states
        new = self.gate(given, 2)
        if self.attributes.get("linear_before_reset", 0):
            product = self.add("MatMul", h, self.add("Transpose", recurrent, perm=[1, 0]))
            both = [self.add("Add", self.gate(given, index), self.gate(product, index)) for index in (0, 1)]
            if own is not None:
                both = [self.add("Add", gate, own(3 + index, 4 + index)) for index, gate in enumerate(both)]
            keep, reset = (self.add("Sigmoid", gate) for gate in both)
            inner = self.gate(product, 2)
            inner = inner if own is None else self.add("Add", inner, own(5, 6))
            new = self.add("Tanh", self.add("Add", new, self.add("Mul", reset, inner)))
        else:
            first = self.add("Gather", given, self.span(0, 2), axis=1)
            gates = self.recurred(first, h, recurrent, own, 0, 2)
            keep, reset = (self.add("Sigmoid", self.gate(gates, index)) for index in (0, 1))
            new = self.add("Tanh", self.recurred(new, self.add("Mul", reset, h), recurrent, own, 2, 3))
        # (1 - keep) * new + keep * h
        return [self.add("Add", new, self.add("Mul", keep, self.add("Sub", h, new)))]

    def recurred(self, given: str, h: str, recurrent: str, own: Any, first: int, last: int) -> str:
        """``given`` and what the gates ``first`` to ``last`` of the recurrent matrix make of ``h``, with its bias."""
        rows = (
            recurrent
            if last - first == self.gates
            else self.add("Gather", recurrent, self.span(first, last), axis=0)
        )
        product = self.add("MatMul", h, self.add("Transpose", rows, perm=[1, 0]))
        total = self.add("Add", given, product)
        return total if own is None else self.add("Add", total, own(self.gates + first, self.gates + last))

    def rows(self, bias: str) -> Callable[[int, int], str]:
        """The part of a direction's biases (twice the gates) from one gate to before another."""
        return lambda first, last: self.add("Gather", bias, self.span(first, last), axis=0)

    def gate(self, gates: str, index: int) -> str:
        return self.add("Gather", gates, self.span(index, index + 1), axis=1)

    def state(self, index: int, at: int, like: str) -> str:
        """The first state of a direction: what the node is given, else zeros."""
        name = _input(self.node, index)
        if name:
            return self.add("Gather", name, self.number(at), axis=1 if self.batch_first else 0)
        samples = self.add("Gather", self.add("Shape", like), self.integers([0]), axis=0)
        shape = self.add("Concat", samples, self.integers([self.hidden]), axis=0)
        return self.add("ConstantOfShape", shape)

    # --- nodes and constants ----------------------------------------------------------------------------------------------

    def name(self) -> str:
        self.made += 1
        return f"{self.prefix}/step_by_step_{self.made}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def integers(self, values: Any) -> str:
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
        return name

    def number(self, value: int) -> str:
        return self.integers(value)

    def span(self, first: int, last: int) -> str:
        return self.integers(np.arange(first * self.hidden, last * self.hidden))

    def unsqueezed(self, value: str) -> str:
        if self.axes_are_inputs:
            return self.add("Unsqueeze", value, self.integers([0]))
        return self.add("Unsqueeze", value, axes=[0])

    def joined(self, values: list[str]) -> str:
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=0)

    def give(self, name: str, value: str, batch_first: list[int]) -> None:
        """``value`` under the name that the node gave it."""
        if self.batch_first:
            self.nodes.append(helper.make_node("Transpose", [value], [name], name=name, perm=batch_first))
        else:
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
