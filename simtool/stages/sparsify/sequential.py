"""``--sequential``: from the second layer on, rows are fitted on the states of the part that is sparse already.

    depth 0: rows whose features are inputs alone; they are solved on the states file, as all rows are without --sequential
    depth k: the states that they read are computed from the finished rows of smaller depths, the targets stay the network's own

So a layer repairs what the layers before it have lost. The sizes of all rows are shared out once, on the network's own states; from
depth 1 on the supports of these sizes are found anew, on the states that there will be. The student's states and their Gram
matrices are made by whoever coordinates, from finished rows alone: they are the same on every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from simtool.design import SAMPLE_TILE
from simtool.errors import OptionError
from simtool.stages.sparsify import budget
from simtool.stages.sparsify.budget_options import parse_pattern
from simtool.stages.sparsify.folder import RunFolder

if TYPE_CHECKING:
    from simtool.stages.sparsify.plan import Plan
    from simtool.stages.sparsify.structure import RowGroup, Shard
    from simtool.stages.sparsify.student import Student


def depths(groups: Sequence[RowGroup], n: int) -> tuple[int, ...]:
    """The depth of each of ``groups``, whose first ``n`` rows and features are states. Raises OptionError for a cycle."""
    owner = np.full(n, -1)
    for index, group in enumerate(groups):
        if not group.is_output:
            owner[group.rows[0] : group.rows[1]] = index
    parents = [np.unique(owner[group.features[group.features < n]]) for group in groups]
    found: dict[int, int] = {}
    while len(found) < len(groups):
        ready = {
            index: 1 + max((found[parent] for parent in parents[index]), default=-1)
            for index in range(len(groups))
            if index not in found and all(parent in found for parent in parents[index])
        }
        if not ready:
            raise OptionError(
                "--sequential goes from layer to layer, but states of this network feed one another in a cycle. Leave it out."
            )
        found |= ready
    return tuple(found[index] for index in range(len(groups)))


def layer_depths(groups: Sequence[RowGroup], first: Sequence[bool]) -> tuple[int, ...]:
    """The same for groups of layers, which run one after another; ``first`` says which layers read the network's input."""
    order = np.cumsum([not reads for reads in first])
    return tuple(0 if first[group.bank] else int(order[group.bank]) for group in groups)


# --- what the coordinator leaves for a group ------------------------------------------------------------------------------


def design_array(index: int) -> str:
    """The array of the student's design of group ``index``, (d, m) float32."""
    return f"student-{index}"


def targets_array(index: int) -> str:
    """The array of the targets (r, m) float32 of group ``index``, where they are not the network's own."""
    return f"student-targets-{index}"


def targets_of(folder: RunFolder, plan: Plan, shard: Shard) -> np.ndarray:
    """The targets (r, m) that the rows of ``shard`` are fitted to."""
    group = plan.groups[shard.group]
    if plan.depths[shard.group] and folder.was_sealed(targets_array(shard.group)):
        return folder.map_array(targets_array(shard.group))[
            shard.start - group.rows[0] : shard.stop - group.rows[0]
        ]
    bank = plan.banks[group.bank]
    return folder.map_array(bank.targets)[shard.start - bank.rows[0] : shard.stop - bank.rows[0]]


def gram_array(index: int) -> str:
    """The array of its Gram matrix, (d, d) float64."""
    return f"student-gram-{index}"


def is_ready(folder: RunFolder, plan: Plan, depth: int) -> bool:
    """Whether the groups of ``depth`` have what their rows are fitted on, as it was left: reads all of it."""
    return depth == 0 or (
        folder.holds(budget.sizes_file(folder, depth))
        and all(
            folder.is_sealed(gram_array(index))
            and folder.is_sealed(design_array(index))
            and (folder.is_sealed(targets_array(index)) or not folder.was_sealed(targets_array(index)))
            for index in plan.at_depth(depth)
        )
    )


def refresh(folder: RunFolder, plan: Plan, student: Student, depth: int) -> None:
    """Leave what rows of ``depth`` need; the rows of all smaller depths must be there."""
    # The bytes of a product may depend on how many threads share it.
    with threadpool_limits(limits=1):
        # Sizes follow from those before: one after another, where a run was finished once. The rows before need no more than that.
        for each in range(1, depth):
            if not folder.holds(budget.sizes_file(folder, each)):
                _refresh(folder, plan, student, each)
        if not is_ready(folder, plan, depth):
            _refresh(folder, plan, student, depth)


def _refresh(folder: RunFolder, plan: Plan, student: Student, depth: int) -> None:
    """Leave the designs of the groups of ``depth``, their Gram matrices, and the sizes of their rows."""
    designs, live = student.designs(depth), {}
    for index, fitted in designs.items():
        design = fitted.design
        if fitted.targets is not None:
            with folder.new_array(targets_array(index), fitted.targets.shape, np.float32) as mapped:
                mapped[:] = fitted.targets
            folder.seal(targets_array(index))
        with folder.new_array(design_array(index), design.shape, np.float32) as mapped:
            mapped[:] = design
        folder.seal(design_array(index))
        gram = np.zeros((len(design), len(design)))
        for start in range(0, design.shape[1], SAMPLE_TILE):
            tile = design[:, start : start + SAMPLE_TILE].astype(np.float64)
            gram += tile @ tile.T
        with folder.new_array(gram_array(index), gram.shape, np.float64) as mapped:
            mapped[:] = gram
        live[index] = room(plan, plan.groups[index], np.diag(gram) > 0.0)
        folder.seal(gram_array(index))
    budget.settle(folder, plan, depth, live)  # last: tells that all is there


def room(plan: Plan, group: RowGroup, live: np.ndarray) -> int:
    """How many features a row of ``group`` can use where those in ``live`` (d,) bool are not zero on every sample."""
    if plan.options.pattern is None:
        return int(live.sum())
    keep, of = parse_pattern(plan.options.pattern)
    exempt = plan.is_bias(group)
    places = np.bincount(np.flatnonzero(live & ~exempt) // of)
    return int(np.minimum(places, keep).sum() + (live & exempt).sum())
