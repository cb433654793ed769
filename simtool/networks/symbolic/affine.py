"""Rules of arithmetic: activations, sums, products with constants, and what changes no value."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from simtool.networks.program import Op
from simtool.networks.symbolic.shape import common_shape, expanded
from simtool.networks.symbolic.value import Value

if TYPE_CHECKING:
    from simtool.networks.symbolic.interpreter import Interpreter, Rule


def _activation(run: Interpreter, op: Op) -> Value:
    return run.add_node(op.attributes["activation"], run.operand(op, 0), op.output)


def _pass(run: Interpreter, op: Op) -> Value:
    value, shape, batch = run.operand(op, 0), run.shape(op), run.batch(op)
    changed = replace(value, shape=shape, tensor=op.output, batch=batch)
    before = prod(value.shape[: value.batch]), prod(shape[:batch])
    if changed.size != value.size or before[0] != before[1]:
        raise run.refuse(op, f"turns samples of shape {value.shape} into {shape}")
    return changed


def _fill(run: Interpreter, op: Op) -> Value:
    """One number everywhere, as the state that a recurrent layer starts from."""
    shape = run.shape(op)
    bias = np.full(prod(shape), float(op.attributes["value"]))
    return Value((), bias, shape, op.output, run.batch(op))


def _neg(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    return value.scaled(-np.ones(value.size), op.output)


def _sum(run: Interpreter, op: Op) -> Value:
    weight = float(op.attributes.get("alpha", 1.0)) * (1.0 if op.kind == "add" else -1.0)
    first, second = (run.has_value(name) for name in op.inputs)
    if first and second:
        left, right = run.operand(op, 0), run.operand(op, 1)
        shape = common_shape(run, op, left, right)
        left, right = (expanded(value, shape) for value in (left, right))
        right = right.scaled(np.full(right.size, weight), op.output) if weight != 1.0 else right
        return left.plus(right, op.output)
    if first:
        value, added, name = run.operand(op, 0), weight * run.constant(op, 1), op.inputs[1]
    else:
        value, added, name = run.operand(op, 1), run.constant(op, 0), op.inputs[0]
        if weight != 1.0:
            value = value.scaled(np.full(value.size, weight), op.output)
    run.count(name)
    return value.shifted(run.broadcast(op, added, value), op.output)


def _product(run: Interpreter, op: Op) -> Value:
    first, second = (run.has_value(name) for name in op.inputs)
    if first and second:
        raise run.refuse(
            op,
            "multiplies or divides two values that both depend on the input (as gates and attention do), which is no affine form of them",
        )
    if op.kind == "div" and not first:
        raise run.refuse(op, "divides by a value that depends on the input")
    value, constant = run.operand(op, int(not first)), run.constant(op, int(first))
    if op.kind == "div":
        if np.any(constant == 0):
            raise run.refuse(op, "divides by a constant that holds a zero")
        constant = 1.0 / constant
    run.count(op.inputs[int(first)])
    return value.scaled(run.broadcast(op, constant, value), op.output)


RULES: dict[str, Rule] = {
    "activation": _activation,
    "pass": _pass,
    "fill": _fill,
    "neg": _neg,
    "add": _sum,
    "sub": _sum,
    "mul": _product,
    "div": _product,
}
