"""Where a run stands, whoever works on it, and how to stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

from simtool.engines import slurm
from simtool.errors import FormatError, OutputError, SimtoolError, WorkerError
from simtool.stages.sparsify import budget, lock, remote, tracks
from simtool.stages.sparsify.finish import finished
from simtool.stages.sparsify.folder import VALIDATION, RunFolder
from simtool.stages.sparsify.paths import path_file
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.request import Request
from simtool.stages.sparsify.tasks import CHOICE, PATHS, ROWS, TILES

_log = logging.getLogger("simtool")
_STOP_SECONDS = 30.0


def status(run: str | Path) -> dict[str, Any]:
    """Where the run in the folder ``run`` stands.

    Returns
    -------
    dict with run, state (finished, at work, queued, stopped, unknown), engine, shards, done, running, failed, rows, rows_done,
    certified (of the rows done, as far as known), tiles, tiles_done, paths, paths_done (of a budget: shards whose paths
    are known), eta_seconds (None where nothing is at work or
    nothing is known), slowest (shard, block, rows, seconds_per_row), errors (shard and words), jobs (phase, id, pending,
    running, reason), worker (pid and host of a process that drives the run)

    Raises InputError or FormatError.
    """
    folder = RunFolder(Path(run))
    plan = plan_of(folder)
    try:
        request = Request.read(folder)
    except FormatError as error:
        request = None
        _log.warning("%s", error)
    done = [index for index in range(len(plan.shards)) if folder.holds(folder.shard(index))]
    complete = finished(folder, plan) is not None
    known, jobs = _jobs(folder)
    holder = None if complete else lock.holder(folder.path)
    running, failed = _at_work(folder, done, bool(jobs))
    seconds = _seconds(folder, complete)
    rows, rows_done = _rows(plan, range(len(plan.shards))), _rows(plan, done)
    at_work = bool(holder) or any(job["running"] for job in jobs)
    return {
        "run": str(folder.path),
        "state": _state(complete, at_work, bool(jobs), known),
        "engine": None if request is None else request.engine.name,
        "shards": len(plan.shards),
        "done": len(done),
        "running": len(running) if at_work else 0,
        "failed": len(failed),
        "rows": rows,
        "rows_done": rows_done,
        "certified": sum(int(folder.load(folder.shard(index))["certified"].sum()) for index in done),
        "tiles": len(plan.tiles),
        "tiles_done": len(plan.tiles)
        if complete
        else sum(folder.holds(folder.tile(i)) for i in range(len(plan.tiles))),
        "paths": 0 if plan.budget is None else len(plan.shards),
        "paths_done": _paths_done(folder, plan),
        "eta_seconds": _eta(plan, seconds, set(done), len(running)) if at_work else None,
        "slowest": _slowest(plan, seconds),
        "errors": [{"phase": track.phase, "item": track.index, "error": track.error} for track in failed],
        "jobs": jobs,
        "worker": None if holder is None else {"pid": holder["pid"], "host": holder["host"]},
    }


def cancel(run: str | Path) -> dict[str, Any]:
    """Stop whatever works on the run: its SLURM jobs, or the process on this machine. What is finished is kept.

    Returns dict with run, jobs (tasks taken from SLURM's queue), stopped (pid of a process, or None).
    Raises OutputError if a process on another machine holds the run, WorkerError if one does not end.
    """
    folder = RunFolder(Path(run))
    if not (folder.path / VALIDATION).is_dir():  # a recipe is chosen before there is a spec
        folder.read_spec()
    jobs = remote.own_jobs(folder)
    ended = slurm.cancel(jobs) if jobs is not None else 0
    holder = lock.holder(folder.path)
    if holder is None or ended:
        return {"run": str(folder.path), "jobs": ended, "stopped": None}
    if holder["host"] != platform.node():
        raise OutputError(
            f"{folder.path} is worked on by process {holder['pid']} on {holder['host']}. Call simtool cancel there."
        )
    if holder["pid"] < 2 or not holder["born"]:
        raise OutputError(
            f"{folder.path / '.lock'} does not say which process works on the run. Stop it by hand."
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while lock.holder(folder.path) is not None:
        if time.monotonic() > deadline:
            raise WorkerError(
                f"process {holder['pid']} was asked to stop {_STOP_SECONDS:.0f} s ago and is still there. End it with kill -9: "
                "nothing finished is lost."
            )
        time.sleep(0.05)
    return {"run": str(folder.path), "jobs": 0, "stopped": holder["pid"]}


def _state(complete: bool, at_work: bool, queued: bool, known: bool) -> str:
    if complete:
        return "finished"
    if at_work:
        return "at work"
    if not known:
        return "unknown"
    return "queued" if queued else "stopped"


def _jobs(folder: RunFolder) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the queue could be asked, and the jobs in it."""
    try:
        jobs = remote.jobs_at_work(folder)
        if jobs is None:
            return True, []
        states, why = slurm.states(jobs), slurm.reasons(jobs)
    except SimtoolError as error:
        _log.warning("%s", error)
        return False, []
    return True, [
        {"phase": job.phase, "id": job.id, **states[job.phase], "reason": why.get(job.phase)}
        for job in jobs.jobs
        if sum(states[job.phase].values())
    ]


def _at_work(
    folder: RunFolder, done: list[int], queued: bool
) -> tuple[list[tracks.Track], list[tracks.Track]]:
    """The tracks of tasks that are in work, and of those that failed and are not done since."""
    running, failed = [], []
    for phase in (TILES, PATHS, CHOICE, ROWS):
        for track in tracks.read(folder, phase):
            if phase == ROWS and track.index in set(done):
                continue
            # A task of a SLURM job on another node is in work only while there are jobs.
            if track.state == tracks.RUNNING and not track.abandoned and (track.job is None or queued):
                running.append(track)
            elif track.state == tracks.FAILED:
                failed.append(track)
    return running, failed


def _paths_done(folder: RunFolder, plan: Plan) -> int:
    if plan.budget is None:
        return 0
    if budget.is_chosen(folder, plan):
        return len(plan.shards)
    return sum(folder.holds(path_file(folder, index)) for index in range(len(plan.shards)))


def _rows(plan: Plan, shards: Any) -> int:
    return sum(plan.shards[index].stop - plan.shards[index].start for index in shards)


def _seconds(folder: RunFolder, complete: bool) -> dict[int, float]:
    """What each finished shard took, where that is known."""
    if complete:
        timing = folder.read_timing() or {}
        return {int(entry["shard"]): float(entry["seconds"]) for entry in timing.get("shards", [])}
    return {t.index: t.seconds for t in tracks.read(folder, ROWS) if t.state == tracks.DONE}


def _slowest(plan: Plan, seconds: dict[int, float]) -> dict[str, Any] | None:
    """The shard that took longest for a row."""
    each = {
        index: value / _rows(plan, [index]) for index, value in seconds.items() if index < len(plan.shards)
    }
    if not each:
        return None
    worst = max(each, key=lambda index: each[index])
    shard = plan.shards[worst]
    return {
        "shard": worst,
        "block": plan.groups[shard.group].name,
        "rows": [shard.start, shard.stop],
        "seconds_per_row": each[worst],
    }


def _eta(plan: Plan, seconds: dict[int, float], done: set[int], running: int) -> float | None:
    """What the shards that are left will take: as long for a row as those of their block, or as the slowest block."""
    spent: dict[int, list[float]] = {}
    for index, value in seconds.items():
        if index < len(plan.shards):
            spent.setdefault(plan.shards[index].group, []).append(value / _rows(plan, [index]))
    if not spent:
        return None
    each = {group: sum(values) / len(values) for group, values in spent.items()}
    slowest = max(each.values())
    left = [index for index in range(len(plan.shards)) if index not in done]
    return sum(_rows(plan, [i]) * each.get(plan.shards[i].group, slowest) for i in left) / max(1, running)
