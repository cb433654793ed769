"""A wanted number of non-zeros over all rows: the path of each row, one allocation of the whole budget, supports for the rows.

    tiles -> paths (a task a shard) -> choice (one task: the allocation) -> rows (coefficients on their supports, certified)

The supports are a heuristic's (backward elimination, simtool.budget); given its support, each row is proven optimal, and its certificate
says so: kind ``fixed-support``.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.errors import FormatError, OptionError
from simtool.stages.sparsify import sample_weights
from simtool.stages.sparsify.budget_options import FISHER
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.paths import fitted_supports, path_file
from simtool.states import States, StatesHeader

if TYPE_CHECKING:
    from simtool.stages.sparsify.options import SparsifyOptions
    from simtool.stages.sparsify.plan import Plan
    from simtool.stages.sparsify.structure import Shard

_WEIGHTS = "row-weights"


def kept_of(sparsity: float, nnz: int) -> int:
    """floor((1 - S) nnz) for S as it is typed: .9 of 10 leaves 1, though 1 - .9 is below a tenth in binary numbers."""
    return math.floor((1 - Fraction(repr(float(sparsity)))) * nnz)


def spec_of(options: SparsifyOptions, header: StatesHeader, tied: bool) -> dict[str, int] | None:
    """What a spec says of the budget: the non-zeros that the rows share. None where none is asked for. Raises OptionError."""
    total = options.target_nnz
    if options.target_sparsity is not None:
        if not header.baseline_nnz:
            raise OptionError(
                "--target-sparsity counts against the network's own parameters, which these states do not know. Use --target-nnz N."
            )
        total = kept_of(options.target_sparsity, header.baseline_nnz)
    if total is None:
        # A pattern alone is its own limit: room for whatever fits it.
        return None if options.pattern is None else {"nnz": _everything(header, tied)}
    carried = header.carried_nnz if tied else 0
    if total < carried:
        raise OptionError(
            f"{total} non-zeros are asked for, but {carried} belong to parts of the network that have no rows (batch norms, embeddings, layers "
            "that could not be taken: simtool inspect NETWORK names them) and stay as they are. Ask for more than "
            f"{carried} of {header.baseline_nnz}."
        )
    return {"nnz": total - carried, "total": total}


def _everything(header: StatesHeader, tied: bool) -> int:
    """Rows times features."""
    if tied:
        return sum(layer.rows * layer.features for layer in header.layers)
    return (header.states + header.outputs) * (header.states + header.inputs)


def write_weights(folder: RunFolder, plan: Plan, source: States) -> None:
    """Leave what a unit of loss of each row costs at the outputs, for :func:`choose`."""
    weights = row_weights(plan, source)
    if plan.options.weighs_rows:
        sample_weights.write(folder, plan, source)
        # A loss counts its samples' weights already: those of Fisher in whole, those of the gates but for their mean.
        is_fisher = plan.options.weight_samples == FISHER
        weights = np.full(plan.rows, 1.0 / plan.m) if is_fisher else weights / sample_weights.means(folder)
    try:
        if np.array_equal(folder.map_array(_WEIGHTS), weights):
            return
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged: written again
    with folder.new_array(_WEIGHTS, weights.shape, np.float64) as mapped:
        mapped[:] = weights


def row_weights(plan: Plan, source: States) -> np.ndarray:
    """(rows,): E||dy/dz_i||^2, summed over the positions that share the row, per sample of its loss.

    Rows whose sensitivity is not known (0 everywhere in their layer) count by the share of their target's variance, scaled like the
    outputs' variance.
    """
    if not plan.layers:
        return np.concatenate([source.sensitivity, np.ones(plan.q)]) / plan.m
    outputs = np.asarray(source.Y[:], dtype=np.float64)
    scale = float(outputs.var(axis=1).sum())
    weights = []
    for layer in source.layers:
        known = np.asarray(layer.sensitivity[()], dtype=np.float64)
        if not known.any():
            spread = np.asarray(layer.targets[:], dtype=np.float64).var(axis=1)
            known = np.full(layer.spec.rows, scale / max(float(spread.sum()), 1e-300))
        weights.append(known / layer.spec.columns)
    return np.concatenate(weights)


def choose(folder: RunFolder, index: int) -> dict[str, Any]:
    """Share the budget out over all rows by the losses of their paths, and store each row's support."""
    del index
    from simtool.budget import allocation
    from simtool.stages.sparsify.plan import plan_of

    plan = plan_of(folder)
    assert plan.budget is not None
    weights = np.asarray(folder.map_array(_WEIGHTS))
    curves: list[np.ndarray] = [np.zeros(1)] * plan.rows
    orders: list[np.ndarray] = [np.zeros(0, dtype=np.int32)] * plan.rows
    for number, shard in enumerate(plan.shards):
        stored = folder.load(path_file(folder, number))
        features = plan.groups[shard.group].features
        ends = np.cumsum(stored["sizes"])
        curves[shard.start : shard.stop] = _curves(folder, number)
        for i, row in enumerate(range(shard.start, shard.stop)):
            orders[row] = features[stored["order"][int(ends[i] - stored["sizes"][i]) : int(ends[i])]]
    sizes = allocation.allocate(curves, weights, plan.budget)
    chosen = _supports_of(orders, sizes)
    while True:
        idle = _unread(plan, chosen)
        idle &= sizes[: idle.size] > 0
        # What no row reads needs no row, and what these rows had is shared out again: nobody may read them from now on.
        left = [_without(order, idle, row) for row, order in enumerate(orders)]
        if not idle.any() or sum(order.size for order in left) < plan.budget:
            break
        orders, curves = left, [curve[: order.size + 1] for curve, order in zip(curves, left, strict=True)]
        sizes = allocation.allocate(curves, weights, plan.budget)
        chosen = _supports_of(orders, sizes)
    predicted = float(sum(weights[i] * curves[i][size] for i, size in enumerate(sizes)))
    folder.store(
        folder.supports,
        {
            "indptr": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            "features": np.concatenate(chosen).astype(np.int64) if chosen else np.zeros(0, dtype=np.int64),
            "predicted": np.array(predicted),
        },
    )
    return {"rows": plan.rows}


def _supports_of(orders: list[np.ndarray], sizes: np.ndarray) -> list[np.ndarray]:
    return [np.sort(order[order.size - size :]) for order, size in zip(orders, sizes, strict=True)]


def _without(order: np.ndarray, idle: np.ndarray, row: int) -> np.ndarray:
    """``order`` of ``row`` without the states that are ``idle`` (n,); nothing for one of them."""
    n = idle.size
    if row < n and idle[row]:
        return order[:0]
    is_state = order < n
    return order[~(is_state & idle[np.where(is_state, order, 0)])] if n else order


def _unread(plan: Plan, chosen: list[np.ndarray]) -> np.ndarray:
    """States (n,) bool that no output depends on, if each row reads what is ``chosen`` for it; none where states are not single."""
    if plan.layers or plan.options.structure == "free":
        return np.zeros(0, dtype=bool)
    read = np.zeros(plan.n, dtype=bool)
    rows = list(range(plan.n, plan.n + plan.q))
    while rows:
        features = chosen[rows.pop()]
        found = features[features < plan.n]
        found = found[~read[found]]
        read[found] = True
        rows += found.tolist()
    return ~read


def sizes_file(folder: RunFolder, depth: int) -> Path:
    """How many features each row of the run has, with --sequential, as settled when ``depth`` got its designs; 0 for other rows."""
    return folder.work / f"sizes-{depth:06d}.shard"


def settle(folder: RunFolder, plan: Plan, depth: int, live: dict[int, int]) -> None:
    """Store the sizes of the rows of ``depth``, of whose groups a row can use ``live`` features on the states they are fitted on.

    A row cannot use more: what is left over goes to other rows of this depth by their curves, and from there to the next.
    """
    from simtool.budget import allocation

    indptr, _ = _chosen(folder, plan)
    wanted = np.diff(indptr)
    before = 0
    if depth > 1:
        stored = folder.load(sizes_file(folder, depth - 1))
        before = int(stored["left"])
    sizes = np.zeros(plan.rows, dtype=np.int64)
    weights, rows, most, curves = np.asarray(folder.map_array(_WEIGHTS)), [], [], []
    for number, shard in enumerate(plan.shards):
        if shard.group not in live:
            continue
        for row, curve in zip(range(shard.start, shard.stop), _curves(folder, number), strict=True):
            rows.append(row)
            most.append(min(live[shard.group], curve.size - 1))
            curves.append(curve[: most[-1] + 1])
    total = before + int(wanted[rows].sum())
    found = allocation.allocate(curves, weights[rows], total, np.minimum(wanted[rows], most))
    sizes[rows] = found
    folder.store(sizes_file(folder, depth), {"sizes": sizes, "left": np.array(total - int(found.sum()))})


def _curves(folder: RunFolder, index: int) -> list[np.ndarray]:
    """The losses of the rows of shard ``index`` at every size."""
    stored = folder.load(path_file(folder, index))
    ends = np.cumsum(stored["sizes"] + 1)
    return [stored["losses"][end - size - 1 : end] for end, size in zip(ends, stored["sizes"], strict=True)]


def is_chosen(folder: RunFolder, plan: Plan) -> bool:
    """Whether the supports of the rows are settled: always, but for a budget that has not been shared out yet."""
    return plan.budget is None or folder.holds(folder.supports)


def support(folder: RunFolder, plan: Plan, shard: Shard) -> np.ndarray | None:
    """Which features of its group each row of ``shard`` may use, (r, d) bool; None for all."""
    if plan.budget is None:
        return None
    group = plan.groups[shard.group]
    mask = np.zeros((shard.stop - shard.start, group.features.size), dtype=bool)
    if plan.depths[shard.group] > 0:
        sizes = folder.load(sizes_file(folder, plan.depths[shard.group]))["sizes"][shard.start : shard.stop]
        for i, found in enumerate(fitted_supports(folder, plan, shard, sizes)):
            mask[i, found] = True
        return mask
    indptr, features = _chosen(folder, plan)
    for i, row in enumerate(range(shard.start, shard.stop)):
        mask[i, np.searchsorted(group.features, features[indptr[row] : indptr[row + 1]])] = True
    return mask


def _chosen(folder: RunFolder, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The supports that :func:`choose` left: row i has ``features[indptr[i] : indptr[i + 1]]``."""
    stored = folder.load(folder.supports)
    if stored["indptr"].size != plan.rows + 1:
        raise FormatError(f"{folder.supports} does not belong to this run. Delete it and run again.")
    return stored["indptr"], stored["features"]
