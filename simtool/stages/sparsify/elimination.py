"""What ``--eliminate`` found: features that no row of a run reads, and what can be dropped with them.

A feature is a row of [X; U]; the bias is never counted or dropped. Per row, the shard stores one bit a feature:
set where the feature is proven inactive in every optimal row (``safe``, :mod:`simtool.screening`), or is zero on every
sample, so that its coefficient has no effect. A state whose column no row needs can lose its own row of Z, and then
what only that row needed can go too: the *closure* keeps just what is reached from the rows of Y.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.certificate import Certificates
from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, OptionError
from simtool.problem import RowSet
from simtool.screening import inactive
from simtool.stages.sparsify.folder import RunFolder

if TYPE_CHECKING:
    from simtool.stages.sparsify.plan import Plan
    from simtool.stages.sparsify.structure import RowGroup

ELIMINATION_VERSION = 1
_RESULT_KEYS = frozenset({"eliminated_features", "eliminated_per_row_mean"})


def check_features(wanted: int | None, n: int, p: int, has_bias: bool) -> None:
    """Raise OptionError unless ``wanted`` features (--features) can be left of n states and p inputs."""
    most = n + p - has_bias
    if wanted is not None and not 1 <= wanted <= most:
        raise OptionError(
            f"--features must lie in [1, {most}] ({n} states and {p - has_bias} inputs; the bias is not counted and "
            f"always stays), got {wanted}."
        )


# --- per row ------------------------------------------------------------------------------------------------------------


def proven_bits(rows: RowSet, w: np.ndarray, proof: Certificates) -> np.ndarray:
    """One bit a feature of the design, packed along axis 1: (r, ceil(d / 8)) uint8; see the module."""
    usable = True if rows.allowed is None else rows.allowed
    return np.packbits((inactive(rows, w, proof).inactive | rows.design.dead) & usable, axis=1)


def kept_features(folder: RunFolder, plan: Plan) -> np.ndarray | None:
    """The features (n + p,) bool that the heuristic left to the rows of this run; None where rows keep all."""
    if plan.options.eliminate != "heuristic":
        return None
    kept = np.asarray(folder.load(folder.kept)["kept"], dtype=bool)
    if kept.shape != (plan.n + plan.p,):
        raise FormatError(f"{folder.kept} does not belong to this run. Delete it and run again.")
    return kept


# --- all rows -----------------------------------------------------------------------------------------------------------


def _rows(folder: RunFolder, plan: Plan) -> Iterator[tuple[int, RowGroup, np.ndarray, np.ndarray]]:
    """Per row of [Z; Y]: its number, its group, and (d,) bool which features it may use and which it needs."""
    kept = kept_features(folder, plan)
    for index, shard in enumerate(plan.shards):
        group = plan.groups[shard.group]
        rows = np.arange(shard.start, shard.stop)
        allowed = plan.allowed(group, rows)
        usable = np.ones((rows.size, group.features.size), dtype=bool) if allowed is None else allowed
        if kept is not None:
            unneeded = np.broadcast_to(~kept[group.features], usable.shape)
        else:
            packed = folder.load(folder.shard(index))["proven"]
            unneeded = np.unpackbits(packed, axis=1, count=group.features.size).astype(bool)
        for k, row in enumerate(rows):
            yield int(row), group, usable[k], usable[k] & ~unneeded[k]


def _split(plan: Plan, chosen: np.ndarray) -> dict[str, list[int]]:
    """Features (n + p,) bool as rows of X and of U in the states file."""
    return {
        "X": np.flatnonzero(chosen[: plan.n]).tolist(),
        "U": np.flatnonzero(chosen[plan.n :]).tolist(),
    }


def _curve(folder: RunFolder) -> list[dict[str, Any]]:
    """The rounds of the heuristic as stored before any row was solved."""
    stored = folder.load(folder.kept)
    names = ("features", "unused", "removed", "mse", "mse_outputs")
    columns = zip(*(stored[name].tolist() for name in names), strict=True)
    return [dict(zip(names, values, strict=True)) for values in columns]


def _reached(plan: Plan, needs: dict[int, tuple[RowGroup, np.ndarray]]) -> np.ndarray:
    """Features (n + p,) bool that the rows of Y need, directly or through the states they read."""
    reached = np.zeros(plan.n + plan.p, dtype=bool)
    waiting = list(range(plan.n, plan.n + plan.q))
    while waiting:
        group, bits = needs[waiting.pop()]
        features = group.features[np.unpackbits(bits, count=group.features.size).astype(bool)]
        fresh = features[~reached[features]]
        reached[fresh] = True
        waiting += fresh[fresh < plan.n].tolist()
    return reached


def summarise(folder: RunFolder, plan: Plan) -> dict[str, Any]:
    """What elimination.json says of the finished shards of ``folder``."""
    total = plan.n + plan.p
    counted = np.ones(total, dtype=bool)
    counted[total - plan.has_bias :] = False
    usable, used = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
    per_row = np.zeros(plan.n + plan.q, dtype=np.int64)
    outside = np.zeros(plan.n + plan.q, dtype=np.int64)
    needs: dict[int, tuple[RowGroup, np.ndarray]] = {}
    for row, group, may, reads in _rows(folder, plan):
        usable[group.features[may]] = True
        used[group.features[reads]] = True
        needs[row] = group, np.packbits(reads)
        per_row[row] = np.count_nonzero(may & ~reads & counted[group.features])
        outside[row] = counted.sum() - np.count_nonzero(may & counted[group.features])
    reached = _reached(plan, needs)
    safe = plan.options.eliminate == "safe"
    gone = usable & ~used & counted
    rounds = {} if safe else {"wanted": plan.options.features, "rounds": _curve(folder)}
    return {
        **rounds,
        "format_version": ELIMINATION_VERSION,
        "mode": plan.options.eliminate,
        "features": int(counted.sum()),
        "proven" if safe else "eliminated": _split(plan, gone),
        "unused_by_structure": _split(plan, ~usable & counted),
        "droppable": {
            **_split(plan, ~reached & counted),
            "Z": np.flatnonzero(~reached[: plan.n]).tolist(),
        },
        "eliminated_features": int(gone.sum()),
        "eliminated_per_row_mean": float(per_row.mean()),
        "eliminated_per_row_min": int(per_row.min()),
        "eliminated_per_row_max": int(per_row.max()),
        "outside_structure_per_row_mean": float(outside.mean()),
    }


def read(folder: RunFolder) -> dict[str, Any] | None:
    """elimination.json, None where the run has none; raises FormatError where it cannot be read."""
    if not folder.elimination.exists():
        return None
    try:
        content = json.loads(folder.elimination.read_text())
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{folder.elimination} cannot be read ({error}). Delete it; the same simtool sparsify command writes it "
            "again."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != ELIMINATION_VERSION:
        raise FormatError(
            f"{folder.elimination} has format version {version!r}; this simtool reads {ELIMINATION_VERSION}. Use the "
            "version that wrote it, or a new folder."
        )
    return dict(content)


def write_weights(folder: RunFolder, sensitivity: np.ndarray) -> None:
    """Put the mean square sensitivities of the outputs to the states (n,) where the heuristic's task reads them."""
    if not folder.array("sensitivity").exists():
        with folder.new_array("sensitivity", sensitivity.shape, np.float64) as mapped:
            mapped[:] = sensitivity


def result_keys(plan: Plan) -> frozenset[str]:
    """What ``--eliminate`` adds to the result of a run."""
    return frozenset() if plan.options.eliminate == "none" else _RESULT_KEYS


def finish(folder: RunFolder, plan: Plan) -> dict[str, Any]:
    """Write elimination.json from the finished shards; returns what it adds to the result."""
    if plan.options.eliminate == "none":
        return {}
    content = summarise(folder, plan)
    write_bytes(folder.elimination, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return {key: content[key] for key in _RESULT_KEYS}


def is_chosen(folder: RunFolder, plan: Plan) -> bool:
    """Whether the features of the rows are settled: always, but for a heuristic that has not run yet."""
    return plan.options.eliminate != "heuristic" or folder.holds(folder.kept)


def is_complete(folder: RunFolder, plan: Plan) -> bool:
    """Whether all that ``--eliminate`` adds to a finished run is there."""
    if plan.options.eliminate == "none":
        return True
    if not is_chosen(folder, plan):
        return False
    try:
        return read(folder) is not None
    except FormatError:
        return False
