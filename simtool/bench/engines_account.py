"""Where the time of an engine went: arithmetic on when tasks began and ended, and on which worker.

Of ``workers`` x wall seconds of a phase, workers are busy for the tasks' own seconds; the rest is overhead, and falls
into three parts that add up to it: before a worker's first task (start-up), between tasks, and at the end, where
workers that are through wait for the one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class TaskTime:
    """A task as its worker saw it: the process, and seconds since the epoch."""

    worker: int
    began: float
    ended: float


@dataclass(frozen=True)
class Phase:
    """One call of an engine, on ``tasks``; seconds since the epoch."""

    name: str
    began: float
    ended: float
    tasks: tuple[TaskTime, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Phase:
        """The inverse of ``dataclasses.asdict``."""
        return cls(**{**content, "tasks": tuple(TaskTime(**task) for task in content["tasks"])})


@dataclass(frozen=True)
class Account:
    """Worker seconds, but for ``wall`` and ``first_task``.

    Attributes
    ----------
    wall : seconds of the phases together
    first_task : seconds from calling the engine until its first task began
    busy : the tasks' own; ``starting`` + ``between`` + ``waiting`` is the rest of workers x wall
    tasks : how many there were
    longest : the longest of them
    overhead : 1 - busy / (workers x wall)
    """

    workers: int
    wall: float
    first_task: float
    busy: float
    starting: float
    between: float
    waiting: float
    tasks: int
    longest: float

    @property
    def overhead(self) -> float:
        return 1.0 - self.busy / (self.workers * self.wall) if self.wall > 0 else 0.0

    @property
    def shard_overhead(self) -> float:
        """What cutting the work into tasks costs: the seconds between them beside their own."""
        spent = self.busy + self.between
        return self.between / spent if spent > 0 else 0.0

    @property
    def per_task(self) -> float:
        """Seconds that the engine adds to a task."""
        return self.between / self.tasks if self.tasks else 0.0

    def to_json(self) -> dict[str, Any]:
        """Fields and properties."""
        return {
            **asdict(self),
            "overhead": self.overhead,
            "shard_overhead": self.shard_overhead,
            "per_task": self.per_task,
        }


def account(phases: Sequence[Phase], workers: int) -> Account:
    """Add up the ``phases`` of one run on ``workers`` workers."""
    busy = starting = between = waiting = wall = longest = 0.0
    first_task, count = 0.0, 0
    met: set[int] = set()
    for index, phase in enumerate(phases):
        wall += phase.ended - phase.began
        count += len(phase.tasks)
        of_worker: dict[int, list[TaskTime]] = {}
        for task in sorted(phase.tasks, key=lambda task: task.began):
            of_worker.setdefault(task.worker, []).append(task)
            busy += task.ended - task.began
            longest = max(longest, task.ended - task.began)
        # A worker that was never needed waits all the time.
        waiting += max(0, workers - len(of_worker)) * (phase.ended - phase.began)
        for worker, tasks in of_worker.items():
            lead = tasks[0].began - phase.began
            if worker in met:
                between += lead
            else:  # also of a worker that is started, or replaced, in a later phase
                starting += lead
                met.add(worker)
            between += sum(b.began - a.ended for a, b in pairwise(tasks))
            waiting += phase.ended - tasks[-1].ended
        if index == 0 and phase.tasks:
            first_task = min(task.began for task in phase.tasks) - phase.began
    return Account(workers, wall, first_task, busy, starting, between, waiting, count, longest)
