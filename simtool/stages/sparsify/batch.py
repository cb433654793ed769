"""``simtool work``: one part of one phase of a run, for batch systems; what SLURM's jobs call."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from simtool import engines
from simtool.engines import EngineOptions
from simtool.errors import InputError, OptionError, OutputError, WorkerError
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages.sparsify import agreement, local, lock, sequential, tracks
from simtool.stages.sparsify.finish import Times, finish, finished
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.remote import MERGE, PREPARE, WHOLE, missing
from simtool.stages.sparsify.request import Request, require_trust
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.student import BlockStudent
from simtool.stages.sparsify.tasks import CHOICE, PATHS, ROWS, TILES
from simtool.states import first, open_states

PHASES = (TILES, PREPARE, PATHS, ROWS, MERGE, WHOLE)


def work(
    run: str | Path,
    phase: str,
    *,
    part: int = 0,
    parts: int = 1,
    items: str | Path | None = None,
    objective: str | None = None,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Do part ``part`` of ``parts`` of ``phase`` of a run that has been prepared by sparsify.

    Parameters
    ----------
    phase : tiles, prepare, paths, rows, merge, or all of them
    items : a JSON file with the numbers of the tiles or shards to be divided; all unless given. What is there is skipped.
    objective : repeats an objective of one's own, whose code runs
    workers : processes of this part
    ray_address : solve on Ray instead (phase all)

    Returns dict with run, phase, done (how many tasks); the result of the run after merge and all.
    Raises OptionError, InputError, or WorkerError when what an earlier phase should have left is missing.
    """
    if phase not in PHASES:
        raise OptionError(f"--phase must be one of {', '.join(PHASES)}, got {phase!r}.")
    if parts < 1 or not 0 <= part < parts:
        raise OptionError(f"--part must lie in [0, --parts - 1], got {part} of {parts}.")
    if parts > 1 and phase not in (TILES, PATHS, ROWS):
        raise OptionError(f"--phase {phase} is one job, got --parts {parts}. Leave it out.")
    if ray_address is not None and phase != WHOLE:
        raise OptionError(f"--ray-address belongs to --phase {WHOLE}, got --phase {phase}. Leave it out.")
    if workers < 1:
        raise OptionError(f"--workers must be at least 1, got {workers}.")
    folder = RunFolder(Path(run))
    plan = plan_of(folder)
    require_trust(folder, objective)
    agreement.require(folder)
    where = EngineOptions("ray", None, ray_address) if ray_address else _processes(workers)
    if phase in (MERGE, WHOLE):
        return _close(folder, plan, None if phase == MERGE else where, progress)
    done = finished(folder, plan)
    if done is not None:
        return done
    if "SLURM_JOB_ID" not in os.environ:  # whoever submits holds the folder for another moment
        _require_free(folder)
    if phase == PREPARE:
        return {"run": str(folder.path), "phase": phase, "done": _prepare(folder, plan)}
    todo = _items(items, len(plan.tiles if phase == TILES else plan.shards))[part::parts]
    steps = Steps(folder, plan)
    undone = {TILES: steps.tiles, PATHS: steps.paths, ROWS: steps.rows}[phase]
    left = [item for item in todo if item in set(undone)]
    if phase != TILES and left:
        _require_grams(folder, plan, steps, phase, {steps.depth_of(index) for index in left})
    engine = engines.get(where)
    try:
        local.run_tasks(folder, plan, engine, phase, left, progress)
    finally:
        engine.close()
    return {"run": str(folder.path), "phase": phase, "done": len(left)}


def _require_free(folder: RunFolder) -> None:
    holder = lock.holder(folder.path)
    if holder is not None:
        raise OutputError(
            f"{folder.path} is in use by another simtool (process {holder['pid']} on {holder['host']}), which solves its rows. Wait "
            f"for it, or stop it with simtool cancel {folder.path}."
        )


def _processes(workers: int) -> EngineOptions:
    return EngineOptions("serial") if workers == 1 else EngineOptions("process", workers)


def _items(file: str | Path | None, count: int) -> list[int]:
    if file is None:
        return list(range(count))
    try:
        found = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--items {file} cannot be read ({error}). It is a JSON list of numbers.") from error
    if not isinstance(found, list) or not all(type(item) is int and 0 <= item < count for item in found):
        raise InputError(
            f"--items {file} must be a JSON list of whole numbers in [0, {count - 1}], got {str(found)[:80]}."
        )
    return sorted(set(found))


def _prepare(folder: RunFolder, plan: Plan) -> int:
    """Join the tiles; let the heuristic or the budget choose, once the paths it needs are there; run the part that is sparse already."""
    steps = Steps(folder, plan)
    if steps.tiles:
        raise WorkerError(
            f"{len(steps.tiles)} of {len(plan.tiles)} Gram tiles are missing: {missing(folder, plan)}"
        )
    steps.assemble()
    if steps.choose and not steps.paths:
        engine = engines.get(EngineOptions("serial"))
        local.run_tasks(folder, plan, engine, CHOICE, [0], NO_PROGRESS)
        steps = Steps(folder, plan)
    if steps.refresh and not steps.choose and not plan.layers:
        sequential.refresh(folder, plan, BlockStudent(folder, plan, folder.map_array("design")), steps.depth)
    return len(steps.grams) + (steps.choose and not steps.paths)


def _require_grams(folder: RunFolder, plan: Plan, steps: Steps, phase: str, depths: set[int]) -> None:
    lacks = phase == ROWS and (
        steps.choose or not all(sequential.is_ready(folder, plan, depth) for depth in depths)
    )
    if steps.grams or lacks or not folder.array(plan.banks[-1].targets).exists():
        what = "chosen features" if steps.choose else "Gram matrices" if steps.grams else "states"
        raise WorkerError(
            f"the {what} that the rows of {folder.path} need are not there: an earlier phase failed, or has not run. "
            f"simtool resume {folder.path} begins with what is missing."
        )


def _close(folder: RunFolder, plan: Plan, where: EngineOptions | None, progress: Progress) -> dict[str, Any]:
    """Merge the shards, after solving those that are missing on ``where``."""
    started = time.perf_counter()
    done = finished(folder, plan)
    if done is not None:
        return done
    request = Request.read(folder)
    if request is None:
        raise InputError(f"{folder.request} is missing. Run the simtool sparsify command of this run again.")
    with folder.locked(), open_states(request.states) as whole:
        done = finished(folder, plan)  # another may have ended meanwhile
        if done is not None:
            return done
        whole.verify_content()
        if whole.content_sha256() != folder.read_spec()["states"]["content_sha256"]:
            raise InputError(
                f"{request.states} is not the states file of {folder.path}: it has changed since."
            )
        source = first(whole, plan.m)
        if where is not None:
            engine = engines.get(where)
            try:
                times = local.solve(folder, plan, source, engine, progress)
            finally:
                engine.close()
        elif Steps(folder, plan).rows:
            raise WorkerError(missing(folder, plan))
        else:
            times = _times(folder, plan)
        return finish(folder, plan, source, times, max(time.perf_counter() - started, times.solve_seconds))


def _times(folder: RunFolder, plan: Plan) -> Times:
    """What the tracks say of work done elsewhere; a phase lasts from its first task's begin to its last one's end."""
    spans, peak, hosts, at_once = {}, 0.0, set(), 1
    for phase in (TILES, PATHS, CHOICE, ROWS):
        done = [track for track in tracks.read(folder, phase) if track.state == tracks.DONE and track.ended]
        begins = [float(track.owner["since"]) for track in done]
        ends = [float(track.ended or 0.0) for track in done]
        spans[phase] = max(0.0, max(ends, default=0.0) - min(begins, default=0.0)) if done else 0.0
        peak = max([peak, *(float(track.report.get("peak_memory_bytes", 0)) for track in done)])
        hosts |= {str(track.owner["host"]) for track in done}
        at_once = max(at_once, len({(track.owner["host"], track.owner["pid"]) for track in done}))
    return Times(
        "slurm", at_once, spans[TILES], spans[PATHS], spans[CHOICE], spans[ROWS], peak, sorted(hosts)
    )
