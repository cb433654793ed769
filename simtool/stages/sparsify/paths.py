"""The paths of the rows of a run with a budget: which features each row keeps at every size, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.design import Design
from simtool.errors import FormatError
from simtool.stages.sparsify.folder import RunFolder

if TYPE_CHECKING:
    from simtool.stages.sparsify.structure import RowGroup, Shard
    from simtool.stages.sparsify.work import Plan


def path_file(folder: RunFolder, index: int) -> Path:
    """Where the paths of the rows of shard ``index`` lie."""
    return folder.work / f"path-{index:06d}.shard"


def find_paths(folder: RunFolder, index: int) -> dict[str, Any]:
    """Eliminate features from the rows of shard ``index`` one by one, and leave the order and the losses."""
    from simtool.stages.sparsify.work import plan_of

    orders, losses = _paths(folder, plan_of(folder), index, fitted=False)
    # One after another: a row that may not use its own state can have one feature less than its neighbour.
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array([order.size for order in orders], dtype=np.int64),
        "order": np.concatenate(orders).astype(np.int32),
        "losses": np.concatenate(losses),
    }
    folder.store(path_file(folder, index), arrays)
    return {"rows": len(orders)}


def fitted_supports(folder: RunFolder, plan: Plan, shard: Shard, sizes: np.ndarray) -> list[np.ndarray]:
    """The supports, of these ``sizes`` (r,), of the rows of ``shard`` on what they are fitted on; features count into their group's."""
    index = plan.shards.index(shard)
    orders, _ = _paths(folder, plan, index, fitted=True)
    return [np.sort(order[max(0, order.size - size) :]) for order, size in zip(orders, sizes, strict=True)]


def _paths(
    folder: RunFolder, plan: Plan, index: int, fitted: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The orders and the losses of the rows of shard ``index``, on the network's own states or on what they are ``fitted`` on."""
    from simtool.budget import elimination
    from simtool.stages.sparsify.work import constraints_of, design_of, fitted_design_of

    shard = plan.shards[index]
    group, bank = plan.groups[shard.group], plan.banks[plan.groups[shard.group].bank]
    if fitted:
        w, chosen, gram = fitted_design_of(folder, plan, shard.group, group)
    else:
        w, chosen, gram = design_of(folder, plan, group)
    if gram is None:
        raise FormatError(f"the Gram matrix of {group.name} is missing. Run the same command again.")
    design = Design(w, gram, constraints_of(folder, plan).sample_weight, chosen)
    targets = folder.map_array(bank.targets)[shard.start - bank.rows[0] : shard.stop - bank.rows[0]]
    count = shard.stop - shard.start
    correlations, squares = np.zeros((count, group.features.size)), np.zeros(count)
    for part in design.parts():
        z = design.weighted(targets, part.samples)
        correlations += part.correlations(z)
        squares += np.einsum("ij,ij->i", z, z)
    if group.excludes_itself:
        return _without_own(plan, group, shard, gram, correlations, squares)
    found = elimination.paths(gram, correlations, squares)
    return list(found.order), list(found.losses)


def _without_own(
    plan: Plan,
    group: RowGroup,
    shard: Shard,
    gram: np.ndarray,
    correlations: np.ndarray,
    squares: np.ndarray,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Paths of rows each of which may not use its own state."""
    from simtool.budget import elimination

    orders, losses = [], []
    for i, row in enumerate(range(shard.start, shard.stop)):
        others = np.flatnonzero(group.features != row)
        own = elimination.paths(
            np.ascontiguousarray(gram[np.ix_(others, others)]),
            correlations[i : i + 1, others],
            squares[i : i + 1],
        )
        orders.append(others[own.order[0]])
        losses.append(own.losses[0])
    return orders, losses
