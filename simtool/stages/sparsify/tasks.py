"""The tasks that engines carry out: each does one piece of work on a run folder, in an environment that may, and on track.

A task is a pure function of the files in the run folder and leaves its result there; what it returns is for display.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simtool.stages.sparsify import agreement, tracks
from simtool.stages.sparsify.folder import RunFolder

TILES, PATHS, CHOICE, ROWS = "tiles", "paths", "choice", "rows"


def tile(path: Path, index: int) -> dict[str, Any]:
    """Compute tile ``index`` of the Gram matrices."""
    from simtool.stages.sparsify.work import gram_tile

    return _carry_out(TILES, gram_tile, path, index)


def paths(path: Path, index: int) -> dict[str, Any]:
    """Find the paths of the rows of shard ``index``, for a budget."""
    from simtool.stages.sparsify.paths import find_paths

    return _carry_out(PATHS, find_paths, path, index)


def choose(path: Path, index: int) -> dict[str, Any]:
    """Let ``--eliminate heuristic`` choose its features, or share a budget out; there is one such task, ``index`` 0."""
    from simtool.stages.sparsify import budget, work

    if work.plan_of(RunFolder(path)).budget is not None:
        return _carry_out(CHOICE, budget.choose, path, index)
    from simtool.stages.sparsify.elimination_rounds import eliminate

    return _carry_out(CHOICE, eliminate, path, index)


def shard(path: Path, index: int) -> dict[str, Any]:
    """Solve and certify shard ``index`` of the rows."""
    from simtool.stages.sparsify.work import solve_shard

    return _carry_out(ROWS, solve_shard, path, index)


def _carry_out(
    phase: str, work: Callable[[RunFolder, int], dict[str, Any]], path: Path, index: int
) -> dict[str, Any]:
    folder = RunFolder(path)
    agreement.require(folder)
    started = time.perf_counter()
    with tracks.tracked(folder, phase, index) as report:
        report.update(work(folder, index))
        report["seconds"] = time.perf_counter() - started
        report["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


def prepare() -> None:
    """Import what the tasks need, before the first of them comes."""
    from simtool import environment
    from simtool.stages.sparsify import work

    del work
    environment.fingerprint()


def prepare_native() -> None:
    """The same, and load the compiled kernel."""
    from simtool.solvers.warm import warm

    prepare()
    warm("native")
