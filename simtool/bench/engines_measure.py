"""Engines side by side on one states file: every repetition runs all of them, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from simtool.bench.engines_account import Account, Phase, account
from simtool.bench.engines_memory import Load, Sampler, await_idle
from simtool.errors import WorkerError
from simtool.stages.sparsify.options import SparsifyOptions

_log = logging.getLogger("simtool")
_EVERY = 0.05
# From so many cores on, other programs disturb what is measured.
BUSY = 0.1
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "NUMBA")


@dataclass(frozen=True)
class Where:
    """An engine with so many workers."""

    engine: str
    workers: int

    @property
    def name(self) -> str:
        return self.engine if self.engine == "serial" else f"{self.engine}, {self.workers}"


@dataclass(frozen=True)
class Run:
    """One sparsify on one engine.

    Attributes
    ----------
    solve_seconds, total_seconds : as sparsify reports them, and of the whole call: checks, files and model included
    before, joining, after : the parts of the call in which no engine works: checking and copying the states; joining the
        tiles of Gram matrices; writing the model
    cpu_seconds : of all processes
    coordinator_bytes, worker_bytes, workers_bytes, services_bytes : largest private memory of the calling process, of one
        worker, of all workers, of what else the engine runs; ``private_bytes`` and ``pss_bytes`` of all together at one
        time. None without /proc
    load : the load average just before; ``others`` : cores that other programs used meanwhile
    """

    account: Account
    solve_seconds: float
    total_seconds: float
    before: float
    joining: float
    after: float
    cpu_seconds: float | None
    coordinator_bytes: int | None
    worker_bytes: int | None
    workers_bytes: int | None
    services_bytes: int | None
    private_bytes: int | None
    pss_bytes: int | None
    load: float
    others: float | None
    rows: int
    certified: int
    max_relative_gap: float
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "account": self.account.to_json()}


@dataclass(frozen=True)
class Entry:
    """What became of an engine; ``reason`` says why it has no runs."""

    where: Where
    runs: tuple[Run, ...]
    reason: str | None = None

    def median(self, of: Callable[[Run], float | None]) -> float | None:
        """The median of ``of`` over the runs that have it."""
        values = [value for run in self.runs if (value := of(run)) is not None]
        return median(values) if values else None


def side_by_side(
    states: Path,
    options: SparsifyOptions,
    engines: Sequence[Where],
    repeats: int,
    folder: Path,
    ended: Callable[[str], None] = lambda name: None,
    patience: float = 0.0,
) -> tuple[Entry, ...]:
    """Run every engine ``repeats`` times, interleaved; what fails is not tried again, and keeps its reason.

    ``patience``: seconds that each run waits at most for a machine that is idle otherwise.

    Raises WorkerError if two models differ in a byte, or if the serial engine fails.
    """
    runs: dict[Where, list[Run]] = {where: [] for where in engines}
    reasons: dict[Where, str] = {}
    for repeat in range(repeats):
        # Back and forth: what grows or shrinks over the minutes falls on all alike.
        for where in engines if repeat % 2 == 0 else reversed(engines):
            if where in reasons:
                continue
            await_idle(patience, BUSY)
            try:
                runs[where].append(run_once(states, options, where, folder))
            except _Failed as error:
                if where.engine == "serial":
                    raise WorkerError(f"the serial engine failed: {error}") from error
                reasons[where] = str(error)
                _log.warning("%s: %s", where.name, error)
            ended(where.name)
    require_equal_models({where.name: [run.sha256 for run in found] for where, found in runs.items()})
    return tuple(Entry(where, tuple(runs[where]), reasons.get(where)) for where in engines)


def require_equal_models(models: dict[str, list[str]]) -> None:
    """Raise WorkerError unless all sha256, by engine, are the same."""
    different: dict[str, str] = {}
    for name, found in models.items():
        for sha256 in found:
            different.setdefault(sha256, name)
    if len(different) > 1:
        seen = "; ".join(f"{name}: {sha256[:16]}" for sha256, name in different.items())
        raise WorkerError(
            f"model.h5 must have the same bytes on every engine, but differs ({seen}). This is a fault in simtool: times of "
            "different answers are not compared."
        )


class _Failed(Exception):
    """An engine could not do it."""


def run_once(states: Path, options: SparsifyOptions, where: Where, folder: Path) -> Run:
    """One run in a new folder inside ``folder``, which is removed again."""
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    request = {
        "states": str(states.resolve()),
        "run": str(scratch / "run"),
        "options": asdict(options),
        "engine": where.engine,
        "workers": where.workers,
    }
    try:
        before = Load.now()
        answer, seen = _watched(request, scratch)
        return summarise(answer, seen, before, where.workers)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _watched(request: dict[str, Any], scratch: Path) -> tuple[dict[str, Any], Sampler]:
    """Run the child that carries out ``request``, and sample it until it ends."""
    out, log = scratch / "out.json", scratch / "log.txt"
    with out.open("w") as stdout, log.open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "simtool.bench.engines_child", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **{f"{name}_NUM_THREADS": "1" for name in _THREADS}},
        )
        seen = Sampler(child.pid)
        try:
            while child.poll() is None:
                seen.sample()
                time.sleep(_EVERY)
        finally:
            if child.poll() is None:
                child.terminate()  # its workers end with it
                child.wait()
    try:
        answer = json.loads(out.read_text().splitlines()[-1])
    except (IndexError, ValueError):
        said = log.read_text().strip().splitlines() or [""]
        raise _Failed(f"it ended with code {child.returncode}: {said[-1][-400:]}") from None
    if "error" in answer:
        raise _Failed(answer["error"])
    return answer, seen


def summarise(answer: dict[str, Any], seen: Sampler, before: Load, workers: int) -> Run:
    """The child's ``answer`` and what was ``seen`` of it from outside, as a Run."""
    phases = [Phase.from_json(phase) for phase in answer["phases"]]
    result = answer["result"]
    pids = {task.worker for phase in phases for task in phase.tasks}
    private = seen.private
    others = [held for pid, held in private.items() if pid not in pids and pid != seen.root]
    held = [private[pid] for pid in pids if pid in private]
    cpu = sum(seen.cpu.values()) if seen.cpu else None
    return Run(
        account=account(phases, workers),
        solve_seconds=result["solve_seconds"],
        total_seconds=answer["ended"] - answer["began"],
        before=(phases[0].began if phases else answer["ended"]) - answer["began"],
        joining=sum(b.began - a.ended for a, b in pairwise(phases)),
        after=answer["ended"] - phases[-1].ended if phases else 0.0,
        cpu_seconds=cpu,
        coordinator_bytes=private.get(seen.root),
        worker_bytes=max(held) if held else None,
        workers_bytes=sum(held) if held else None,
        services_bytes=sum(others) if private else None,
        private_bytes=seen.private_together or None,
        pss_bytes=seen.pss_together or None,
        load=before.average,
        others=None if cpu is None else before.others_since(cpu),
        rows=result["rows"],
        certified=result["certified"],
        max_relative_gap=result["max_relative_gap"],
        sha256=answer["sha256"],
    )
