"""Rules of pooling: averages and sums are fixed linear maps, maxima are relus of differences, exactly.

max(a, b) = a + relu(b - a). A window's maximum is a tournament: every round pairs what is left, so that k values take k - 1 states
in about log2(k) blocks. Windows in several dimensions are played one axis after the other, which shares what overlapping windows
have in common. Padding does not take part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from simtool import activations
from simtool.networks.operators import Gather, Pool, Shape, Window, average
from simtool.networks.program import Op
from simtool.networks.symbolic.layers import windows_of
from simtool.networks.symbolic.shape import sample_axis
from simtool.networks.symbolic.value import Value

if TYPE_CHECKING:
    from simtool.networks.symbolic.interpreter import Interpreter, Rule

FIXED = ("average_pool", "adaptive_average", "mean", "sum")


def _spatial(run: Interpreter, op: Op, value: Value) -> tuple[int, Shape, Shape]:
    """(number of leading axes, sizes, positions) of the axes that ``op`` pools; attribute ``axes`` of them, None: all but the first."""
    shape = run.shape(op)
    run.needs_batch_first(op, value)
    axes = op.attributes.get("axes")
    axes = len(value.shape) - 1 if axes is None else int(axes)
    lead = len(value.shape) - axes
    if axes < 1 or lead < 0 or len(shape) != len(value.shape) or shape[:lead] != value.shape[:lead]:
        raise run.refuse(op, f"pools samples of shape {value.shape} to {shape}")
    return lead, value.shape[lead:], shape[lead:]


def _kernel(op: Op, axes: int) -> Shape:
    taps = tuple(int(size) for size in op.attributes["kernel"])
    taps = taps * axes if len(taps) == 1 else taps
    if len(taps) != axes or min(taps) < 1:
        raise ValueError(f"kernel {taps}")
    return taps


def _highs(op: Op, windows: tuple[Window, ...]) -> Shape:
    pads = op.attributes.get("pads")
    if isinstance(pads, str):
        return tuple(max(w.span - w.low - w.size, 0) for w in windows)
    return tuple(int(after) for _, after in pads) if pads else (0,) * len(windows)


def _average_pool(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    lead, sizes, positions = _spatial(run, op, value)
    windows = windows_of(op.attributes, sizes, positions, _kernel(op, len(sizes)))
    highs = _highs(op, windows)
    divisor = op.attributes.get("divisor")
    matrices = {}
    for axis, (window, high) in enumerate(zip(windows, highs, strict=True)):
        one = average(window, high, bool(op.attributes["include_pad"]))
        if divisor:  # then it is a sum over the window
            one.data[:] = 1.0 / (divisor if axis == 0 else 1.0)
        matrices[lead + axis] = one
    return _pooled(run, op, value, Pool.along(value.shape, matrices))


def _pooled(run: Interpreter, op: Op, value: Value, operator: Pool) -> Value:
    shape = run.shape(op)
    if operator.out_size != int(np.prod(shape)):
        raise run.refuse(op, f"turns samples of shape {value.shape} into {shape}")
    return replace(value.mapped(operator, shape, op.output), batch=run.batch(op))


def _ranges(size: int, positions: int) -> list[tuple[int, int]]:
    """The windows of adaptive pooling."""
    return [(i * size // positions, -(-(i + 1) * size // positions)) for i in range(positions)]


def _adaptive_average(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    lead, sizes, positions = _spatial(run, op, value)
    matrices = {}
    for axis, (size, count) in enumerate(zip(sizes, positions, strict=True)):
        table = np.zeros((count, size))
        for row, (start, stop) in enumerate(_ranges(size, count)):
            table[row, start:stop] = 1.0 / (stop - start)
        matrices[lead + axis] = sp.csr_array(table)
    return _pooled(run, op, value, Pool.along(value.shape, matrices))


def _reduce(run: Interpreter, op: Op) -> Value:
    """The mean or sum over axes."""
    value = run.operand(op, 0)
    matrices = {}
    for axis in _axes(run, op, value):
        size = value.shape[axis]
        matrices[axis] = sp.csr_array(np.full((1, size), 1.0 / size if op.kind == "mean" else 1.0))
    return _pooled(run, op, value, Pool.along(value.shape, matrices))


def _axes(run: Interpreter, op: Op, value: Value) -> list[int]:
    """The sample's axes that ``op`` reduces, from 0; none named would be all, the batch too."""
    axes = [sample_axis(run, op, int(axis), value) for axis in op.attributes["axes"]]
    if not axes:
        raise run.refuse(op, "works across the samples of the batch")
    return axes


def _max_pool(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    lead, sizes, positions = _spatial(run, op, value)
    if op.attributes.get("adaptive"):
        tables = [_ragged(_ranges(size, count)) for size, count in zip(sizes, positions, strict=True)]
    else:
        windows = windows_of(op.attributes, sizes, positions, _kernel(op, len(sizes)))
        tables = [window.seen() for window in windows]
    return _maxima(run, op, value, {lead + axis: table for axis, table in enumerate(tables)})


def _ragged(ranges: list[tuple[int, int]]) -> np.ndarray:
    table = np.full((len(ranges), max(stop - start for start, stop in ranges)), -1)
    for row, (start, stop) in enumerate(ranges):
        table[row, : stop - start] = np.arange(start, stop)
    return table


def _max_over(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    return _maxima(run, op, value, {a: np.arange(value.shape[a])[None] for a in _axes(run, op, value)})


def _maxima(run: Interpreter, op: Op, value: Value, tables: dict[int, np.ndarray]) -> Value:
    """The maxima of windows, by axis (positions, taps) indices, -1 for padding."""
    if any(np.all(table < 0, axis=1).any() for table in tables.values()):
        raise run.refuse(op, "has a window that sees nothing but padding")
    current, shape = run.plain(value), list(value.shape)
    for axis, table in tables.items():
        index = np.arange(int(np.prod(shape))).reshape(shape)
        windows = np.where(
            (table >= 0).reshape(table.shape + (1,) * (len(shape) - axis - 1)),
            np.take(index, table, axis),
            -1,
        )
        windows = np.moveaxis(windows, axis + 1, -1)
        shape[axis] = len(table)
        current = _tournament(run, current, windows.reshape(-1, table.shape[1]))
    if current.size != int(np.prod(run.shape(op))):
        raise run.refuse(op, f"turns samples of shape {value.shape} into {run.shape(op)}")
    return Value(current.terms, current.bias, run.shape(op), op.output, run.batch(op))


def _tournament(run: Interpreter, value: Value, windows: np.ndarray) -> Value:
    """The maximum of each row of ``windows`` (count, k), indices of entries of ``value``."""
    while windows.shape[1] > 1:
        if windows.shape[1] % 2:
            windows = np.pad(windows, ((0, 0), (0, 1)), constant_values=-1)
        first, second = windows[:, 0::2], windows[:, 1::2]
        first, second = np.where(first < 0, second, first), np.where(first < 0, -1, second)
        pairs, inverse = np.unique(
            np.stack([first.reshape(-1), second.reshape(-1)]), axis=1, return_inverse=True
        )
        windows = np.where(first < 0, -1, inverse.reshape(first.shape))
        value = _round(run, value, pairs[0], pairs[1])
    return _chosen(value, windows[:, 0])


def _round(run: Interpreter, value: Value, first: np.ndarray, second: np.ndarray) -> Value:
    """max of the entries ``first`` and ``second``; where ``second`` is -1 the first, where both are, zero."""
    played = np.flatnonzero(second >= 0)
    kept = _chosen(value, first)
    if not played.size:
        return kept
    difference = _chosen(value, second[played]).plus(
        _chosen(value, first[played]).scaled(-np.ones(played.size), ""), ""
    )
    node = run.add_node(activations.make("relu"), difference, "", label="max_pool")
    back = np.full(first.size, -1)
    back[played] = np.arange(played.size)
    return kept.plus(node.mapped(Gather(back, node.shape, kept.shape), kept.shape, ""), "")


def _chosen(value: Value, index: np.ndarray) -> Value:
    if np.array_equal(index, np.arange(value.size)):
        return replace(value, shape=(value.size,), tensor="", batch=0)
    return replace(value.mapped(Gather(index, value.shape, (index.size,)), (index.size,), ""), batch=0)


RULES: dict[str, Rule] = {
    "average_pool": _average_pool,
    "adaptive_average": _adaptive_average,
    "mean": _reduce,
    "sum": _reduce,
    "max_pool": _max_pool,
    "max_over": _max_over,
}
