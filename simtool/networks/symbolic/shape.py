"""Rules of what moves values about: each is an index map, found by moving the indices themselves as the network moves its values.

Axes are the network's own, the batch is axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from simtool.networks.operators import Gather, Shape
from simtool.networks.program import Op
from simtool.networks.symbolic.value import MOST_VALUES, Value

if TYPE_CHECKING:
    from simtool.networks.symbolic.interpreter import Interpreter, Rule

_Move = Callable[[np.ndarray], np.ndarray]


def moved(value: Value, move: _Move, tensor: str) -> Value:
    """``value`` rearranged; ``move`` takes indices in the network's own axes to those of the result, -1 for a zero."""
    first = np.expand_dims(np.arange(value.size).reshape(value.shape), value.batch)
    index, batch = _one_sample(
        move(np.concatenate([first, first + value.size], axis=value.batch)), value.size
    )
    shape = tuple(int(size) for size in index.shape)
    flat = np.ascontiguousarray(index).reshape(-1)
    if np.array_equal(flat, np.arange(value.size)):
        return Value(value.terms, value.bias, shape, tensor, batch)
    return replace(value.mapped(Gather(flat, value.shape, shape), shape, tensor), batch=batch)


def _one_sample(index: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """The indices of the first of two samples, and the axis that tells them apart."""
    for axis in range(index.ndim):
        if index.shape[axis] != 2:
            continue
        one, two = np.take(index, 0, axis), np.take(index, 1, axis)
        if (one < size).all() and np.array_equal(two, np.where(one < 0, -1, one + size)):
            return one, axis
    raise ValueError("the batch axis is changed")


def _bounded(sizes: Iterable[int]) -> None:
    """Raise ValueError for a sample of more values than are taken, before any index of them is made.

    A program read from a file may ask for any number, which its layouts need not tell.
    """
    found = [max(0, int(size)) for size in sizes]
    if prod(found) > MOST_VALUES:
        raise ValueError(f"a result of shape {tuple(found)}, more than {MOST_VALUES} values a sample")


def expanded(value: Value, shape: Shape, tensor: str | None = None) -> Value:
    """``value`` repeated along its axes of size 1; without ``tensor`` it stays in its own, if nothing is to be done."""
    if shape == value.shape:
        return value if tensor is None else replace(value, tensor=tensor)
    _bounded(shape)
    batch = value.batch + len(shape) - len(value.shape)
    full = (*shape[:batch], 2, *shape[batch:])
    return moved(value, lambda index: np.broadcast_to(index, full), tensor or "")


def common_shape(run: Interpreter, op: Op, left: Value, right: Value) -> Shape:
    """One sample's shape of two values that meet entry by entry; their samples must lie on the same axis, counted from the last."""
    if len(left.full) - left.batch != len(right.full) - right.batch:
        raise run.refuse(op, f"meets samples of shapes {left.shape} and {right.shape}")
    full = np.broadcast_shapes(left.full, right.full)
    batch = len(full) - len(left.full) + left.batch
    return tuple(full[:batch] + full[batch + 1 :])


def inner_axis(run: Interpreter, op: Op, axis: int, value: Value) -> int:
    """``axis`` from 0 on, refused if it is the batch."""
    axes = len(value.shape) + 1
    if not -axes <= axis < axes:
        raise run.refuse(op, f"axis {axis} of samples of shape {value.shape}")
    if axis % axes == value.batch:
        raise run.refuse(op, "works across the samples of the batch")
    return axis % axes


def sample_axis(run: Interpreter, op: Op, axis: int, value: Value) -> int:
    """The same axis among those of one sample."""
    found = inner_axis(run, op, axis, value)
    return found - int(found > value.batch)


def _permute(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    axes = len(value.shape) + 1
    order = op.attributes["order"]
    if order is None:
        order = list(range(axes))[::-1]
    order = [int(axis) % axes for axis in order]
    return moved(value, lambda index: index.transpose(order), op.output)


def _swap(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    first, second = op.attributes["axes"]
    return moved(value, lambda index: index.swapaxes(first, second), op.output)


def _is_all(key: slice) -> bool:
    return key.start in (0, None) and key.step in (1, None) and (key.stop is None or key.stop >= 2**31 - 1)


def _slice(run: Interpreter, op: Op) -> Value:
    """Slices (and picks one, for an integer) along axes: attribute ``keys``, pairs of axis and key.

    Attribute ``part`` (axis, index, count) is one of ``count`` parts as equal as can be, the last one smaller.
    """
    value = run.operand(op, 0)
    keys: list[slice | int] = [slice(None)] * (len(value.shape) + 1)
    given = list(op.attributes["keys"])
    if "part" in op.attributes:
        axis, index, count = op.attributes["part"]
        width = -(-value.shape[sample_axis(run, op, axis, value)] // count)
        given.append((axis, slice(index * width, (index + 1) * width)))
    for axis, key in given:
        if isinstance(key, slice) and _is_all(key):
            continue  # allowed on the batch too
        keys[inner_axis(run, op, int(axis), value)] = key
    return moved(value, lambda index: index[tuple(keys)], op.output)


def _take(run: Interpreter, op: Op) -> Value:
    """Chosen indices along one axis: the second operand is a constant."""
    value, chosen = run.operand(op, 0), run.constant(op, 1).astype(np.int64)
    axis = inner_axis(run, op, int(op.attributes["axis"]), value)
    _bounded([*value.full[:axis], *value.full[axis + 1 :], chosen.size])
    return moved(value, lambda index: np.take(index, chosen, axis), op.output)


def _flip(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    axes = tuple(inner_axis(run, op, int(axis), value) for axis in op.attributes["axes"])
    return moved(value, lambda index: np.flip(index, axes), op.output)


def _pad(run: Interpreter, op: Op) -> Value:
    """Zeros around (negative: a crop); attribute ``pads`` has (before, after) for each axis, the batch too."""
    value, pads = run.operand(op, 0), op.attributes["pads"]
    if len(pads) != len(value.shape) + 1 or any(pads[value.batch]):
        raise run.refuse(op, f"pads {pads} around samples of shape {value.shape}")
    pads = [(int(before), int(after)) for before, after in pads]
    _bounded(size + before + after for size, (before, after) in zip(value.full, pads, strict=True))

    def move(index: np.ndarray) -> np.ndarray:
        kept = tuple(
            slice(max(-a, 0), size - max(-b, 0)) for (a, b), size in zip(pads, index.shape, strict=True)
        )
        return np.pad(index[kept], [(max(a, 0), max(b, 0)) for a, b in pads], constant_values=-1)

    return moved(value, move, op.output)


def _expand(run: Interpreter, op: Op) -> Value:
    value = run.operand(op, 0)
    return expanded(value, run.shape(op), op.output)


def _tile(run: Interpreter, op: Op) -> Value:
    value, repeats = run.operand(op, 0), [int(count) for count in op.attributes["repeats"]]
    if len(repeats) != len(value.shape) + 1 or repeats[value.batch] != 1:
        raise run.refuse(op, f"repeats samples of shape {value.shape} {repeats} times")
    _bounded(size * count for size, count in zip(value.full, repeats, strict=True))
    return moved(value, lambda index: np.tile(index, repeats), op.output)


def _nearest(run: Interpreter, op: Op) -> Value:
    """Upsampling by whole factors: every value is repeated."""
    value, shape = run.operand(op, 0), run.shape(op)
    run.needs_batch_first(op, value)
    if len(shape) != len(value.shape) or any(new % old for new, old in zip(shape, value.shape, strict=True)):
        raise run.refuse(op, f"resizes {value.shape} to {shape}; whole factors are needed")
    _bounded(shape)

    def move(index: np.ndarray) -> np.ndarray:
        for axis, (new, old) in enumerate(zip(shape, value.shape, strict=True)):
            index = np.repeat(index, new // old, axis + 1)
        return index

    return moved(value, move, op.output)


def _concatenate(run: Interpreter, op: Op) -> Value:
    """Along a sample's axis; attribute ``stack`` puts the operands along a new one."""
    values, shape = [run.operand(op, index) for index in range(len(op.inputs))], run.shape(op)
    axes, batch = len(shape) + 1, run.batch(op)
    axis = int(op.attributes["axis"])
    if not -axes <= axis < axes or axis % axes == batch:
        raise run.refuse(
            op, f"joins along axis {axis} of samples of shape {shape}, the batch is axis {batch}"
        )
    axis %= axes
    _bounded(shape)
    inner = axis - int(axis > batch)
    if op.attributes.get("stack"):
        values = [moved(v, lambda index: np.expand_dims(index, axis), "") for v in values]
    total, start = None, 0
    for value in values:
        before, after = start, shape[inner] - start - value.shape[inner]
        start += value.shape[inner]
        pads = [(before, after) if at == axis else (0, 0) for at in range(axes)]
        part = moved(value, lambda index, pads=pads: np.pad(index, pads, constant_values=-1), op.output)  # type: ignore[misc]
        total = part if total is None else total.plus(part, op.output)
    if total is None or total.shape != shape:
        raise run.refuse(op, f"joins {[value.shape for value in values]} to {shape}")
    return total


RULES: dict[str, Rule] = {
    "permute": _permute,
    "swap": _swap,
    "slice": _slice,
    "take": _take,
    "flip": _flip,
    "pad": _pad,
    "expand": _expand,
    "tile": _tile,
    "nearest": _nearest,
    "concatenate": _concatenate,
}
