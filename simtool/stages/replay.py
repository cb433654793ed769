"""One row of a run as a file of its own: everything its problem is made of, to be solved and judged again anywhere.

``dump_row`` writes row.npz (plain arrays, no pickles); ``replay`` judges the stored row anew, and solves it again with any
solver. The states are read from the file the run was made from, which must not have changed.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simtool.certificate import KINDS
from simtool.design import Design
from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, InputError, OptionError, OutputError
from simtool.model import load_layers, load_model
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.row_status import STATUSES, RowStatus
from simtool.stages.sparsify import budget, constraints, sample_weights
from simtool.stages.sparsify.anchor import anchored, anchored_states
from simtool.stages.sparsify.answer import Answer, Task, answer, judge, statuses
from simtool.stages.sparsify.elimination import kept_features
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.structure import RowGroup
from simtool.stages.sparsify.student import BlockStudent
from simtool.stages.sparsify.work import constraints_of, kept_group, problems
from simtool.states import States, first, open_states

MAGIC = "simtool-row"
_VERSION = 1


@dataclass(frozen=True)
class RowDump:
    """One row: its problem (a RowSet of one row), what was asked of it, and the row as stored.

    Attributes
    ----------
    row : its number in [Z; Y], or among the rows of all layers
    features : (d,) numbers in [X; U], or among the features of its layer, of the rows of W
    problem : the convex problem
    task : objective, match, solver, tolerance
    design : (d, m) W as the states file holds it
    w : (d,) the stored coefficients
    """

    row: int
    features: np.ndarray
    design: np.ndarray
    problem: RowSet
    task: Task
    w: np.ndarray


def dump_row(run: str | Path, row: int, output: str | Path, *, states: str | Path) -> Path:
    """Write row ``row`` of the finished run ``run`` to ``output``; ``states`` is the file the run was made from.

    Raises InputError if the run is not finished, the states are others or there is no such row, OptionError if ``run`` is no
    folder, OutputError if ``output`` exists.
    """
    target = Path(output)
    if target.exists():
        raise OutputError(f"{target} exists already. Choose another file name.")
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise OptionError(
            f"--dump needs the folder of a run, {run} is not one: the run's spec says how its rows were posed."
        )
    spec = folder.read_spec()
    plan = Plan(spec)
    if not folder.model.exists():
        raise InputError(
            f"{folder.path} is not finished. Run the same simtool sparsify command again to finish it."
        )
    layers = load_layers(folder.model) if plan.layers else None
    model = load_model(folder.model) if layers is None else layers
    indices, values = model.row(row)  # also says which there are
    shard = next(shard for shard in plan.shards if shard.start <= row < shard.stop)
    group, asked = kept_group(plan, shard, kept_features(folder, plan)), constraints_of(folder, plan)
    allowed = plan.allowed(group, np.array([row]), asked.mask)
    depth = plan.depths[shard.group]
    if depth:
        supports: np.ndarray | None = np.isin(group.features, indices)[None]  # found on states that are gone
    else:
        supports = budget.support(folder, plan, replace(shard, start=row, stop=row + 1))
    if supports is not None:
        allowed = supports if allowed is None else allowed & supports
    ((_, usable),) = constraints.pieces(allowed, plan.smooth(group), 1)
    group = replace(group, features=group.features[usable])
    allowed = None if allowed is None else allowed[:, usable]
    with open_states(Path(states)) as source:
        expected = spec["states"]["content_sha256"]
        if source.content_sha256() != expected:
            raise InputError(
                f"{states} is not the file that {folder.path} was made from (its content hash is "
                f"{source.content_sha256()[:12]}, the run's {expected[:12]}). Pass the run's own states file with --states."
            )
        part = first(source, plan.m)
        w, z = _arrays(part, plan, group, row)
        if depth:
            w = _student_design(folder, plan, part, shard.group, group)
        weight = asked.sample_weight
        if plan.options.weighs_rows:
            weight = sample_weights.of_rows(plan, part)[row].astype(np.float64)
        design = Design(w, sample_weight=weight)
        rows = problems(plan, group, design, z, allowed)
    features = group.features - plan.banks[group.bank].features[0]
    stored = np.zeros(features.size)
    stored[np.searchsorted(features, indices)] = values
    if plan.options.kappa_relative and rows.objective.kappa is not None and model.certificates is not None:
        # What the share meant for this row is in its certificate.
        slack = float(model.certificates.kappa_slack[row])
        rows = rows.with_kappa(slack + float(np.abs(stored[rows.constrained]).sum()))
    _write(target, RowDump(row, features, w, rows, plan.task(group), stored))
    return target


def _arrays(source: States, plan: Plan, group: RowGroup, row: int) -> tuple[np.ndarray, np.ndarray]:
    """W (d, m) of the features of ``group``, and the target (1, m) of ``row``."""
    if plan.layers:
        bank, own = plan.banks[group.bank], row - plan.banks[group.bank].rows[0]
        design, targets = anchored(source.layers[group.bank], plan.options.anchor or 0.0)
        return np.asarray(design[:])[group.features - bank.features[0]], np.asarray(targets[own : own + 1])
    states, inputs = (
        group.features[group.features < plan.n],
        group.features[group.features >= plan.n] - plan.n,
    )
    arrays = anchored_states(source, plan.options.anchor or 0.0)
    w = np.concatenate([np.asarray(arrays.X[:])[states], np.asarray(arrays.U[:])[inputs]])
    z = arrays.Z[row : row + 1] if row < plan.n else arrays.Y[row - plan.n : row - plan.n + 1]
    return w, np.asarray(z)


def _student_design(folder: RunFolder, plan: Plan, source: States, index: int, group: RowGroup) -> np.ndarray:
    """W (d, m) of a row fitted behind sparse ones: their states at the features of ``group``, which is part of group ``index``."""
    if plan.layers:
        raise InputError(
            f"the rows of {group.name} were fitted on what the network computes behind sparse layers, which is not kept. Rows of layers that "
            "read the network's input can be dumped, and all rows of a run without --sequential."
        )
    arrays = anchored_states(source, plan.options.anchor or 0.0)
    own = np.concatenate([np.asarray(arrays.X[:]), np.asarray(arrays.U[:])])
    whole = BlockStudent(folder, plan, own).designs(plan.depths[index])[index].design
    return np.asarray(whole[np.searchsorted(plan.groups[index].features, group.features)])


def _write(path: Path, dump: RowDump) -> None:
    rows, task = dump.problem, dump.task
    penalty, kappa = rows.objective.penalty, rows.objective.kappa
    weight = rows.design.root_weight
    arrays: dict[str, Any] = {
        "format": MAGIC,
        "format_version": _VERSION,
        "row": dump.row,
        "features": dump.features,
        "W": dump.design,
        "target": rows.targets[0],
        "w": dump.w,
        "loss_weight": rows.objective.loss_weight,
        "penalty": np.array([penalty.lam0, penalty.lam1, penalty.lam2]),
        "constrained": rows.constrained,
        "objective": task.objective,
        "match": task.match,
        "solver": task.solver,
        "tolerance": task.tolerance,
        "states": task.states,
        "source_sha256": task.source_sha256 or "",
    }
    optional = {
        "kappa": kappa,
        "allowed": None if rows.allowed is None else rows.allowed[0],
        "lower": rows.lower,
        "upper": rows.upper,
        "sample_weight": None if weight is None else weight**2,
    }
    arrays.update({name: value for name, value in optional.items() if value is not None})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def is_dump(path: str | Path) -> bool:
    """Whether ``path`` is a file written by :func:`dump_row`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return str(archive["format"]) == MAGIC
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError):
        return False


def read_dump(path: str | Path) -> RowDump:
    """The row in ``path``. Raises InputError if it is missing, FormatError if it is no row or an impossible one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist. Write it with simtool inspect RUN --row i --dump {path}."
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(f"{path} is no row file ({error}).") from error
    if str(parts.get("format")) != MAGIC:
        raise FormatError(f"{path} is not a row written by simtool inspect --dump.")
    if int(parts["format_version"]) != _VERSION:
        raise FormatError(
            f"{path} has format version {parts['format_version']}; this simtool reads {_VERSION}. Use the version that wrote it."
        )
    for name in ("W", "target", "sample_weight"):
        if name in parts and not np.isfinite(parts[name]).all():
            raise FormatError(f"{path} holds NaN or infinity in {name}. Dump the row again from its run.")
    try:
        penalty = Penalty(*(float(weight) for weight in parts["penalty"]))
        kappa = float(parts["kappa"]) if "kappa" in parts else None
        rows = RowSet(
            design=Design(parts["W"], sample_weight=parts.get("sample_weight")),
            targets=parts["target"][None],
            objective=Objective(float(parts["loss_weight"]), penalty, kappa),
            constrained=parts["constrained"],
            allowed=parts["allowed"][None] if "allowed" in parts else None,
            lower=parts.get("lower"),
            upper=parts.get("upper"),
        )
        task = Task(
            objective=str(parts["objective"]),
            source_sha256=str(parts["source_sha256"]) or None,
            match=str(parts["match"]),
            solver=str(parts["solver"]),
            tolerance=float(parts["tolerance"]),
            states=int(parts["states"]),
        )
        if parts["w"].shape != (rows.design.d,) or parts["features"].shape != (rows.design.d,):
            raise ValueError(f"w and features must be ({rows.design.d},)")
        return RowDump(int(parts["row"]), parts["features"], parts["W"], rows, task, parts["w"])
    except (KeyError, ValueError, TypeError, OptionError) as error:
        raise FormatError(f"{path} holds an impossible row ({error}). Dump it again.") from error


def replay(path: str | Path, solver: str | None = None) -> dict[str, Any]:
    """Judge the stored row of ``path`` anew, and solve it again with ``solver`` (default: the run's own).

    Returns the row, its features and options, ``stored`` and ``solved``: non-zeros, l1 norm and certificate of each, and
    ``largest_difference`` between them. Where rows match exactly, the multipliers found here prove the stored row too.
    """
    dump = read_dump(path)
    task = dump.task if solver is None else replace(dump.task, solver=solver)
    found = answer(dump.problem, task)
    stored = dump.w[None]
    proof = judge(dump.problem, task, stored, found.nu)
    infeasible = STATUSES[int(found.status[0])] is RowStatus.INFEASIBLE
    trouble = [RowStatus.INFEASIBLE if infeasible else None]
    as_stored = Answer(stored, proof, statuses(dump.problem, stored, proof, trouble), found.nu)
    return {
        "kind": "row-dump",
        "row": dump.row,
        "features": int(dump.problem.design.d),
        "samples": int(dump.problem.design.m),
        "objective": task.objective,
        "match": task.match,
        "kappa": dump.problem.objective.kappa,
        "tol": task.tolerance,
        "solver": task.solver,
        "stored": _facts(as_stored),
        "solved": _facts(found),
        "largest_difference": float(np.abs(found.w[0] - dump.w).max(initial=0.0)),
    }


def _facts(found: Answer) -> dict[str, Any]:
    w = found.w[0]
    proof, status = found.proof, STATUSES[int(found.status[0])]
    return {
        "nnz": int((w != 0).sum()),
        "l1_norm": float(np.abs(w).sum()),
        "status": status.label,
        "remedy": status.value,
        "certified": bool(proof.certified[0]),
        "certificate_kind": KINDS[int(proof.kind[0])],
        "primal": float(proof.primal[0]),
        "dual": float(proof.dual[0]),
        "relative_gap": float(proof.relative_gap[0]),
        "kappa_slack": float(proof.kappa_slack[0]),
        "multiplier": float(proof.multiplier[0]),
        "projection_error": float(proof.projection_error[0]),
    }
