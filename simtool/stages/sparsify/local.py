"""The steps of a run on an engine that this process drives: serial, process or Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from simtool.engines import Engine
from simtool.progress import Progress
from simtool.solvers.warm import warm
from simtool.stages.sparsify import elimination
from simtool.stages.sparsify.finish import Times
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.inputs import write_inputs
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.work import Plan
from simtool.states import States

_WORK = "simtool.stages.sparsify.work"
_ELIMINATE = "simtool.stages.sparsify.elimination_rounds"


def solve(folder: RunFolder, plan: Plan, source: States, engine: Engine, progress: Progress) -> Times:
    """Bring every shard of ``folder`` to completion."""
    times = Times(engine.name, engine.workers)
    steps = Steps(folder, plan)
    if not steps.rows:
        return times
    # Exact matching decides by the native solver whether a row is feasible.
    warm("native" if plan.options.match == "exact" else plan.options.solver or "native")
    write_inputs(folder, source)
    phase = _Phases(folder, engine, times, progress)
    if steps.tiles:
        times.gram_seconds = phase.run(f"{_WORK}:gram_tile", steps.tiles, "Gram matrix", "tiles")
    steps.assemble()
    if steps.choose:
        elimination.write_weights(folder, source.sensitivity)
        times.elimination_seconds = phase.run(f"{_ELIMINATE}:eliminate", [0], "elimination", "task")
    times.rows_seconds = phase.run(
        f"{_WORK}:solve_shard",
        steps.rows,
        "rows",
        "rows",
        lambda index: plan.shards[index].stop - plan.shards[index].start,
    )
    return times


class _Phases:
    """Runs the tasks of one phase after the other and keeps the account."""

    def __init__(self, folder: RunFolder, engine: Engine, times: Times, progress: Progress) -> None:
        self._folder, self._engine, self._times, self._progress = folder, engine, times, progress

    def run(
        self,
        task: str,
        items: list[int],
        label: str,
        unit: str,
        weight: Callable[[int], int] = lambda _: 1,
    ) -> float:
        """Carry out ``task`` for all of ``items``; returns the seconds it took."""
        started = time.perf_counter()
        certified = 0

        def done(item: int, report: dict[str, Any]) -> None:
            nonlocal certified
            peak = float(report["peak_memory_bytes"])
            self._times.worker_peak_memory_bytes = max(self._times.worker_peak_memory_bytes, peak)
            if "certified" in report:
                certified += report["certified"]
                self._progress.note(f"{certified} certified")
            self._progress.advance(weight(item))

        self._progress.start(sum(weight(item) for item in items), unit, label)
        self._engine.run(task, self._folder.path.resolve(), items, done)
        self._progress.finish()
        return time.perf_counter() - started
