"""The loop over a program: every operator's rule gives its result's affine form, and the activations become nodes.

A linear layer that follows a linear layer, or feeds on a sum, gets an ``identity`` block in between, so that weights are never
multiplied together and the parameters of the network stay countable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from simtool import activations
from simtool.activations import Activation
from simtool.blocks import INPUT
from simtool.errors import InputError, UnsupportedOperator
from simtool.networks.graph import Graph, Node, OperatorUse
from simtool.networks.layouts import Layout
from simtool.networks.operators import Shape, identity
from simtool.networks.program import Op, Program
from simtool.networks.symbolic import affine, layers, piecewise, pool, shape
from simtool.networks.symbolic.value import MOST_VALUES, Value

Rule = Callable[["Interpreter", Op], Value]

RULES: dict[str, Rule] = {**affine.RULES, **layers.RULES, **shape.RULES, **pool.RULES, **piecewise.RULES}
_ROLES = {
    **dict.fromkeys(("linear", "matmul", "convolution"), "linear"),
    **dict.fromkeys(
        ("activation", "clamp", "hardswish", "maximum", "minimum", "max_pool", "max_over"), "activation"
    ),
    **dict.fromkeys(shape.RULES, "fixed"),
    **dict.fromkeys(pool.FIXED, "fixed"),
    "pass": "passed",
}


class Interpreter:
    """Evaluates a program into a :class:`Graph`; ``layouts`` says where each tensor has its samples, None where they are not apart."""

    def __init__(self, program: Program, layouts: Mapping[str, Layout | None], input_shape: Shape) -> None:
        self._program = program
        self._layouts = layouts
        self._input_shape = input_shape
        self._nodes: list[Node] = []
        self._uses: list[OperatorUse] = []
        self._roots: set[str] = set()
        self._values: dict[str, Value] = {}

    def run(self) -> Graph:
        """The graph. Raises UnsupportedOperator for what is not affine between activations."""
        program = self._program
        source = Value(((INPUT, identity(prod(self._input_shape))),), None, self._input_shape, program.input)
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
            self._values[op.output] = self.plain(value) if counts[op.output] > 1 else value
        result = self._values[program.output]
        if result.batch != 0:
            raise self.refuse(
                program.ops[-1], f"leaves the samples of the batch on axis {result.batch}, not on the first"
            )
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
            input_tensor=program.input,
        )

    def _trailing_map(self, op: Op) -> str | None:
        """The output map that the network's last operator is, if it is one."""
        if op.inputs[0] not in self._values:
            return None
        if op.kind == "activation" and op.attributes["activation"].name == "sigmoid":
            return "sigmoid" if not self._values[op.inputs[0]].is_identity else None
        if op.kind != "map":
            return None
        shape, batch = self._values[op.inputs[0]].shape, self._values[op.inputs[0]].batch
        if batch or len(shape) != 1 or op.attributes["axis"] not in (-1, 1):
            raise self.refuse(
                op,
                f"acts along axis {op.attributes['axis']} of samples of shape {shape}, not along the classes",
            )
        return str(op.attributes["map"])

    def _note(self, op: Op, role: str) -> None:
        self._uses.append(OperatorUse(op.operator, op.name, role))

    def _evaluate(self, op: Op) -> Value:
        if op.kind == "map":
            raise self.refuse(op, f"{op.attributes['map']} is only taken as the last operator")
        layout = self._layouts.get(op.output)
        shape = None if layout is None else layout.whole
        if shape is not None and prod(shape) > MOST_VALUES:
            raise self.refuse(
                op, f"its result has the shape {shape}, more than {MOST_VALUES} values a sample"
            )
        if op.kind == "expand" and self.has_value(op.inputs[0]) and shape == self.operand(op, 0).shape:
            self._note(op, "passed")
        else:
            self._note(op, _ROLES.get(op.kind, "arithmetic"))
        try:
            value = RULES[op.kind](self, op)
        except (ValueError, IndexError, ZeroDivisionError) as error:  # attributes that do not fit the shapes
            raise self.refuse(op, f"its attributes do not fit its operands ({error})") from error
        if shape is not None and value.shape != shape:
            raise self.refuse(
                op, f"it gives samples of shape {shape}, its operands should give {value.shape}"
            )
        if layout is not None and shape is not None and value.batch != layout.axis:
            raise self.refuse(
                op, f"its samples lie on axis {layout.axis}, those of its operands on axis {value.batch}"
            )
        return value

    # --- what the rules use ---------------------------------------------------------------------------------------------

    def refuse(self, op: Op, why: str) -> UnsupportedOperator:
        """The error that names ``op``, to be raised."""
        text = f"{op.title}: {why}"
        return UnsupportedOperator(
            f"the operator {text}. Networks of linear layers, convolutions, pooling, sums and elementwise activations can be used; "
            "rewrite this part, or cut the network before it.",
            refused=(text,),
        )

    def shape(self, op: Op) -> Shape:
        """One sample's shape of the result of ``op``."""
        layout = self._layouts.get(op.output)
        if layout is None or layout.whole is None:
            raise self.refuse(
                op, "its result does not keep the samples of the batch apart on an axis of their own"
            )
        return layout.whole

    def batch(self, op: Op) -> int:
        """The axis that the samples have in the result of ``op``."""
        layout = self._layouts.get(op.output)
        return 0 if layout is None else layout.axis

    def needs_batch_first(self, op: Op, value: Value) -> None:
        """Refuse ``op`` unless ``value`` has the samples on its first axis."""
        if value.batch:
            raise self.refuse(op, f"works on samples that lie on axis {value.batch}")

    def has_value(self, name: str) -> bool:
        """Whether the tensor ``name`` depends on the input."""
        return name in self._values

    def operand(self, op: Op, index: int) -> Value:
        """An operand that depends on the input."""
        name = op.inputs[index]
        if name not in self._values:
            raise self.refuse(op, f"its operand {name} is a constant where a layer's value is needed")
        return self._values[name]

    def constant(self, op: Op, index: int) -> np.ndarray:
        """An operand that does not, float64."""
        name = op.inputs[index]
        if name not in self._program.constants:
            raise self.refuse(op, f"its operand {name} is computed from the input, a fixed weight is needed")
        return self._program.constants[name].astype(np.float64)

    def count(self, name: str) -> None:
        """The constant ``name`` is a parameter of the network."""
        self._roots |= self._program.roots.get(name, frozenset())

    def broadcast(self, op: Op, constant: np.ndarray, value: Value) -> np.ndarray:
        """``constant`` as a flat vector for samples like ``value``; it must not vary with the sample."""
        try:
            whole = np.broadcast_to(constant, value.full)
        except ValueError:
            raise self.refuse(
                op, f"a constant of shape {constant.shape} does not fit samples of shape {value.shape}"
            ) from None
        return np.ascontiguousarray(whole, dtype=np.float64).reshape(-1)

    def plain(self, value: Value) -> Value:
        """``value`` where it is plain or a constant, else an identity block of it."""
        if value.is_plain or not value.terms:
            return value
        return self.add_node(activations.make("identity"), value, value.tensor)

    def add_node(self, activation: Activation, value: Value, x_tensor: str, label: str = "") -> Value:
        """A new node: ``activation`` of ``value``. ``x_tensor`` holds it in the reader's program ("": it must be computed)."""
        if not value.terms:  # a constant stays one
            bias = np.zeros(value.size) if value.bias is None else value.bias
            return replace(value, bias=activation(bias), tensor=x_tensor)
        name = f"{label or activation.name}_{len(self._nodes) + 1}"
        shape = value.shape or (1,)
        self._nodes.append(Node(name, activation, value.form, shape, value.tensor, x_tensor))
        return Value(((name, identity(value.size)),), None, value.shape, x_tensor, value.batch)
