"""A wanted number of non-zeros over all rows: the path of each row, one allocation of the whole budget, supports for the rows.

    tiles -> paths (a task a shard) -> choice (one task: the allocation) -> rows (coefficients on their supports, certified)

The supports are a heuristic's (backward elimination, simtool.budget); given its support, each row is proven optimal, and its certificate
says so: kind ``fixed-support``.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.errors import FormatError, OptionError
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.paths import path_file
from simtool.states import States, StatesHeader

if TYPE_CHECKING:
    from simtool.stages.sparsify.options import SparsifyOptions
    from simtool.stages.sparsify.structure import Shard
    from simtool.stages.sparsify.work import Plan

_WEIGHTS = "row-weights"


def spec_of(options: SparsifyOptions, header: StatesHeader, tied: bool) -> dict[str, int] | None:
    """What a spec says of the budget: the non-zeros that the rows share. None where none is asked for. Raises OptionError."""
    total = options.target_nnz
    if options.target_sparsity is not None:
        if not header.baseline_nnz:
            raise OptionError(
                "--target-sparsity counts against the network's own parameters, which these states do not know. Use --target-nnz N."
            )
        total = math.floor((1.0 - options.target_sparsity) * header.baseline_nnz)
    if total is None:
        return None
    carried = header.carried_nnz if tied else 0
    if total < carried:
        raise OptionError(
            f"{total} non-zeros are asked for, but {carried} belong to parts of the network that have no rows (batch norms, embeddings, layers "
            "that could not be taken: simtool inspect NETWORK names them) and stay as they are. Ask for more than "
            f"{carried} of {header.baseline_nnz}."
        )
    return {"nnz": total - carried, "total": total}


def write_weights(folder: RunFolder, plan: Plan, source: States) -> None:
    """Leave what a unit of loss of each row costs at the outputs, for :func:`choose`."""
    weights = row_weights(plan, source)
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
    from simtool.stages.sparsify.work import plan_of

    plan = plan_of(folder)
    assert plan.budget is not None
    weights = np.asarray(folder.map_array(_WEIGHTS))
    curves: list[np.ndarray] = [np.zeros(1)] * plan.rows
    orders: list[np.ndarray] = [np.zeros(0, dtype=np.int32)] * plan.rows
    for number, shard in enumerate(plan.shards):
        stored = folder.load(path_file(folder, number))
        features = plan.groups[shard.group].features
        ends = np.cumsum(stored["sizes"])
        for i, row in enumerate(range(shard.start, shard.stop)):
            start, stop = int(ends[i] - stored["sizes"][i]), int(ends[i])
            curves[row] = stored["losses"][start + i : stop + i + 1]  # one loss more than features
            orders[row] = features[stored["order"][start:stop]]
    sizes = allocation.allocate(curves, weights, plan.budget)
    chosen = [np.sort(order[order.size - size :]) for order, size in zip(orders, sizes, strict=True)]
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


def is_chosen(folder: RunFolder, plan: Plan) -> bool:
    """Whether the supports of the rows are settled: always, but for a budget that has not been shared out yet."""
    return plan.budget is None or folder.holds(folder.supports)


def support(folder: RunFolder, plan: Plan, shard: Shard) -> np.ndarray | None:
    """Which features of its group each row of ``shard`` may use, (r, d) bool; None for all."""
    if plan.budget is None:
        return None
    indptr, features = _supports(folder.supports, folder.supports.stat().st_mtime_ns, RunFolder(folder.path))
    group = plan.groups[shard.group]
    if indptr.size != plan.rows + 1:
        raise FormatError(f"{folder.supports} does not belong to this run. Delete it and run again.")
    mask = np.zeros((shard.stop - shard.start, group.features.size), dtype=bool)
    for i, row in enumerate(range(shard.start, shard.stop)):
        mask[i, np.searchsorted(group.features, features[indptr[row] : indptr[row + 1]])] = True
    return mask


@functools.lru_cache(maxsize=2)
def _supports(path: Path, modified: int, folder: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    del modified  # part of the key
    stored = folder.load(path)
    return stored["indptr"], stored["features"]
