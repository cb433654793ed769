"""The order in which another runtime computes the states: one step a block, finer only where a block feeds itself.

A step computes z = W s + bias from its sources s: the input, and steps before it, side by side. Blocks whose graph has
no cycle are one step each, the parents first, as the network they came from. Blocks that feed themselves or each other
are cut into the components of :mod:`simtool.model.levels`: states of one level together, and each cyclic component,
whose own entries of A (``inner``) a fixed point has to solve. The last step is the output, Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from simtool.activations import Activation
from simtool.blocks import Block
from simtool.model import levels
from simtool.model.wellposed import local_blocks

if TYPE_CHECKING:
    from simtool.model import ImplicitModel

FROM_INPUT = -1  # as a source: the input, without the bias


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of one matrix of the model, moved to a matrix of a step.

    ``take`` are their places among the values of the model's CSR matrix, ``rows`` and ``columns`` where they go.
    """

    take: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True, eq=False)
class Step:
    """States (or the outputs) that are computed together.

    Attributes
    ----------
    rows : (r,) the states, sorted; of the last step the outputs
    sources : FROM_INPUT or numbers of earlier steps, in the order in which they stand side by side
    width : the columns of all sources together
    states : entries of A (of C in the last step) in the (r, width) matrix of the step
    inputs : entries of B (of D) there, the bias left out
    bias : entries of B (of D) in the bias column; ``columns`` are 0
    inner : entries of A between the rows of this step, (r, r); None unless the step is ``cyclic``
    blocks : the blocks of the rows, renumbered to tile ``range(r)``; empty in the last step
    name : of the block, for the names of a graph
    """

    name: str
    rows: np.ndarray
    sources: tuple[int, ...]
    width: int
    states: Entries
    inputs: Entries
    bias: Entries
    inner: Entries | None
    blocks: tuple[Block, ...]

    @property
    def cyclic(self) -> bool:
        """Whether a fixed point has to be solved."""
        return self.inner is not None

    @property
    def size(self) -> int:
        """The states (outputs) of the step."""
        return len(self.rows)

    @property
    def pieces(self) -> tuple[tuple[Activation, int], ...]:
        """The activations of the rows in order, each with how many rows it has; neighbours that agree are one."""
        found: list[tuple[Activation, int]] = []
        for block in self.blocks:
            if found and found[-1][0].spec == block.activation.spec:
                found[-1] = (block.activation, found[-1][1] + block.size)
            else:
                found.append((block.activation, block.size))
        return tuple(found)


def plan(model: ImplicitModel) -> tuple[Step, ...]:
    """The steps of ``model`` in the order of evaluation; the last one gives Y."""
    groups = _groups(model)
    step_of, place_of = np.zeros(model.n, dtype=np.int64), np.zeros(model.n, dtype=np.int64)
    for number, (rows, _) in enumerate(groups):
        step_of[rows], place_of[rows] = number, np.arange(len(rows))
    sizes = [len(rows) for rows, _ in groups]
    taken: dict[str, int] = {}
    steps: list[Step] = []
    for number, (rows, cyclic) in enumerate(groups):
        blocks = local_blocks(rows, model.blocks)
        name = "_".join(block.name for block in blocks) if len(blocks) < 4 else f"step{number}"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}.{taken[name]}"
        states = _entries(model.A, rows)
        steps.append(
            _step(model, name, rows, states, model.B, step_of, place_of, sizes, number, cyclic, blocks)
        )
    rows = np.arange(model.q)
    states = _entries(model.C, rows)
    steps.append(
        _step(model, "output", rows, states, model.D, step_of, place_of, sizes, len(groups), False, ())
    )
    return tuple(steps)


def _groups(model: ImplicitModel) -> list[tuple[np.ndarray, bool]]:
    """The rows of every step, and whether it is cyclic."""
    if model.n == 0:
        return []
    owner = np.repeat(np.arange(len(model.blocks)), [block.size for block in model.blocks])
    rows = np.repeat(np.arange(model.n), np.diff(model.A.indptr))
    count = len(model.blocks)
    feeds = sparse.csr_array(
        (np.ones(model.A.nnz), (owner[rows], owner[model.A.indices])), shape=(count, count)
    )
    feeds.sum_duplicates()
    groups: list[tuple[np.ndarray, bool]] = []
    for component in levels.order(feeds):
        if not component.cyclic:
            groups += [(np.flatnonzero(owner == block), False) for block in component.rows]
            continue
        inside = np.flatnonzero(np.isin(owner, component.rows))
        own = sparse.csr_array(model.A[inside][:, inside])
        groups += [(inside[part.rows], part.cyclic) for part in levels.order(own)]
    return groups


def _entries(matrix: sparse.csr_array, rows: np.ndarray) -> Entries:
    """All entries of ``rows``, with the row's place among them and the matrix's own columns."""
    counts = np.diff(matrix.indptr)[rows]
    local = np.repeat(np.arange(len(rows)), counts)
    first = np.repeat(matrix.indptr[:-1][rows].astype(np.int64) - (np.cumsum(counts) - counts), counts)
    take = first + np.arange(int(counts.sum()))
    return Entries(take, local, matrix.indices[take].astype(np.int64))


def _choose(entries: Entries, which: np.ndarray, columns: np.ndarray) -> Entries:
    return Entries(entries.take[which], entries.rows[which], columns)


def _step(
    model: ImplicitModel,
    name: str,
    rows: np.ndarray,
    states: Entries,
    driving: sparse.csr_array,
    step_of: np.ndarray,
    place_of: np.ndarray,
    sizes: list[int],
    number: int,
    cyclic: bool,
    blocks: tuple[Block, ...],
) -> Step:
    inputs = _entries(driving, rows)
    is_bias = inputs.columns == model.p - 1 if model.has_bias else np.zeros(len(inputs.columns), dtype=bool)
    source = step_of[states.columns]
    own = source == number
    earlier = np.unique(source[~own])
    start = np.zeros(len(sizes), dtype=np.int64)
    width = 0
    sources: list[int] = []
    if not is_bias.all():
        sources.append(FROM_INPUT)
        width = model.p - int(model.has_bias)
    for other in earlier:
        start[other] = width
        sources.append(int(other))
        width += sizes[other]
    return Step(
        name=name,
        rows=rows,
        sources=tuple(sources),
        width=width,
        states=_choose(states, ~own, (start[source] + place_of[states.columns])[~own]),
        inputs=_choose(inputs, ~is_bias, inputs.columns[~is_bias]),
        bias=_choose(inputs, is_bias, np.zeros(int(is_bias.sum()), dtype=np.int64)),
        inner=_choose(states, own, place_of[states.columns][own]) if cyclic else None,
        blocks=blocks,
    )


def values(matrix: sparse.csr_array, entries: Entries, shape: tuple[int, int]) -> np.ndarray:
    """``entries`` of ``matrix`` in a dense float64 matrix of ``shape``."""
    result = np.zeros(shape)
    result[entries.rows, entries.columns] = matrix.data[entries.take]
    return result


def dense_entries(steps: tuple[Step, ...]) -> int:
    """Numbers that the steps hold when their matrices are stored densely, biases included."""
    count = 0
    for step in steps:
        count += step.size * step.width + step.size * step.size * int(step.cyclic)
        count += step.size if len(step.bias.take) else 0
    return count
