"""The paths of the rows of a run with a budget: which features each row keeps at every size, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.design import Design
from simtool.errors import FormatError
from simtool.stages.sparsify import sample_weights
from simtool.stages.sparsify.budget_options import parse_pattern
from simtool.stages.sparsify.folder import RunFolder

if TYPE_CHECKING:
    from simtool.budget.search import Search
    from simtool.stages.sparsify.plan import Plan
    from simtool.stages.sparsify.structure import RowGroup, Shard


def path_file(folder: RunFolder, index: int) -> Path:
    """Where the paths of the rows of shard ``index`` lie."""
    return folder.work / f"path-{index:06d}.shard"


def find_paths(folder: RunFolder, index: int) -> dict[str, Any]:
    """Find the supports of every size of the rows of shard ``index``, and leave the order of leaving and the losses."""
    from simtool.stages.sparsify.plan import plan_of

    orders, losses = _paths(folder, plan_of(folder), index)
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
    # More features may live here than on the network's own states, where all of them were the start.
    orders, _ = _paths(folder, plan, index, int(sizes.max(initial=0)))
    return [np.sort(order[max(0, order.size - size) :]) for order, size in zip(orders, sizes, strict=True)]


def _paths(
    folder: RunFolder, plan: Plan, index: int, fitted: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The orders and the losses of the rows of shard ``index`` on the network's own states; or, where the largest size that they are
    ``fitted`` at is given, on what they are fitted on, up to that size."""
    from simtool.budget.search import find
    from simtool.stages.sparsify import sequential
    from simtool.stages.sparsify.work import constraints_of, design_of, fitted_design_of

    shard = plan.shards[index]
    group, bank = plan.groups[shard.group], plan.banks[plan.groups[shard.group].bank]
    if fitted is not None:
        w, chosen, gram = fitted_design_of(folder, plan, shard.group, group)
        targets = sequential.targets_of(folder, plan, shard)
    else:
        w, chosen, gram = design_of(folder, plan, group)
        targets = folder.map_array(bank.targets)[shard.start - bank.rows[0] : shard.stop - bank.rows[0]]
    if gram is None:
        raise FormatError(f"the Gram matrix of {group.name} is missing. Run the same command again.")
    design = Design(w, gram, constraints_of(folder, plan).sample_weight, chosen)
    count = shard.stop - shard.start
    correlations, squares = np.zeros((count, group.features.size)), np.zeros(count)
    for part in design.parts():
        z = design.weighted(targets, part.samples)
        correlations += part.correlations(z)
        squares += np.einsum("ij,ij->i", z, z)
    if plan.options.weighs_rows:
        return _weighted(folder, plan, shard, design, targets, (correlations, squares), fitted or 0)
    search, exempt = _search(plan, group, fitted or 0), plan.is_bias(group)
    if not group.excludes_itself:
        return find(search, gram, correlations, squares, exempt)
    orders, losses = [], []
    for i, row in enumerate(range(shard.start, shard.stop)):
        own = group.features == row
        # Of norm 0: no path begins with it, and patterns count the others in their places.
        others = np.where(own[:, None] | own[None, :], 0.0, gram)
        found = find(search, others, np.where(own, 0.0, correlations[i : i + 1]), squares[i : i + 1], exempt)
        orders += found[0]
        losses += found[1]
    return orders, losses


def _weighted(
    folder: RunFolder,
    plan: Plan,
    shard: Shard,
    design: Design,
    targets: np.ndarray,
    shared: tuple[np.ndarray, np.ndarray],
    least: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same where samples weigh differently in each row; ``shared`` are correlations and squares without these weights."""
    from simtool.budget import weighted

    group, (correlations, squares) = plan.groups[shard.group], shared
    weights = sample_weights.stored(folder, slice(shard.start, shard.stop))
    live = int(np.count_nonzero(np.diag(design.gram) > 0.0))
    start = _search(plan, group, least).start(live)
    orders, losses = [], []
    for i, row in enumerate(range(shard.start, shard.stop)):
        gram, one = design.gram, slice(i, i + 1)
        if group.excludes_itself:
            own = group.features == row
            gram = np.where(own[:, None] | own[None, :], 0.0, gram)
        sums = sample_weights.Sums(design, targets[one], weights[one])
        found = weighted.paths(gram, correlations[one], squares[one], start, sums)
        orders += found[0]
        losses += found[1]
    return orders, losses


def _search(plan: Plan, group: RowGroup, least: int) -> Search:
    """How the supports of the group's rows are looked for, and of about what size; from no fewer than ``least`` features."""
    from simtool.budget.search import ELIMINATION, Search

    assert plan.budget is not None
    everything = sum((g.rows[1] - g.rows[0]) * g.features.size for g in plan.groups)
    options = plan.options
    return Search(
        options.paths or ELIMINATION,
        min(1.0, plan.budget / max(everything, 1)) * group.features.size,
        None if options.pattern is None else parse_pattern(options.pattern),
        least,
    )
