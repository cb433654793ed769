"""Rules of layers with weights: linear, matrix product, convolution, batch norm."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.networks.operators import Convolution, Dense, LinearOperator, Shape, SharedDense, Window, compose
from simtool.networks.program import Op
from simtool.networks.symbolic.value import Value

if TYPE_CHECKING:
    from simtool.networks.symbolic.interpreter import Interpreter, Rule


def _weighted(run: Interpreter, value: Value, weight: LinearOperator, shape: Shape, tensor: str) -> Value:
    """``weight`` of ``value``, which becomes an identity block first unless it is a selection of one source."""
    if not value.terms:  # a constant, as the first state of a recurrent layer
        bias = None if value.bias is None else weight.apply(value.bias[None])[0]
        return Value((), bias, shape, tensor, value.batch)
    if value.selection is None:
        value = run.plain(value)
    assert value.selection is not None
    return Value(((value.terms[0][0], compose(weight, value.selection)),), None, shape, tensor, value.batch)


def _matmul(run: Interpreter, op: Op) -> Value:
    value, weight = run.operand(op, 0), _matrix(run, op)
    return _apply_matrix(run, op, value, weight.T)


def _linear(run: Interpreter, op: Op) -> Value:
    value, weight = run.operand(op, 0), _matrix(run, op)
    result = _apply_matrix(run, op, value, weight * float(op.attributes.get("alpha", 1.0)))
    if len(op.inputs) < 3:
        return result
    bias = run.constant(op, 2) * float(op.attributes.get("beta", 1.0))
    run.count(op.inputs[2])
    return result.shifted(run.broadcast(op, bias, result), result.tensor)


def _matrix(run: Interpreter, op: Op) -> np.ndarray:
    weight = run.constant(op, 1)
    if weight.ndim != 2:
        raise run.refuse(op, f"its weight has the shape {weight.shape}, a matrix is needed")
    return weight


def _apply_matrix(run: Interpreter, op: Op, value: Value, weight: np.ndarray) -> Value:
    """``weight`` (outs, ins) on the last axis of the samples."""
    if not value.shape or weight.shape[1] != value.shape[-1] or value.batch == len(value.shape):
        raise run.refuse(
            op,
            f"a weight for {weight.shape[1]} values meets samples of shape {value.shape}: it takes the last axis",
        )
    run.count(op.inputs[1])
    lead = value.shape[:-1]
    weight = np.ascontiguousarray(weight)
    operator = Dense(weight) if value.size == value.shape[-1] else SharedDense(weight, lead)
    return _weighted(run, value, operator, (*lead, int(weight.shape[0])), op.output)


def _convolution(run: Interpreter, op: Op) -> Value:
    value, kernel, shape = run.operand(op, 0), run.constant(op, 1), run.shape(op)
    transposed, groups = bool(op.attributes["transposed"]), int(op.attributes["groups"])
    axes = kernel.ndim - 2
    run.needs_batch_first(op, value)
    if axes < 1 or len(value.shape) != axes + 1 or len(shape) != axes + 1:
        raise run.refuse(op, f"a kernel of shape {kernel.shape} meets samples of shape {value.shape}")
    image, places = (shape, value.shape) if transposed else (value.shape, shape)
    windows = windows_of(op.attributes, image[1:], places[1:], kernel.shape[2:])
    operator = Convolution(np.ascontiguousarray(kernel), windows, groups, transposed)
    if kernel.shape[0] % groups or (operator.in_shape, operator.out_shape) != (value.shape, shape):
        raise run.refuse(
            op,
            f"a kernel of shape {kernel.shape} with {groups} groups does not take {value.shape} to {shape}",
        )
    run.count(op.inputs[1])
    result = _weighted(run, value, operator, shape, op.output)
    if len(op.inputs) < 3:
        return result
    bias = run.constant(op, 2)
    run.count(op.inputs[2])
    return result.shifted(run.broadcast(op, bias.reshape(-1, *(1,) * axes), result), result.tensor)


def windows_of(attributes: dict[str, Any], sizes: Shape, positions: Shape, taps: Shape) -> tuple[Window, ...]:
    """The windows of a convolution or pooling, from its attributes ``stride``, ``dilation`` and ``pads``.

    ``pads`` is (before, after) for each axis, or ``upper`` or ``lower``: as much as the positions need, the odd one after or before.
    """
    axes = len(sizes)
    stride, dilation = (_each(attributes.get(name), axes) for name in ("stride", "dilation"))
    pads = attributes.get("pads") or ((0, 0),) * axes
    windows = []
    for axis, size in enumerate(sizes):
        window = Window(size, int(taps[axis]), positions[axis], stride[axis], 0, dilation[axis])
        if isinstance(pads, str):
            needed = max(window.span - size, 0)
            low = needed // 2 if pads == "upper" else needed - needed // 2
        else:
            low = int(pads[axis][0])
        if min(low, stride[axis] - 1, dilation[axis] - 1) < 0:
            raise ValueError(f"stride {stride}, padding {pads}, dilation {dilation}")
        windows.append(replace(window, low=low))
    return tuple(windows)


def _each(value: Any, axes: int) -> Shape:
    values = [int(v) for v in (value if isinstance(value, list | tuple) else [value or 1])] or [1]
    return tuple(values * axes if len(values) == 1 else values)


def _batch_norm(run: Interpreter, op: Op) -> Value:
    """Evaluation mode: a factor and a shift for each channel; the running statistics are no parameters."""
    value, parts = run.operand(op, 0), op.attributes["parts"]
    run.needs_batch_first(op, value)
    found = {part: run.constant(op, 1 + index).reshape(-1) for index, part in enumerate(parts)}
    spread = np.sqrt(found["var"] + float(op.attributes["eps"]))
    factor = found.get("weight", np.ones_like(spread)) / spread
    shift = found.get("bias", np.zeros_like(spread)) - found["mean"] * factor
    if not value.shape or factor.shape != value.shape[:1] or shift.shape != factor.shape:
        raise run.refuse(op, f"statistics of {factor.size} channels meet samples of shape {value.shape}")
    for index, part in enumerate(parts):
        if part in ("weight", "bias"):
            run.count(op.inputs[1 + index])
    positions = value.size // factor.size
    factor, shift = (np.repeat(part, positions) for part in (factor, shift))
    return value.scaled(factor, op.output).shifted(shift, op.output)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
}
