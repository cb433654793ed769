"""Blocks: how the state vector x is cut into layers, and what the network feeds into each.

States are stacked last hidden layer first, as in the papers. A parent is the name of another block, or INPUT
(all rows of U but the bias) or BIAS (the constant-1 row, the last of U).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from simtool import activations
from simtool.activations import Activation
from simtool.errors import FormatError

INPUT = "input"
BIAS = "bias"


@dataclass(frozen=True)
class Block:
    """Rows ``offset : offset + size`` of the state vector, with their activation and what feeds them.

    ``shape`` is the shape of one sample's activation value in the network, ``prod(shape) == size``.
    """

    name: str
    activation: Activation
    offset: int
    size: int
    shape: tuple[int, ...]
    parents: tuple[str, ...]

    @property
    def rows(self) -> slice:
        """The rows of this block in Z and X."""
        return slice(self.offset, self.offset + self.size)


def check(blocks: Sequence[Block], n: int, output_parents: Sequence[str] = ()) -> None:
    """Raise FormatError unless ``blocks`` tile ``range(n)`` with distinct names and known parents."""
    names = [block.name for block in blocks]
    if len(set(names)) != len(names) or {INPUT, BIAS} & set(names):
        raise FormatError(f"block names must be distinct and not {INPUT!r} or {BIAS!r}, got {names}.")
    end = 0
    for block in blocks:
        if block.offset != end or min((block.size, *block.shape)) < 1 or prod(block.shape) != block.size:
            raise FormatError(
                f"block {block.name!r} has offset {block.offset}, size {block.size}, shape {block.shape}; "
                f"expected offset {end} and size = product of the shape > 0."
            )
        end += block.size
    if end != n:
        raise FormatError(f"the blocks cover {end} states, the arrays hold {n}.")
    known = {*names, INPUT, BIAS}
    for owner, parents in [*((b.name, b.parents) for b in blocks), ("the output", tuple(output_parents))]:
        unknown = set(parents) - known
        if unknown:
            raise FormatError(f"{owner} names the unknown parents {sorted(unknown)}.")


def apply(blocks: Iterable[Block], z: np.ndarray) -> np.ndarray:
    """phi(z), block by block; ``z`` is (n, m)."""
    x = np.empty_like(z)
    for block in blocks:
        x[block.rows] = block.activation(z[block.rows])
    return x


def lipschitz(blocks: Sequence[Block]) -> np.ndarray:
    """The Lipschitz constant of every state's activation, (n,)."""
    if not blocks:
        return np.zeros(0)
    return np.concatenate([np.full(block.size, block.activation.lipschitz) for block in blocks])


def to_json(blocks: Sequence[Block]) -> str:
    """The text stored in files."""
    return json.dumps(
        [
            {
                "name": b.name,
                "activation": b.activation.spec,
                "offset": b.offset,
                "size": b.size,
                "shape": list(b.shape),
                "parents": list(b.parents),
            }
            for b in blocks
        ]
    )


def from_json(text: str) -> tuple[Block, ...]:
    """The inverse of :func:`to_json`; raises FormatError on anything else."""
    try:
        return tuple(
            Block(
                name=str(entry["name"]),
                activation=activations.parse(str(entry["activation"])),
                offset=int(entry["offset"]),
                size=int(entry["size"]),
                shape=tuple(int(s) for s in entry["shape"]),
                parents=tuple(str(parent) for parent in entry["parents"]),
            )
            for entry in json.loads(text)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the list of blocks in the file cannot be read: {error}") from error
