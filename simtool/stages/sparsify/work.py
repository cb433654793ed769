"""The tasks of a run: one Gram tile, one shard of rows. Pure functions of the files in the run folder."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simtool.blocks import Block, check, from_json
from simtool.certificate import FIXED_SUPPORT, NORMAL_EQUATIONS
from simtool.design import SAMPLE_TILE, Design
from simtool.errors import FormatError
from simtool.layers import from_json as layers_from_json
from simtool.problem import RowSet
from simtool.solvers import regime
from simtool.stages.sparsify import budget, constraints, relative, sequential
from simtool.stages.sparsify.answer import Task, answer
from simtool.stages.sparsify.elimination import kept_features, proven_bits
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions, objective_of
from simtool.stages.sparsify.structure import (
    FULL,
    GRAM_TILE,
    Bank,
    RowGroup,
    Shard,
    gram_features,
    gram_tiles,
    layer_groups,
    row_groups,
    shards,
)

# States, inputs or outputs of a run; a spec that claims more is damaged, and believing it takes all memory.
_MOST = 2**24
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


class Plan:
    """What spec.json says is to be done: the groups, shards and Gram tiles of a run."""

    def __init__(self, spec: dict[str, Any]) -> None:
        try:
            self._read(spec)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
            raise FormatError(
                f"spec.json is damaged ({type(error).__name__}: {error}). Start again in a new folder."
            ) from error

    def _read(self, spec: dict[str, Any]) -> None:
        sizes = spec["sizes"]
        self.n, self.p, self.q, self.m = (int(sizes[key]) for key in ("n", "p", "q", "m"))
        if min(self.p, self.q, self.m) < 1 or max(self.n, self.p, self.q) > _MOST:
            raise ValueError(f"the sizes {sizes} are not in 1..{_MOST}")
        self.has_bias = bool(spec["has_bias"])
        self.options = SparsifyOptions(**spec["options"])
        # Only a run whose rows are those of layers has this section.
        self.layers = layers_from_json(spec.get("layers", []))
        self.blocks: tuple[Block, ...] = ()
        if self.layers:
            self.groups, self.banks = layer_groups(self.layers, self.options.anchor is not None)
        else:
            self.blocks = from_json(spec["blocks"])
            check(self.blocks, self.n, spec["output_parents"])
            self.groups = row_groups(
                self.options.structure,
                self.blocks,
                spec["output_parents"],
                self.p,
                self.q,
                self.has_bias,
            )
            whole = Bank("design", "targets", (0, self.n + self.p), (0, self.n + self.q), self.m)
            self.banks = (whole,)
        self.budget: int | None = int(spec["budget"]["nnz"]) if "budget" in spec else None
        self.depths = self._depths()
        self._is_state, self._is_bias = self._kinds()
        # Only a run with an objective of the user's own has this section.
        self._source_sha256 = spec.get("objective", {}).get("source_sha256")
        self.shards: tuple[Shard, ...] = shards(self.groups, [bank.samples for bank in self.banks])
        wanting = [g for g in self.groups if self._wants_gram(g)]
        self.grams = gram_features(wanting, self.features)
        self.gram_banks = {group.gram: group.bank for group in wanting}
        self.tiles = gram_tiles({name: features.size for name, features in self.grams.items()})

    @property
    def features(self) -> int:
        """Of all designs together: n + p where there is one."""
        return self.banks[-1].features[1]

    @property
    def rows(self) -> int:
        """Of all together: n + q, or those of the layers."""
        return self.banks[-1].rows[1]

    def _depths(self) -> tuple[int, ...]:
        """Of each group: 0, but with --sequential."""
        if not self.options.sequential:
            return (0,) * len(self.groups)
        if self.layers:
            return sequential.layer_depths(self.groups, [layer.reads_input for layer in self.layers])
        return sequential.depths(self.groups, self.n)

    def at_depth(self, depth: int) -> list[int]:
        """The groups of ``depth``."""
        return [index for index, own in enumerate(self.depths) if own == depth]

    def samples(self, group: RowGroup) -> int:
        """Samples of the group's rows."""
        return self.banks[group.bank].samples

    def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Which features are states (the rest are inputs and the bias), and which are the constant 1: (features,) bool each."""
        is_state, is_bias = (np.zeros(self.features, dtype=bool) for _ in range(2))
        if not self.layers:
            is_state[: self.n] = True
            is_bias[-1] = self.has_bias
        for layer, bank in zip(self.layers, self.banks, strict=False):
            start, stop = bank.features
            is_state[start : stop - int(layer.has_bias)] = not layer.reads_input
            is_bias[stop - 1] = layer.has_bias
        return is_state, is_bias

    def bounded(self, group: RowGroup) -> np.ndarray:
        """The set S among the group's features, (d,) bool."""
        if self.options.kappa_on == "a":
            return self._is_state[group.features]
        return np.ones(group.features.size, dtype=bool)

    def allowed(self, group: RowGroup, rows: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray | None:
        """The features that each of ``rows`` may use, (r, d) bool; None for all of the group's. ``mask`` is --mask."""
        allowed = None if mask is None else mask[np.ix_(rows, group.features)]
        if group.excludes_itself:
            others = group.features != rows[:, None]
            allowed = others if allowed is None else allowed & others
        return allowed

    def bounds(self, group: RowGroup) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Bounds of the coefficients, lower and upper (d,), or None for none."""
        return constraints.bounds(self.options.sign, self.options.box, self._is_bias[group.features])

    def smooth(self, group: RowGroup) -> np.ndarray:
        """Features (d,) bool that only a mask can make zero: see :class:`simtool.problem.RowSet`."""
        objective = objective_of(self.options, group.is_output, self.samples(group))
        smooth = np.full(group.features.size, objective.penalty.slope == 0.0)
        if objective.kappa is not None:
            smooth &= ~self.bounded(group)
        for bound in self.bounds(group):
            if bound is not None:
                smooth &= ~np.isfinite(bound)
        return smooth

    @property
    def has_constraints_file(self) -> bool:
        """Whether the run folder holds a mask or sample weights."""
        return self.options.mask is not None or self.options.weights_file

    def task(self, group: RowGroup) -> Task:
        """What is asked of the group's rows."""
        options = self.options
        return Task(
            objective=options.objective,
            source_sha256=self._source_sha256,
            match=options.match,
            solver=options.solver or "native",
            tolerance=options.tol,
            states=int(self._is_state[group.features].sum()),
        )

    def _wants_gram(self, group: RowGroup) -> bool:
        """Whether the group's rows are solved on a Gram matrix: natively, and where that pays."""
        if self.options.solver != "native":
            return False
        if self.budget is not None:
            return True  # paths are found on it
        sharing = sum(g.rows[1] - g.rows[0] for g in self.groups if g.gram == group.gram)
        d = self.features if group.gram == FULL else group.features.size
        return regime.gram_pays(d, self.samples(group), sharing)


@functools.lru_cache(maxsize=4)
def _plan(path: Path, content: bytes) -> Plan:
    del content  # part of the key: another spec at the same path is another plan, whatever a clock says of it
    return Plan(RunFolder(path).read_spec())


def plan_of(folder: RunFolder) -> Plan:
    """The plan of a run folder, made once per process. Raises InputError if it has no spec."""
    try:
        return _plan(folder.path, folder.spec.read_bytes())
    except OSError:
        return Plan(folder.read_spec())  # says what is wrong


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
    bank = plan.banks[group.bank]
    targets = folder.map_array(bank.targets)[shard.start - bank.rows[0] : shard.stop - bank.rows[0]]
    out = []
    allowed = plan.allowed(group, rows, asked.mask)
    supports = budget.support(folder, plan, shard)
    if supports is not None:
        allowed = supports if allowed is None else allowed & supports
    for at, features in constraints.pieces(allowed, plan.smooth(group), rows.size):
        part = replace(group, features=group.features[features])
        usable = None if allowed is None else allowed[np.ix_(at, features)]
        w, chosen, gram = fitted_design_of(folder, plan, shard.group, part)
        z = targets if at.size == rows.size else targets[at]
        design = Design(w, gram, asked.sample_weight, chosen)
        piece = Piece(at, part, problems(plan, part, design, z, usable))
        out += relative.split(piece) if plan.options.kappa_relative else [piece]
    return out


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
