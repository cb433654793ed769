"""What engines are held to, and whether they were: one line per target, with the reason where it was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from simtool.bench.engines_measure import Entry, Run

SPEED_UP, RAY, START_UP, OVERHEAD, MEMORY = 1.8, 1.3, 2.0, 0.03, 300e6
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Target:
    """``reached`` in ``unit``; ``least`` says whether ``goal`` is a lower bound. ``reached`` None: ``note`` says why."""

    name: str
    goal: float
    unit: str
    reached: float | None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.goal if self.least else self.reached <= self.goal

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def targets(entries: Sequence[Entry]) -> tuple[Target, ...]:
    """The targets for the ``entries`` of one case."""
    process = [entry for entry in entries if entry.where.engine == "process"]
    ray = [entry for entry in entries if entry.where.engine == "ray"]
    two = _with(process, 2)
    most = max((entry.where.workers for entry in ray if entry.runs), default=0)
    ray_most, beside = _with(ray, most), _with(process, most)
    found = [
        _target("2 processes beside serial", SPEED_UP, "x", two, lambda e: speed_up(entries, e), least=True),
        _target(
            f"Ray beside as many processes ({most or 'any'})",
            RAY,
            "x",
            ray_most or (ray[0] if ray else None),
            lambda e: None if beside is None else paired(e.runs, beside.runs, _solve),
        ),
        _target(
            "the same from the first task on",
            RAY,
            "x",
            ray_most or (ray[0] if ray else None),
            lambda e: None if beside is None else paired(e.runs, beside.runs, _from_first_task),
        ),
        _target(
            "process: seconds to the first task",
            START_UP,
            "s",
            _worst(process, lambda run: run.account.first_task),
            lambda e: e.median(lambda run: run.account.first_task),
        ),
    ]
    for engine in (process, ray):
        if engine:
            found.append(
                _target(
                    f"{engine[0].where.engine}: what shards cost beside their own seconds",
                    100 * OVERHEAD,
                    "%",
                    _worst(engine, lambda run: run.account.shard_overhead) or engine[0],
                    lambda e: _percent(e.median(lambda run: run.account.shard_overhead)),
                )
            )
    found += [
        _target(
            "2 processes: overhead in all, starting and waiting included",
            100 * OVERHEAD,
            "%",
            two,
            lambda e: _percent(e.median(lambda run: run.account.overhead)),
        ),
        _target(
            "a worker's memory above the mapped inputs",
            MEMORY / _MEGABYTE,
            "MB",
            _worst([*process, *ray], lambda run: run.worker_bytes),
            lambda e: _megabytes(e.median(lambda run: run.worker_bytes)),
        ),
    ]
    return tuple(found)


def speed_up(entries: Sequence[Entry], entry: Entry) -> float | None:
    """How many times faster than serial ``entry`` is: the median over the repetitions, in solve_seconds."""
    serial = next((one for one in entries if one.where.engine == "serial"), None)
    return None if serial is None else paired(serial.runs, entry.runs, _solve)


def paired(ours: Sequence[Run], theirs: Sequence[Run], of: Any) -> float | None:
    """The median of ours / theirs over repetitions, in each of which the machine was about as busy for both."""
    ratios = [of(a) / of(b) for a, b in zip(ours, theirs, strict=False) if of(b) > 0]
    return median(ratios) if ratios else None


def _solve(run: Run) -> float:
    return run.solve_seconds


def _from_first_task(run: Run) -> float:
    return run.solve_seconds - run.account.first_task


def _with(entries: Sequence[Entry], workers: int) -> Entry | None:
    return next((entry for entry in entries if entry.where.workers == workers), None)


def _worst(entries: Sequence[Entry], of: Any) -> Entry | None:
    """The entry with the largest median of ``of``."""
    measured = [entry for entry in entries if entry.median(of) is not None]
    return max(measured, key=lambda entry: entry.median(of) or 0.0, default=None)


def _target(name: str, goal: float, unit: str, entry: Entry | None, of: Any, least: bool = False) -> Target:
    if entry is None:
        return Target(name, goal, unit, None, least, "not asked for")
    if not entry.runs:
        return Target(name, goal, unit, None, least, entry.reason or "no run")
    reached = of(entry)
    return Target(name, goal, unit, reached, least, "" if reached is not None else "nothing to compare with")


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _megabytes(value: float | None) -> float | None:
    return None if value is None else value / _MEGABYTE
