"""Rules of functions that simpler activations write exactly: clamps (relu6, hardtanh, hardsigmoid), maximum, minimum, hardswish."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simtool import activations
from simtool.networks.program import Op
from simtool.networks.symbolic.shape import common_shape, expanded
from simtool.networks.symbolic.value import Value

if TYPE_CHECKING:
    from simtool.networks.symbolic.interpreter import Interpreter, Rule


def _clamp(run: Interpreter, op: Op) -> Value:
    """low + relu(x - low) - relu(x - high) of x = ``slope`` * operand + ``offset``; a bound of None is left out."""
    low, high = op.attributes["low"], op.attributes["high"]
    value = run.operand(op, 0)
    if low is None and high is None:
        return replace(value, tensor=op.output)
    slope, offset = op.attributes.get("slope", 1.0), op.attributes.get("offset", 0.0)
    value = run.plain(value)  # it is read twice
    if (slope, offset) != (1.0, 0.0):
        value = value.scaled(np.full(value.size, slope), "").shifted(np.full(value.size, offset), "")
    above = None if high is None else _relu(run, value, high)
    if low is None:
        total = value
    else:
        total = _relu(run, value, low)
        total = total.shifted(np.full(value.size, low), "") if low else total
    if above is not None:
        total = total.plus(above.scaled(-np.ones(value.size), ""), "")
    return replace(total, tensor=op.output)


def _relu(run: Interpreter, value: Value, bound: float) -> Value:
    """relu(value - bound), a node that no tensor of the program holds."""
    moved = value if bound == 0 else value.shifted(np.full(value.size, -bound), "")
    return run.add_node(activations.make("relu"), moved, "")


def _extreme(run: Interpreter, op: Op) -> Value:
    """max(a, b) = a + relu(b - a), min(a, b) = a - relu(a - b)."""
    left, right = run.operand(op, 0), run.operand(op, 1)
    shape = common_shape(run, op, left, right)
    left, right = (expanded(run.plain(value), shape) for value in (left, right))
    sign = 1.0 if op.kind == "maximum" else -1.0
    signs = np.full(left.size, sign)
    difference = right.scaled(signs, "").plus(left.scaled(-signs, ""), "")
    node = run.add_node(activations.make("relu"), difference, "", label=op.kind)
    return left.plus(node.scaled(signs, ""), op.output)


def _hardswish(run: Interpreter, op: Op) -> Value:
    """x clamp(x + 3, 0, 6) / 6 = (w^2 + 3 w) / 6 + relu(x - 3) with w = clip(x, -3, 3), whose square is an activation of its own."""
    value = run.plain(run.operand(op, 0))  # it is read three times
    size = value.size
    square, clip = (run.add_node(activations.make(name, 3.0), value, "") for name in ("square", "clip"))
    total = square.scaled(np.full(size, 1.0 / 6.0), "").plus(clip.scaled(np.full(size, 0.5), ""), "")
    return replace(total.plus(_relu(run, value, 3.0), ""), tensor=op.output)


RULES: dict[str, Rule] = {"clamp": _clamp, "maximum": _extreme, "minimum": _extreme, "hardswish": _hardswish}
