"""Batches as a network takes them: numbers, or for one that begins with an embedding the whole numbers it looks up."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from simtool.errors import InputError
from simtool.networks.operators import Shape
from simtool.networks.program import Program

PROBE_SAMPLES = 3
_MOVES = ("pass", "permute", "swap", "slice", "take", "expand")
_CASTS = ("aten.to.", "aten._to_copy.", "Cast")
_LOOKUPS = ("aten.embedding.default", "Gather")


def table_rows(program: Program) -> int | None:
    """The rows of the smallest table that the input's numbers choose from; None if there is none."""
    moved, rows = {program.input}, []
    for op in program.ops:
        if op.operator in _LOOKUPS and len(op.inputs) == 2 and op.inputs[1] in moved:
            table = program.constants.get(op.inputs[0])
            rows += [] if table is None else [len(table)]
        elif op.inputs and op.inputs[0] in moved and (op.kind in _MOVES or op.operator.startswith(_CASTS)):
            moved.add(op.output)
    return min(rows, default=None)


def whole_numbers(inputs: np.ndarray, rows: int | None, network: str) -> np.ndarray:
    """``inputs`` as int64. Raises InputError for what is no whole number, or outside 0 .. rows - 1."""
    found = np.asarray(inputs)
    if found.dtype.kind == "f":
        broken = ~(np.isfinite(found) & (np.abs(found) < 2.0**53) & (found == np.rint(found)))
        if broken.any():
            _refuse(found, broken, f"{network} takes whole numbers (it looks them up in a table)")
    if rows is not None:
        outside = (found < 0) | (found >= rows)
        if outside.any():
            _refuse(found, outside, f"{network} takes numbers from 0 to {rows - 1} (the rows of its table)")
    return found.astype(np.int64)


def _refuse(values: np.ndarray, broken: np.ndarray, what: str) -> None:
    at = int(np.argmax(broken.reshape(len(values), -1).any(axis=1)))
    value = values[at][broken[at]].reshape(-1)[0]
    raise InputError(
        f"{what}, sample {at} of the batch holds {value!s}. Pass numbers of that kind; uint8 inputs are divided by 255, store them as "
        "int32 or int64."
    )


def in_pieces(
    inputs: np.ndarray, size: int | None, run: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What ``run`` gives for ``inputs``, by batches of ``size`` samples where a network takes no other; the last one is filled up."""
    if size is None:
        return run(inputs)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, max(len(inputs), 1), size):
        piece = inputs[start : start + size]
        padding = [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
        found = run(np.pad(piece, padding, mode="edge" if len(piece) else "constant"))
        parts.append({name: value[: len(value) * len(piece) // size] for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def probe_batch(shape: Shape, dtype: np.dtype, rows: int | None, fixed: int | None) -> np.ndarray:
    """A batch of random samples, of ``fixed`` ones where a network takes no other number."""
    count = fixed or PROBE_SAMPLES
    pair = probe_batches(shape, dtype, rows, max(2, count))
    assert pair is not None
    return pair[0][:count]


def probe_batches(
    shape: Shape, dtype: np.dtype, rows: int | None, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Two batches of ``count`` random samples that differ in sample 1, None for a count of one."""
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    whole = dtype.kind in "iu"
    size = (count + 1, *shape)
    # 0 often stands for padding, which would hide what depends on what.
    drawn = rng.integers(1, max(2, rows or 2), size) if whole else rng.standard_normal(size)
    values = drawn.astype(dtype).reshape(count + 1, -1)
    if whole and rows != 1:
        values[count] = np.where(values[count] == values[1], (values[1] + 1) % (rows or 2), values[count])
    base = values[:count].reshape(count, *shape)
    other = base.copy()
    other[1] = values[count].reshape(shape)
    assert base.size == count * prod(shape)
    return base, other
