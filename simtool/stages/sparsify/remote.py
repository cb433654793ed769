"""A run as a chain of SLURM jobs: an array of Gram tiles, what joins them, an array of row shards, the merge.

Each job is ``simtool work RUN --phase ...``, which any other batch system can call as well. What is finished is told by
files alone, so a job that was killed, requeued or cancelled costs what it had in hand and no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from typing import Any

from simtool.engines import EngineOptions, slurm
from simtool.engines.shards import write_bytes
from simtool.errors import OptionError, OutputError, WorkerError
from simtool.importing import is_reference
from simtool.progress import Progress
from simtool.stages.sparsify import tracks
from simtool.stages.sparsify.finish import finished
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.inputs import write_inputs
from simtool.stages.sparsify.local import write_weights
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.tasks import CHOICE, PATHS, ROWS, TILES
from simtool.states import States

_log = logging.getLogger("simtool")
PREPARE, MERGE, WHOLE = "prepare", "merge", "all"
_POLL_SECONDS = 2.0
_PATIENCE = 5.0  # a controller that is away must not hold up who asks where a run stands


def submit(folder: RunFolder, plan: Plan, source: States, where: EngineOptions) -> slurm.Jobs:
    """Lay out what the jobs read, and submit what is missing. Raises WorkerError with sbatch's own words."""
    options = where.slurm or slurm.SlurmOptions()
    slurm.require()
    if plan.options.sequential and plan.layers:
        raise OptionError(
            "--sequential runs this network between the layers, which only --engine serial, process and ray can. Use one of them."
        )
    steps = Steps(folder, plan)
    if steps.rows:
        write_inputs(folder, source, bool(plan.layers), plan.options.anchor or 0.0)
    if steps.choose or plan.options.weighs_rows:
        write_weights(folder, plan, source)
    if options.ray_nodes is not None:
        title = "all rows, on Ray inside one allocation"
        phases = [slurm.Phase("ray", _command(folder, WHOLE, "--ray-address", "auto"), None, title)]
        return slurm.submit(phases, options, folder.slurm, render_phase=slurm.render_ray)
    return slurm.submit(_chain(folder, steps, options), options, folder.slurm)


def _chain(folder: RunFolder, steps: Steps, options: slurm.SlurmOptions) -> list[slurm.Phase]:
    phases = []
    if steps.tiles:
        phases.append(_array(folder, TILES, steps.tiles, options, "tiles of the Gram matrices"))
    if steps.grams or steps.choose:
        title = "joins the tiles" + (", and chooses the features" if steps.choose else "")
        phases.append(slurm.Phase(PREPARE, _command(folder, PREPARE), None, title))
    if steps.paths:
        phases.append(_array(folder, PATHS, steps.paths, options, "paths of the rows, for the budget"))
        phases.append(
            slurm.Phase(CHOICE, _command(folder, PREPARE), None, "shares the budget out over all rows")
        )
    for depth in sorted({steps.depth_of(index) for index in steps.rows}):
        suffix = f"_{depth}" if depth else ""
        if depth:
            title = "states of the part that is sparse by then"
            phases.append(slurm.Phase(f"states{suffix}", _command(folder, PREPARE), None, title))
        items = [index for index in steps.rows if steps.depth_of(index) == depth]
        phases.append(_array(folder, ROWS, items, options, "shards of rows", suffix))
    return [*phases, slurm.Phase(MERGE, _command(folder, MERGE), None, "writes model.h5 from the shards")]


def _array(
    folder: RunFolder,
    phase: str,
    items: list[int],
    options: slurm.SlurmOptions,
    title: str,
    suffix: str = "",
) -> slurm.Phase:
    parts = min(options.array_size, -(-len(items) // options.cpus_per_task))
    content = json.dumps(items).encode()
    # A name of its own: tasks of an earlier submission that are requeued must find their own list.
    todo = folder.slurm / f"{phase}-{hashlib.sha256(content).hexdigest()[:8]}.json"
    try:
        folder.slurm.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder.slurm}: {error.strerror}.") from error
    write_bytes(todo, content)
    command = _command(
        folder,
        phase,
        *("--items", str(todo.resolve()), "--part", "{part}", "--parts", str(parts)),
        *("--workers", str(options.cpus_per_task)),
    )
    return slurm.Phase(phase + suffix, command, parts, title)


def _command(folder: RunFolder, phase: str, *more: str) -> tuple[str, ...]:
    run, objective = str(folder.path.resolve()), folder.read_spec()["options"]["objective"]
    trusted = ("--objective", objective) if is_reference(objective) else ()
    return (sys.executable, "-P", "-m", "simtool", "work", run, "--phase", phase, "--quiet", *trusted, *more)


def own_jobs(folder: RunFolder) -> slurm.Jobs | None:
    """The jobs that were submitted last for this run; None if there are none, as in a copy of a run's folder."""
    if not slurm.Jobs.exist(folder.slurm):
        return None
    jobs = slurm.Jobs.read(folder.slurm)
    return jobs if all(job.name == slurm.job_name(folder.slurm, job.phase) for job in jobs.jobs) else None


def jobs_at_work(folder: RunFolder) -> slurm.Jobs | None:
    """The jobs of this run that are in the queue; None if there are none. Raises WorkerError if SLURM cannot be asked."""
    jobs = own_jobs(folder)
    if jobs is None:
        return None
    try:
        return jobs if slurm.alive(jobs, _PATIENCE) else None
    except WorkerError as error:
        raise WorkerError(
            f"whether jobs of {folder.path} are still in the queue is not known: {error} If they are gone for good, delete "
            f"{slurm.Jobs.path(folder.slurm)}."
        ) from error


def wait(folder: RunFolder, plan: Plan, jobs: slurm.Jobs, progress: Progress) -> dict[str, Any]:
    """The result of the run, once no job is in the queue any more. Raises WorkerError if it is not finished then."""
    rows = [shard.stop - shard.start for shard in plan.shards]
    seen = sum(count for index, count in enumerate(rows) if folder.shard(index).exists())
    progress.start(sum(rows) - seen, "rows", "rows on SLURM")

    def report(states: dict[str, dict[str, int]], why: dict[str, str]) -> None:
        nonlocal seen
        now = sum(count for index, count in enumerate(rows) if folder.shard(index).exists())
        waiting = {name: reason for name, reason in why.items() if not states[name]["running"]}
        at_work = [f"{name} {count['running']}" for name, count in states.items() if count["running"]]
        first = [f"{name} waits ({reason})" for name, reason in list(waiting.items())[:1] if not at_work]
        progress.note(", ".join([f"running: {' '.join(at_work)}"] if at_work else first))
        progress.advance(now - seen)
        seen = now

    try:
        slurm.wait(jobs, _POLL_SECONDS, report)
    except KeyboardInterrupt:
        _log.warning(
            "the jobs go on: simtool status %s says where they stand, simtool cancel ends them", folder.path
        )
        raise
    progress.finish()
    result = finished(folder, plan)
    if result is None:
        raise WorkerError(missing(folder, plan))
    return result


def missing(folder: RunFolder, plan: Plan) -> str:
    """Why a run whose jobs have ended is not finished, and what to do."""
    absent = [index for index in range(len(plan.shards)) if not folder.shard(index).exists()]
    failed = [track for phase in (TILES, PATHS, ROWS) for track in tracks.read(folder, phase) if track.error]
    words = f"{len(absent)} of {len(plan.shards)} shards of {folder.path} are missing"
    if failed:
        words += f"; {len(failed)} failed, the first with: {failed[0].error}"
    elif not absent:
        words = f"all shards of {folder.path} are there, but they are not merged"
    return f"{words} (the jobs' words are in {folder.slurm / 'log'}). simtool resume {folder.path} submits what is missing."
