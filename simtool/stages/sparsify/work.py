"""The tasks of a run: one Gram tile, one shard of rows. Pure functions of the files in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simtool.certificate import FIXED_SUPPORT, NORMAL_EQUATIONS
from simtool.design import SAMPLE_TILE, Design
from simtool.problem import RowSet
from simtool.stages.sparsify import budget, constraints, relative, sample_weights, sequential
from simtool.stages.sparsify.answer import answer
from simtool.stages.sparsify.elimination import kept_features, proven_bits
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import objective_of
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.structure import (
    GRAM_TILE,
    RowGroup,
    Shard,
)

CERTIFICATE_FIELDS = (
    "primal",
    "dual",
    "relative_gap",
    "kappa_slack",
    "multiplier",
    "projection_error",
    "kind",
    "certified",
    "status",
)


def gram_tile(folder: RunFolder, index: int) -> dict[str, Any]:
    """Compute tile ``index`` of the Gram matrices and leave it in the work folder."""
    plan = plan_of(folder)
    name, i, j = plan.tiles[index]
    bank = plan.banks[plan.gram_banks[name]]
    features = plan.grams[name] - bank.features[0]
    w = folder.map_array(bank.design)
    root = Design(w, sample_weight=constraints_of(folder, plan).sample_weight).root_weight
    left, right = features[i : i + GRAM_TILE], features[j : j + GRAM_TILE]
    total = np.zeros((left.size, right.size))
    for start in range(0, bank.samples, SAMPLE_TILE):
        samples = slice(start, start + SAMPLE_TILE)
        scale = 1.0 if root is None else root[samples]
        a = np.asarray(w[left, samples], dtype=np.float64) * scale
        b = a if i == j else np.asarray(w[right, samples], dtype=np.float64) * scale
        total += a @ b.T
    folder.store(folder.tile(index), {"tile": total})
    return {}


def assemble_gram(folder: RunFolder, name: str) -> None:
    """Put the finished tiles of Gram matrix ``name`` together as one mapped array."""
    plan = plan_of(folder)
    size = plan.grams[name].size
    with folder.new_array(gram_array(plan, name), (size, size), np.float64) as gram:
        _fill(folder, plan, name, gram)
    folder.seal(gram_array(plan, name))


def _fill(folder: RunFolder, plan: Plan, name: str, gram: np.ndarray) -> None:
    for index, (owner, i, j) in enumerate(plan.tiles):
        if owner == name:
            tile = folder.load(folder.tile(index))["tile"]
            gram[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
            gram[j : j + tile.shape[1], i : i + tile.shape[0]] = tile.T


def gram_array(plan: Plan, name: str) -> str:
    """The array name of Gram matrix ``name`` (block names need not be file names)."""
    return f"gram-{sorted(plan.grams).index(name)}"


def kept_group(plan: Plan, shard: Shard, kept: np.ndarray | None) -> RowGroup:
    """The group of ``shard``, without the features that are not ``kept`` (features,) bool; None keeps all."""
    group = plan.groups[shard.group]
    return group if kept is None else replace(group, features=group.features[kept[group.features]])


def constraints_of(folder: RunFolder, plan: Plan) -> constraints.Constraints:
    """The mask and the sample weights of a run."""
    return constraints.load(folder.constraints) if plan.has_constraints_file else constraints.NONE


@dataclass(frozen=True)
class Piece:
    """Rows of a shard that share a design: ``at`` counts into the shard, ``group`` has the features they share."""

    at: np.ndarray
    group: RowGroup
    rows: RowSet


def row_sets(folder: RunFolder, shard: Shard, kept: np.ndarray | None = None) -> list[Piece]:
    """The convex problems of ``shard``, in the features ``kept`` (n + p,) bool, or all.

    One piece, unless a mask hides features from some rows only that nothing but the mask makes zero; with a relative kappa, one a row.
    """
    plan = plan_of(folder)
    group = kept_group(plan, shard, kept)
    asked = constraints_of(folder, plan)
    rows = np.arange(shard.start, shard.stop)
    targets = sequential.targets_of(folder, plan, shard)
    out = []
    allowed = plan.allowed(group, rows, asked.mask)
    supports = budget.support(folder, plan, shard)
    if supports is not None:
        allowed = supports if allowed is None else allowed & supports
    if plan.options.weighs_rows:
        assert allowed is not None
        return _weighted_pieces(folder, plan, shard, group, targets, allowed)
    for at, features in constraints.pieces(allowed, plan.smooth(group), rows.size):
        part = replace(group, features=group.features[features])
        usable = None if allowed is None else allowed[np.ix_(at, features)]
        w, chosen, gram = fitted_design_of(folder, plan, shard.group, part)
        z = targets if at.size == rows.size else targets[at]
        design = Design(w, gram, asked.sample_weight, chosen)
        piece = Piece(at, part, problems(plan, part, design, z, usable))
        out += relative.split(piece) if plan.options.kappa_relative else [piece]
    return out


def _weighted_pieces(
    folder: RunFolder, plan: Plan, shard: Shard, group: RowGroup, targets: np.ndarray, allowed: np.ndarray
) -> list[Piece]:
    """Every row by itself, on its support (a row of ``allowed``), where samples weigh differently in each."""
    weights = sample_weights.stored(folder, slice(shard.start, shard.stop))
    out = []
    for i, usable in enumerate(allowed):
        part = replace(group, features=group.features[usable])
        w, chosen, _ = fitted_design_of(folder, plan, shard.group, part)
        design = Design(w, sample_weight=weights[i], features=chosen)
        out.append(Piece(np.array([i]), part, problems(plan, part, design, targets[i : i + 1], None)))
    return [
        one for piece in out for one in (relative.split(piece) if plan.options.kappa_relative else [piece])
    ]


def row_set(folder: RunFolder, shard: Shard, kept: np.ndarray | None = None) -> RowSet:
    """The convex problems of a ``shard`` that is one piece, as all are without a mask."""
    (piece,) = row_sets(folder, shard, kept)
    return piece.rows


def design_of(
    folder: RunFolder, plan: Plan, group: RowGroup
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The mapped array whose rows are features, which of them are the group's (None: all), and their Gram matrix if the run
    has one. Nothing is copied that the map can give."""
    bank = plan.banks[group.bank]
    design, features = folder.map_array(bank.design), group.features
    run = _as_slice(features - bank.features[0])
    w, chosen = (design[run], None) if run is not None else (design, features - bank.features[0])
    gram = None
    if group.gram in plan.grams:
        mapped = folder.map_array(gram_array(plan, group.gram))
        at = np.searchsorted(plan.grams[group.gram], features)
        run = _as_slice(at)
        gram = np.asarray(mapped[run, run]) if run is not None else mapped[np.ix_(at, at)]
    return w, chosen, gram


def fitted_design_of(
    folder: RunFolder, plan: Plan, index: int, group: RowGroup
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The same for what rows of group ``index`` are fitted on, ``group`` with some of its features: with --sequential from depth 1 on
    the states of the part that is sparse already."""
    if plan.depths[index] == 0:
        return design_of(folder, plan, group)
    at = np.searchsorted(plan.groups[index].features, group.features)
    gram = folder.map_array(sequential.gram_array(index))[np.ix_(at, at)]
    return folder.map_array(sequential.design_array(index)), at, gram


def _as_slice(indices: np.ndarray) -> slice | None:
    """Increasing ``indices`` as a slice, None if there are gaps."""
    if not indices.size:
        return slice(0, 0)
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == indices.size else None


def problems(
    plan: Plan, group: RowGroup, design: Design, targets: np.ndarray, allowed: np.ndarray | None
) -> RowSet:
    """The convex problems of rows of ``group``, on their design and targets (r, m).

    ``allowed`` (r, d) bool says which features each row may use; where it hides smooth features the rows must share it there (see
    :func:`row_sets`).
    """
    lower, upper = plan.bounds(group)
    return RowSet(
        design=design,
        targets=targets,
        objective=objective_of(plan.options, group.is_output, plan.samples(group)),
        constrained=plan.bounded(group),
        allowed=None if allowed is None or allowed.all() else allowed,
        lower=lower,
        upper=upper,
    )


def solve_shard(folder: RunFolder, index: int) -> dict[str, Any]:
    """Solve and certify shard ``index`` and leave it in the rows folder."""
    plan = plan_of(folder)
    shard = plan.shards[index]
    kept = kept_features(folder, plan)
    count, features = shard.stop - shard.start, plan.groups[shard.group].features
    w = np.zeros((count, features.size))
    columns: dict[str, np.ndarray] = {}
    proven: list[np.ndarray] = []
    for piece in row_sets(folder, shard, kept):
        found = answer(piece.rows, plan.task(piece.group))
        w[np.ix_(piece.at, np.searchsorted(features, piece.group.features))] = found.w
        proof = found.proof
        if plan.options.mask is not None or plan.budget is not None:
            proof = replace(proof, kind=np.where(proof.kind <= NORMAL_EQUATIONS, FIXED_SUPPORT, proof.kind))
        for field in CERTIFICATE_FIELDS:
            values = found.status if field == "status" else getattr(proof, field)
            columns.setdefault(field, np.empty(count, values.dtype))[piece.at] = values
        if plan.options.eliminate == "safe":
            proven.append(proven_bits(piece.rows, found.w, proof))
    non_zero = w != 0
    _, local = np.nonzero(non_zero)
    arrays = {
        "indptr": np.concatenate([[0], np.cumsum(non_zero.sum(axis=1))]).astype(np.int64),
        "indices": features[local].astype(np.int64),
        "data": w[non_zero],
        **columns,
    }
    if proven:
        arrays["proven"] = np.concatenate(
            proven
        )  # --eliminate takes no mask: pieces come in the order of their rows
    folder.store(folder.shard(index), arrays)
    return {
        "rows": count,
        "certified": int(columns["certified"].sum()),
        "worst": float(columns["relative_gap"].max(initial=0.0)),
    }
