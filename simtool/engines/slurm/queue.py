"""Where the jobs of a run stand, asked of the queue alone: many sites keep no accounts that could be asked later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from simtool.engines.slurm.jobs import Jobs
from simtool.engines.slurm.tools import Refused, call, configuration
from simtool.errors import WorkerError

_PATIENCE = 30.0
_LONG_PATIENCE = 900.0
_ENDED = frozenset(["CD", "CA", "F", "TO", "NF", "OOM", "PR", "BF", "DL"])
_WAITING = frozenset(["PD", "RQ", "RH", "RF", "RD", "SE", "RV", "CF"])
# A pending job with one of these stays so until a person changes something.
_HOPELESS = {
    "DependencyNeverSatisfied": "the job before it failed in a way that ends the chain",
    "PartitionTimeLimit": "--time is longer than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionConfig": "it asks for more cores, memory or time than the partition has",
    "BadConstraints": "no node can satisfy what it asks for",
    "InvalidAccount": "the account does not exist",
    "InvalidQOS": "the QOS does not exist",
    "AccountNotAllowed": "the account may not use this partition",
    "QOSNotAllowed": "the QOS may not use this partition",
    "JobHoldMaxRequeue": "it was requeued too often",
    "launch failed requeued held": "it could not be started on a node, and is held",
    "launch_failed_requeued_held": "it could not be started on a node, and is held",
}

States = dict[str, dict[str, int]]
Report = Callable[[States, dict[str, str]], None]


@dataclass(frozen=True)
class Entry:
    """One task in the queue: the job it is part of, its place in the array (None: no array), state and reason."""

    phase: str
    job: int
    part: int | None
    code: str
    reason: str

    @property
    def state(self) -> str:
        """``pending`` or ``running``; what is unknown counts as running, so that nothing is started twice."""
        return "pending" if self.code in _WAITING else "running"


def entries(jobs: Jobs, patience: float = _PATIENCE) -> list[Entry]:
    """The tasks of ``jobs`` that are still in the queue.

    A task counts only if name, user and job id agree: ids are used again after a cluster is set up anew. A job whose
    submission was cut short before sbatch gave its id is known by its name.

    Raises WorkerError if the controller does not answer for ``patience`` seconds, or if this is another cluster.
    """
    if not jobs.jobs:
        return []
    cluster, _ = configuration(patience)
    if cluster != jobs.cluster:
        raise WorkerError(
            f"the jobs of this run were submitted to the cluster {jobs.cluster!r}; this machine belongs to {cluster!r}. "
            "Call simtool on a machine of the first."
        )
    listed = listing(jobs.names, patience)
    ids = {job.name: (job.phase, job.id) for job in jobs.jobs}
    found = []
    for name, entry in listed:
        phase, expected = ids[name]
        if expected in (None, entry.job):
            found.append(Entry(phase, entry.job, entry.part, entry.code, entry.reason))
    return found


def listing(names: tuple[str, ...], patience: float = _PATIENCE) -> list[tuple[str, Entry]]:
    """This user's tasks in the queue under these job names, not only those of one submission."""
    user = str(os.getuid())
    argv = ("squeue", "--noheader", "--array", f"--user={user}", f"--name={','.join(names)}")
    try:
        text = call((*argv, "--format=%F|%K|%t|%U|%j|%r"), patience)
    except Refused as refused:
        if "invalid job id" in refused.words.lower():
            return []
        raise
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) != 6 or not fields[0].isdigit():
            continue
        job, part, code, owner, name, reason = fields
        if owner == user and name in names and code not in _ENDED:
            found.append((name, Entry("", int(job), int(part) if part.isdigit() else None, code, reason)))
    return found


def states(jobs: Jobs, patience: float = _PATIENCE) -> States:
    """For each phase how many tasks are ``pending`` and ``running``; those that ended are in neither."""
    return _count(jobs, entries(jobs, patience))


def reasons(jobs: Jobs, patience: float = _PATIENCE) -> dict[str, str]:
    """For each phase with pending tasks why they wait, in SLURM's words (the most frequent where they differ)."""
    return _why(entries(jobs, patience))


def alive(jobs: Jobs, patience: float = _PATIENCE) -> bool:
    """Whether any task is still in the queue."""
    return bool(entries(jobs, patience))


def wait(
    jobs: Jobs, seconds: float = 10.0, report: Report | None = None, patience: float = _LONG_PATIENCE
) -> None:
    """Return when no task is in the queue any more; which parts are finished is told by their files.

    ``report(states, reasons)`` is called at each look. A controller that is away is waited for; jobs go on without it.

    Raises WorkerError when the controller stays away for ``patience`` seconds, or when nothing runs and what is pending
    can never start.
    """
    hopeless_before = ""
    while True:
        found = entries(jobs, patience)
        why = _why(found)
        if report is not None:
            report(_count(jobs, found), why)
        if not found:
            return
        # Twice in a row: a reason may be shown for a moment while the scheduler makes up its mind.
        hopeless = _hopeless(found)
        if hopeless and hopeless == hopeless_before:
            raise WorkerError(hopeless)
        hopeless_before = hopeless
        time.sleep(seconds)


def _count(jobs: Jobs, found: list[Entry]) -> States:
    counts: States = {job.phase: {"pending": 0, "running": 0} for job in jobs.jobs}
    for entry in found:
        counts[entry.phase][entry.state] += 1
    return counts


def _why(found: list[Entry]) -> dict[str, str]:
    said: dict[str, list[str]] = {}
    for entry in found:
        if entry.state == "pending" and entry.reason not in ("None", ""):
            said.setdefault(entry.phase, []).append(entry.reason)
    return {phase: max(words, key=words.count) for phase, words in said.items()}


def _hopeless(found: list[Entry]) -> str:
    """What to say when nothing runs and a job can never start, else nothing."""
    if any(entry.state == "running" for entry in found):
        return ""
    for entry in found:
        if entry.reason in _HOPELESS:
            return (
                f"job {entry.job} ({entry.phase}) can never start: SLURM says {entry.reason}, that is, "
                f"{_HOPELESS[entry.reason]}. simtool cancel RUN ends the chain; submit again with other --partition, --time, "
                "--cpus-per-task, --memory or --account."
            )
    return ""
