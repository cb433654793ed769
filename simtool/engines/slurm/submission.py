"""Submitting a chain of jobs, and taking it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from simtool.engines.shards import write_bytes
from simtool.engines.slurm import queue, tools
from simtool.engines.slurm.jobs import Job, Jobs
from simtool.engines.slurm.options import SlurmOptions
from simtool.engines.slurm.script import Phase, job_name, log_folder, render, script_path
from simtool.errors import OptionError, OutputError, WorkerError

Render = Callable[[Phase, SlurmOptions, Path, Path, str | None], str]

# What sbatch says, and what a user can do about it.
_LEVERS = (
    ("partition", "Pass another --partition{partitions}."),
    ("account", "Pass another --account, or none for your default one."),
    ("time limit", "Pass a shorter --time, or a --partition that allows it (sinfo shows the limits)."),
    ("array", "Pass a smaller --array-size."),
    ("memory", "Pass a smaller --memory, or a --partition with larger nodes."),
    ("cpu count", "Pass fewer --cpus-per-task."),
    ("node count", "Pass fewer --ray-nodes, or another --partition."),
    ("node configuration", "Pass fewer --cpus-per-task, less --memory, or another --partition (sinfo -Nl)."),
    ("qos", "Pass another --qos, or ask the site for the limits of your account."),
    ("policy", "Pass a smaller --array-size or --time, or ask the site for the limits of your account."),
)


def submit(
    phases: Sequence[Phase],
    options: SlurmOptions,
    folder: Path,
    directory: Path | None = None,
    render_phase: Render = render,
) -> Jobs:
    """Write an sbatch file for each phase and submit them as a chain: each begins when the one before has ended.

    Parameters
    ----------
    phases : in their order; a phase also begins when some parts of the one before failed, and must look at their files
    folder : RUN/slurm; what is submitted is recorded there before and after each submission
    directory : where the commands run; the current folder unless given

    Raises WorkerError with sbatch's own words (what had been submitted is taken back), OptionError for an array that the
    cluster does not take, OutputError if the folder cannot be written or jobs of this run are in the queue already.
    """
    names = tuple(job_name(folder, phase.name) for phase in phases)
    if not names or len(set(names)) < len(names):
        raise ValueError("a chain needs phases, each with a name of its own")
    directory = Path.cwd() if directory is None else directory
    before = (None, *(phase.name for phase in phases))
    texts = [
        render_phase(phase, options, folder, directory, after)
        for phase, after in zip(phases, before, strict=False)
    ]
    cluster, largest = tools.configuration()
    _check_arrays(phases, largest)
    _check_idle(folder, names)
    _prepare(folder)
    for phase, text in zip(phases, texts, strict=True):
        write_bytes(script_path(folder, phase.name), text.encode())
    jobs = Jobs(folder, cluster)
    previous: int | None = None
    try:
        for phase, name in zip(phases, names, strict=True):
            job = Job(phase.name, name, phase.parts, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            jobs = jobs.with_job(job)
            jobs.write()
            previous = _submit_one(script_path(folder, phase.name), previous, options)
            jobs = jobs.with_job(replace(job, id=previous))
            jobs.write()
    except BaseException as error:
        _take_back(jobs, error)
        raise
    return jobs


def cancel(jobs: Jobs, seconds: float = 40.0) -> int:
    """End every job of ``jobs`` that is still in the queue, and no other; returns how many tasks that were.

    Waits at most ``seconds`` until they have left the queue, which takes a moment where they run, so that the run can be
    submitted again at once.

    Raises WorkerError if the controller does not answer, or refuses.
    """
    found = queue.entries(jobs)
    # From the end of the chain: a job whose predecessor is gone would begin.
    ids = sorted({entry.job for entry in found}, reverse=True)
    if ids:
        try:
            tools.call(("scancel", *map(str, ids)), patience=30.0)
        except tools.Refused as refused:
            if queue.alive(jobs) and "complet" not in refused.words.lower():
                raise
    deadline = time.monotonic() + seconds
    while ids and time.monotonic() < deadline and queue.alive(jobs):
        time.sleep(0.5)
    return len(found)


def _submit_one(script: Path, previous: int | None, options: SlurmOptions) -> int:
    depends = () if previous is None else (f"--dependency=afterany:{previous}", "--kill-on-invalid-dep=yes")
    try:
        answer = tools.call(("sbatch", "--parsable", *depends, str(script)))
    except tools.Refused as refused:
        raise WorkerError(_explain(script, refused.words)) from refused
    number = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
    if not number.isdigit():
        raise WorkerError(
            f"sbatch {script} answered {answer!r} instead of a job number. Look at squeue --me."
        )
    return int(number)


def _explain(script: Path, words: str) -> str:
    low = words.lower()
    lever = next((text for sign, text in _LEVERS if sign in low), "")
    if "{partitions}" in lever:
        known = tools.partitions()
        lever = lever.format(partitions=f": this cluster has {', '.join(known)}" if known else "")
    return f"sbatch refused {script}: {words}. {lever or 'The file can be submitted by hand to try.'}"


def _check_arrays(phases: Sequence[Phase], largest: int) -> None:
    for phase in phases:
        if phase.parts is not None and phase.parts > largest:
            raise OptionError(
                f"an array of {phase.parts} tasks ({phase.name}) is more than this cluster takes (MaxArraySize = {largest}). "
                f"Pass --array-size {largest} or less."
            )


def _check_idle(folder: Path, names: tuple[str, ...]) -> None:
    """Two chains of one run would do the same work twice, and the second would not be in the record."""
    recorded = Jobs.read(folder).names if Jobs.exist(folder) else ()
    running = queue.listing(tuple(dict.fromkeys((*names, *recorded))))
    if running:
        ids = sorted({entry.job for _, entry in running})
        raise OutputError(
            f"jobs of this run are in the queue already ({', '.join(map(str, ids))}). Wait for them (simtool status RUN), "
            "or end them first (simtool cancel RUN)."
        )


def _prepare(folder: Path) -> None:
    try:
        log_folder(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {log_folder(folder)}: {error.strerror or error}.") from error


def _take_back(jobs: Jobs, error: BaseException) -> None:
    """End what was submitted of a chain that cannot be completed; where that fails too, say what is left."""
    try:
        cancel(jobs, seconds=0.0)
    except WorkerError as second:
        left = ", ".join(str(job.id) for job in jobs.jobs if job.id is not None) or "none that is known"
        error.add_note(f"Jobs submitted before it were not ended ({second}): {left}. Use scancel.")
