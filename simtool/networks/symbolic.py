"""The meaning of a program: every tensor is an affine form of the input and of the activations before it.

A linear layer that follows a linear layer, or feeds on a sum, gets an ``identity`` block in between, so that weights are never
multiplied together and the parameters of the network stay countable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from simtool import activations
from simtool.activations import Activation
from simtool.blocks import INPUT
from simtool.errors import InputError, UnsupportedOperator
from simtool.networks.graph import AffineForm, Graph, Node, OperatorUse
from simtool.networks.operators import Dense, Diagonal, LinearOperator, identity
from simtool.networks.program import Op, Program

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor as an affine form; ``shape`` is one sample's, ``tensor`` the program's tensor that holds it."""

    terms: tuple[tuple[str, LinearOperator], ...]
    bias: np.ndarray | None
    shape: Shape
    tensor: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def form(self) -> AffineForm:
        return AffineForm(self.terms, self.bias, self.size)

    @property
    def factor(self) -> np.ndarray | None:
        """The diagonal, if this is one source times a diagonal and nothing else."""
        if len(self.terms) == 1 and self.bias is None and isinstance(self.terms[0][1], Diagonal):
            return self.terms[0][1].factor
        return None

    @property
    def is_plain(self) -> bool:
        """Whether this is the input or one node's value, unchanged."""
        factor = self.factor
        return factor is not None and bool(np.all(factor == 1.0))


class Interpreter:
    """Evaluates a program into a :class:`Graph`; ``shapes`` gives each tensor's shape per sample, None where it has none."""

    def __init__(self, program: Program, shapes: dict[str, Shape | None], input_shape: Shape) -> None:
        self._program = program
        self._shapes = shapes
        self._input_shape = input_shape
        self._nodes: list[Node] = []
        self._uses: list[OperatorUse] = []
        self._roots: set[str] = set()
        self._values: dict[str, _Value] = {}

    def run(self) -> Graph:
        """The graph. Raises UnsupportedOperator for what is not affine between activations."""
        program = self._program
        source = _Value(((INPUT, identity(prod(self._input_shape))),), None, self._input_shape, program.input)
        self._values[program.input] = source
        if program.output in program.constants:
            raise UnsupportedOperator("the network's output does not depend on its input. Check the network.")
        counts = program.uses()
        output_map: str | None = None
        for op in program.ops:
            if op.output == program.output and (name := self._trailing_map(op)) is not None:
                output_map = name
                self._values[op.output] = self._values[op.inputs[0]]
                self._note(op, "map")
                continue
            value = self._evaluate(op)
            if value.size == 0:
                raise InputError(
                    f"the operator {op.title} has the width 0: its result has the shape {value.shape} a sample. Every layer needs at "
                    "least one unit. Check the sizes that the network is made with (--model-arg)."
                )
            # A tensor with several readers becomes a block once, instead of its weights being repeated in each.
            if counts[op.output] > 1 and not value.is_plain:
                value = self._materialise(value)
            self._values[op.output] = value
        result = self._values[program.output]
        sizes = [program.sizes[root] for root in sorted(self._roots)]
        return Graph(
            input_shape=self._input_shape,
            nodes=tuple(self._nodes),
            output=result.form,
            output_tensor=result.tensor,
            output_map=output_map,
            baseline_nnz=sum(nonzero for nonzero, _ in sizes),
            baseline_parameters=sum(entries for _, entries in sizes),
            operators=tuple(self._uses),
        )

    def _trailing_map(self, op: Op) -> str | None:
        """The output map that the network's last operator is, if it is one."""
        if op.inputs[0] not in self._values:
            return None
        if op.kind == "activation" and op.attributes["activation"].name == "sigmoid":
            return "sigmoid" if not self._values[op.inputs[0]].is_plain else None
        if op.kind != "map":
            return None
        shape = self._values[op.inputs[0]].shape
        if len(shape) != 1 or op.attributes["axis"] not in (-1, 1):
            raise self._refuse(
                op,
                f"acts along axis {op.attributes['axis']} of samples of shape {shape}, not along the classes",
            )
        return str(op.attributes["map"])

    def _note(self, op: Op, role: str) -> None:
        self._uses.append(OperatorUse(op.operator, op.name, role))

    def _refuse(self, op: Op, why: str) -> UnsupportedOperator:
        text = f"{op.title}: {why}"
        return UnsupportedOperator(
            f"the operator {text}. Networks of linear layers, sums and elementwise activations can be used; "
            "rewrite this part, or cut the network before it.",
            refused=(text,),
        )

    def _shape(self, op: Op) -> Shape:
        shape = self._shapes.get(op.output)
        if shape is None:
            raise self._refuse(op, "its result does not keep the batch as its first dimension")
        return shape

    def _evaluate(self, op: Op) -> _Value:
        if op.kind == "map":
            raise self._refuse(op, f"{op.attributes['map']} is only taken as the last operator")
        role = {"linear": "linear", "matmul": "linear", "activation": "activation", "pass": "passed"}
        self._note(op, role.get(op.kind, "arithmetic"))
        if op.kind in ("add", "sub", "mul", "div"):
            return getattr(self, f"_{'sum' if op.kind in ('add', 'sub') else 'product'}")(op)
        result: _Value = getattr(self, f"_{op.kind}")(op)
        return result

    def _operand(self, op: Op, index: int) -> _Value:
        name = op.inputs[index]
        if name not in self._values:
            raise self._refuse(op, f"its operand {name} is a constant where a layer's value is needed")
        return self._values[name]

    def _constant(self, op: Op, index: int) -> np.ndarray:
        name = op.inputs[index]
        if name not in self._program.constants:
            raise self._refuse(op, f"its operand {name} is computed from the input, a fixed weight is needed")
        return self._program.constants[name].astype(np.float64)

    def _count(self, name: str) -> None:
        self._roots |= self._program.roots.get(name, frozenset())

    def _materialise(self, value: _Value) -> _Value:
        return self._add_node(activations.make("identity"), value, value.tensor)

    def _add_node(self, activation: Activation, value: _Value, x_tensor: str) -> _Value:
        name = f"{activation.name}_{len(self._nodes) + 1}"
        shape = value.shape or (1,)
        self._nodes.append(Node(name, activation, value.form, shape, value.tensor, x_tensor))
        return _Value(((name, identity(value.size)),), None, value.shape, x_tensor)

    def _activation(self, op: Op) -> _Value:
        return self._add_node(op.attributes["activation"], self._operand(op, 0), op.output)

    def _pass(self, op: Op) -> _Value:
        value, shape = self._operand(op, 0), self._shape(op)
        if prod(shape) != value.size:
            raise self._refuse(op, f"turns samples of shape {value.shape} into {shape}")
        return replace(value, shape=shape, tensor=op.output)

    def _neg(self, op: Op) -> _Value:
        value = self._operand(op, 0)
        return self._scale(value, -np.ones(value.size), op.output)

    def _scale(self, value: _Value, factor: np.ndarray, tensor: str) -> _Value:
        terms = tuple((source, operator.scaled(factor)) for source, operator in value.terms)
        return _Value(terms, None if value.bias is None else factor * value.bias, value.shape, tensor)

    def _matmul(self, op: Op) -> _Value:
        value, weight = self._operand(op, 0), self._constant(op, 1)
        if weight.ndim != 2:
            raise self._refuse(op, f"its weight has the shape {weight.shape}, a matrix is needed")
        return self._apply_weight(op, value, weight.T)

    def _linear(self, op: Op) -> _Value:
        value, weight = self._operand(op, 0), self._constant(op, 1)
        if weight.ndim != 2:
            raise self._refuse(op, f"its weight has the shape {weight.shape}, a matrix is needed")
        result = self._apply_weight(op, value, weight * float(op.attributes.get("alpha", 1.0)))
        if len(op.inputs) < 3:
            return result
        bias = self._constant(op, 2) * float(op.attributes.get("beta", 1.0))
        self._count(op.inputs[2])
        return replace(result, bias=self._broadcast(op, bias, result.shape))

    def _apply_weight(self, op: Op, value: _Value, weight: np.ndarray) -> _Value:
        if not value.shape or value.shape[-1] != value.size or weight.shape[1] != value.size:
            raise self._refuse(
                op,
                f"a weight for {weight.shape[1]} values meets samples of shape {value.shape}; only flat vectors are taken",
            )
        self._count(op.inputs[1])
        factor = value.factor
        if factor is None:
            value = self._materialise(value)
            factor = np.ones(value.size)
        dense = Dense(np.ascontiguousarray(weight * factor))
        shape = (*value.shape[:-1], int(weight.shape[0]))
        return _Value(((value.terms[0][0], dense),), None, shape, op.output)

    def _broadcast(self, op: Op, constant: np.ndarray, shape: Shape) -> np.ndarray:
        """``constant`` as a flat vector for samples of ``shape``; the batch axis must not be varied."""
        try:
            whole = (
                np.broadcast_to(constant, (1, *shape)) if constant.ndim else np.full((1, *shape), constant)
            )
        except ValueError:
            raise self._refuse(
                op, f"a constant of shape {constant.shape} does not fit samples of shape {shape}"
            ) from None
        return np.ascontiguousarray(whole, dtype=np.float64).reshape(-1)

    def _sum(self, op: Op) -> _Value:
        weight = float(op.attributes.get("alpha", 1.0)) * (1.0 if op.kind == "add" else -1.0)
        first, second = (name in self._values for name in op.inputs)
        if first and second:
            left, right = self._operand(op, 0), self._operand(op, 1)
            if left.shape != right.shape:
                raise self._refuse(op, f"adds samples of shapes {left.shape} and {right.shape}")
            right = self._scale(right, np.full(right.size, weight), op.output) if weight != 1.0 else right
            biases = [bias for bias in (left.bias, right.bias) if bias is not None]
            bias = np.sum(biases, axis=0) if biases else None
            return _Value(_merge(left.terms + right.terms), bias, left.shape, op.output)
        if first:
            value, added, name = self._operand(op, 0), weight * self._constant(op, 1), op.inputs[1]
        else:
            value, added, name = self._operand(op, 1), self._constant(op, 0), op.inputs[0]
            if weight != 1.0:
                value = self._scale(value, np.full(value.size, weight), op.output)
        vector = self._broadcast(op, added, value.shape)
        self._count(name)
        return replace(value, bias=vector if value.bias is None else value.bias + vector, tensor=op.output)

    def _product(self, op: Op) -> _Value:
        first, second = (name in self._values for name in op.inputs)
        if first and second:
            raise self._refuse(op, "multiplies or divides two values that both depend on the input")
        if op.kind == "div" and not first:
            raise self._refuse(op, "divides by a value that depends on the input")
        value, constant = self._operand(op, int(not first)), self._constant(op, int(first))
        name = op.inputs[int(first)]
        if op.kind == "div":
            if np.any(constant == 0):
                raise self._refuse(op, "divides by a constant that holds a zero")
            constant = 1.0 / constant
        self._count(name)
        return self._scale(value, self._broadcast(op, constant, value.shape), op.output)


def _merge(terms: tuple[tuple[str, LinearOperator], ...]) -> tuple[tuple[str, LinearOperator], ...]:
    """``terms`` with the diagonal operators of one source added up (x + x is 2x)."""
    merged: list[tuple[str, LinearOperator]] = []
    for source, operator in terms:
        for index, (other_source, other) in enumerate(merged):
            if source == other_source and isinstance(operator, Diagonal) and isinstance(other, Diagonal):
                merged[index] = (source, Diagonal(operator.factor + other.factor))
                break
        else:
            merged.append((source, operator))
    return tuple(merged)
