"""The steps of a run on an engine that this process drives: serial, process or Ray."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from simtool.engines import Engine
from simtool.progress import Progress
from simtool.solvers.warm import is_compiled, warm
from simtool.stages.sparsify import budget, elimination, sequential
from simtool.stages.sparsify.finish import Times
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.inputs import write_inputs
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.student import Student, student_of
from simtool.stages.sparsify.tasks import CHOICE, PATHS, ROWS, TILES
from simtool.states import States

if TYPE_CHECKING:
    from simtool.networks import Network

# Per phase: its task, and what progress calls it and counts.
_PHASES = {
    TILES: ("simtool.stages.sparsify.tasks:tile", "Gram matrix", "tiles"),
    PATHS: ("simtool.stages.sparsify.tasks:paths", "paths", "rows"),
    CHOICE: ("simtool.stages.sparsify.tasks:choose", "elimination", "task"),
    ROWS: ("simtool.stages.sparsify.tasks:shard", "rows", "rows"),
}
IMPORTS = "simtool.stages.sparsify.tasks:prepare"
_KERNEL = "simtool.stages.sparsify.tasks:prepare_native"


def solve(
    folder: RunFolder,
    plan: Plan,
    source: States,
    engine: Engine,
    progress: Progress,
    network: Network | None = None,
) -> Times:
    """Bring every shard of ``folder`` to completion; ``network`` is what --sequential may need."""
    times = Times(engine.name, engine.workers)
    steps = Steps(folder, plan)
    if not steps.rows:
        return times
    # Exact matching decides by the native solver whether a row is feasible.
    native = plan.options.match == "exact" or plan.options.solver == "native"
    if native and not is_compiled("native"):
        warm("native")  # once, before every worker does
    if steps.paths:
        from simtool.budget.warm import warm as warm_paths

        warm_paths(plan.options.paths)
    engine.prepare(_KERNEL if native else IMPORTS, max(len(steps.rows), len(steps.tiles)))
    write_inputs(folder, source, bool(plan.layers), plan.options.anchor or 0.0)
    times.gram_seconds = run_tasks(folder, plan, engine, TILES, steps.tiles, progress, times)
    steps.assemble()
    if steps.choose or plan.options.weighs_rows:
        write_weights(folder, plan, source)
    if steps.choose:
        times.paths_seconds = run_tasks(folder, plan, engine, PATHS, steps.paths, progress, times)
        times.elimination_seconds = run_tasks(folder, plan, engine, CHOICE, [0], progress, times)
    student: Student | None = None
    while steps.rows:
        if steps.refresh:
            student = student or student_of(folder, plan, source, network)
            started = time.perf_counter()
            sequential.refresh(folder, plan, student, steps.depth)
            times.paths_seconds += time.perf_counter() - started
        times.rows_seconds += run_tasks(folder, plan, engine, ROWS, steps.ready, progress, times)
        if len(steps.ready) == len(steps.rows):
            break
        steps = Steps(folder, plan)
    times.workers = engine.workers  # Ray knows it only when it has been asked
    return times


def write_weights(folder: RunFolder, plan: Plan, source: States) -> None:
    """What the choice of features or supports goes by."""
    if plan.budget is not None:
        budget.write_weights(folder, plan, source)
    else:
        elimination.write_weights(folder, source.sensitivity)


def run_tasks(
    folder: RunFolder,
    plan: Plan,
    engine: Engine,
    phase: str,
    items: list[int],
    progress: Progress,
    times: Times | None = None,
) -> float:
    """Carry out the tasks ``items`` of ``phase``; returns the seconds it took, and notes the workers' memory in ``times``."""
    if not items:
        return 0.0
    task, label, unit = _PHASES[phase]
    account = _Account(plan) if phase == ROWS else None

    def done(item: int, report: dict[str, Any]) -> None:
        if times is not None:
            times.worker_peak_memory_bytes = max(
                times.worker_peak_memory_bytes, float(report["peak_memory_bytes"])
            )
        if account is not None:
            progress.note(account.add(item, report))
        progress.advance(_weight(plan, phase, item))

    started = time.perf_counter()
    progress.start(sum(_weight(plan, phase, item) for item in items), unit, label)
    engine.run(task, folder.path.resolve(), items, done)
    progress.finish()
    return time.perf_counter() - started


def _weight(plan: Plan, phase: str, item: int) -> int:
    return plan.shards[item].stop - plan.shards[item].start if phase in (PATHS, ROWS) else 1


class _Account:
    """How many rows are certified, and which block takes longest."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._certified = plan, 0
        self._seconds: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    def add(self, item: int, report: dict[str, Any]) -> str:
        """Count a finished shard; returns the remark that progress shows."""
        block = self._plan.groups[self._plan.shards[item].group].name
        self._certified += report["certified"]
        self._seconds[block] = self._seconds.get(block, 0.0) + report["seconds"]
        self._rows[block] = self._rows.get(block, 0) + report["rows"]
        each = {name: seconds / self._rows[name] for name, seconds in self._seconds.items()}
        slowest = max(each, key=lambda name: each[name])
        return f"{self._certified} certified, slowest {slowest} ({1e3 * each[slowest]:.3g} ms a row)"
