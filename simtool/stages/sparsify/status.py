"""Where a run stands, whoever works on it, and how to stop it."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

from simtool.engines import slurm
from simtool.engines.shards import is_valid
from simtool.errors import OutputError, WorkerError
from simtool.stages.sparsify import lock, remote, tracks
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.request import Request
from simtool.stages.sparsify.tasks import CHOICE, ROWS, TILES
from simtool.stages.sparsify.work import Plan, plan_of

_STOP_SECONDS = 30.0


def status(run: str | Path) -> dict[str, Any]:
    """Where the run in the folder ``run`` stands.

    Returns
    -------
    dict with run, state (finished, at work, queued, stopped), engine, shards, done, running, failed, rows, rows_done,
    certified (of the rows done, as far as known), tiles, tiles_done, eta_seconds (None where nothing is at work or
    nothing is known), slowest (shard, block, rows, seconds_per_row), errors (shard and words), jobs (phase, id, pending,
    running, reason), worker (pid and host of a process that drives the run)

    Raises InputError or FormatError.
    """
    folder = RunFolder(Path(run))
    plan = plan_of(folder)
    request = Request.read(folder)
    done = [index for index in range(len(plan.shards)) if is_valid(folder.shard(index))]
    complete = len(done) == len(plan.shards) and folder.model.exists() and folder.timing.exists()
    jobs = [] if complete else _jobs(folder)
    holder = None if complete else lock.holder(folder.path)
    running, failed = _at_work(folder, done, bool(jobs))
    seconds = _seconds(folder, complete)
    rows, rows_done = _rows(plan, range(len(plan.shards))), _rows(plan, done)
    at_work = bool(holder) or any(job["running"] for job in jobs)
    return {
        "run": str(folder.path),
        "state": "finished" if complete else "at work" if at_work else "queued" if jobs else "stopped",
        "engine": None if request is None else request.engine.name,
        "shards": len(plan.shards),
        "done": len(done),
        "running": len(running) if at_work else 0,
        "failed": len(failed),
        "rows": rows,
        "rows_done": rows_done,
        "certified": _certified(folder, complete),
        "tiles": len(plan.tiles),
        "tiles_done": len(plan.tiles)
        if complete
        else sum(is_valid(folder.tile(i)) for i in range(len(plan.tiles))),
        "eta_seconds": _eta(plan, seconds, rows - rows_done, len(running)) if at_work else None,
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
    folder.read_spec()
    ended = slurm.cancel(slurm.Jobs.read(folder.slurm)) if slurm.Jobs.exist(folder.slurm) else 0
    holder = lock.holder(folder.path)
    if holder is None or ended:
        return {"run": str(folder.path), "jobs": ended, "stopped": None}
    if holder["host"] != platform.node():
        raise OutputError(
            f"{folder.path} is worked on by process {holder['pid']} on {holder['host']}. Call simtool cancel there."
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


def _jobs(folder: RunFolder) -> list[dict[str, Any]]:
    jobs = remote.jobs_at_work(folder)
    if jobs is None:
        return []
    states, why = slurm.states(jobs), slurm.reasons(jobs)
    return [
        {"phase": job.phase, "id": job.id, **states[job.phase], "reason": why.get(job.phase)}
        for job in jobs.jobs
        if sum(states[job.phase].values())
    ]


def _at_work(
    folder: RunFolder, done: list[int], queued: bool
) -> tuple[list[tracks.Track], list[tracks.Track]]:
    """The tracks of tasks that are in work, and of those that failed and are not done since."""
    running, failed = [], []
    for phase in (TILES, CHOICE, ROWS):
        for track in tracks.read(folder, phase):
            if phase == ROWS and track.index in set(done):
                continue
            # A task of a SLURM job on another node is in work only while there are jobs.
            if track.state == tracks.RUNNING and not track.abandoned and (track.job is None or queued):
                running.append(track)
            elif track.state == tracks.FAILED:
                failed.append(track)
    return running, failed


def _rows(plan: Plan, shards: Any) -> int:
    return sum(plan.shards[index].stop - plan.shards[index].start for index in shards)


def _certified(folder: RunFolder, complete: bool) -> int:
    timing = folder.read_timing() if complete else None
    if timing is not None:
        return int(timing["result"]["certified"])
    return sum(int(track.report.get("certified", 0)) for track in tracks.read(folder, ROWS))


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


def _eta(plan: Plan, seconds: dict[int, float], left: int, running: int) -> float | None:
    """Rows left times the mean of those solved, over the tasks in work."""
    known = [index for index in seconds if index < len(plan.shards)]
    if not known:
        return None
    return sum(seconds[index] for index in known) / _rows(plan, known) * left / max(1, running)
