"""What a run will take, before it starts: time, memory and disk; and a refusal where it will not fit.

Memory and disk follow from the sizes. Time is an order of magnitude: how many features a row ends with, which no size
tells, decides how long it takes.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simtool.engines import EngineOptions
from simtool.environment import free_memory
from simtool.errors import InputError, OutputError
from simtool.progress import format_seconds
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.structure import GRAM_TILE

_log = logging.getLogger("simtool")
# Interpreter, numpy, scipy and numba; with the cone solvers CVXPY comes on top.
_WORKER_BYTES, _CONE_WORKER_BYTES = 160 * 2**20, 320 * 2**20
_START_SECONDS = 1.5
# Seconds of a row beside its products with W, by its features: few non-zeros (lasso), some hundreds (the others).
_FEW, _MANY = 5e-8, 1e-6
_BISECTION, _CONE = 1e-6, 2.5e-9
_PATH = 1.2e-10  # of a path from all features, by their cube
# Operations a second where nothing is measured, and the seconds from which a run is announced.
_NOMINAL, _LONG = 2e10, 10.0
_CONVERTED = 1024 * 4096 * 8


@dataclass(frozen=True)
class Estimate:
    """``memory_bytes``: private memory of all processes, and the Gram matrices that they share; ``disk_bytes``: the run folder
    at its largest; ``seconds``: an order of magnitude; ``free_*``: what there is, None where unknown."""

    rows: int
    shards: int
    tiles: int
    workers: int
    seconds: float
    memory_bytes: int
    worker_bytes: int
    gram_bytes: int
    disk_bytes: int
    free_memory_bytes: int | None
    free_disk_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.lack is None

    @property
    def lack(self) -> InputError | OutputError | None:
        """What will not fit, and the levers, as the error to be raised."""
        memory, disk = self.free_memory_bytes, self.free_disk_bytes
        if memory is not None and 2 * self.gram_bytes > memory:
            return InputError(
                f"the Gram matrix needs {_gib(2 * self.gram_bytes)} of memory, {_gib(memory)} are free. "
                "Use --structure layered, which needs one per layer only, or a machine with more memory."
            )
        if memory is not None and self.memory_bytes > memory:
            return InputError(
                f"{self.workers} workers need about {_gib(self.memory_bytes)} of memory, {_gib(memory)} are free. Use "
                f"fewer --workers ({_gib(self.worker_bytes)} each), fewer --samples in extract, or --engine slurm."
            )
        if disk is not None and self.disk_bytes > disk:
            return OutputError(
                f"the run needs about {self.disk_bytes / 2**20:.1f} MiB on disk, {disk / 2**20:.1f} MiB are free. "
                "Free some space or choose another -o."
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """The object that --dry-run prints."""
        return {**asdict(self), "fits": self.fits, "lack": None if self.lack is None else str(self.lack)}


def estimate(plan: Plan, where: EngineOptions, output: Path, speed: float | None = None) -> Estimate:
    """What the run of ``plan`` takes on ``where``; ``output`` is its folder, there or not.

    ``speed`` is how many operations a second a worker's products make; None measures it here.
    """
    from simtool.engines.process import usable_cores

    local = where.name in ("serial", "process") or where.ray_address == "local"
    if where.name == "slurm":
        from simtool.engines.slurm import SlurmOptions

        asked = where.slurm or SlurmOptions()
        workers = asked.cpus_per_task * (asked.ray_nodes or min(asked.array_size, len(plan.shards)))
    else:
        workers = 1 if where.name == "serial" else where.workers or usable_cores()
    workers = min(workers, max(1, len(plan.shards)))
    grams = [features.size**2 * 8 for features in plan.grams.values()]
    spans = [(*bank.features, *bank.rows, bank.samples) for bank in plan.banks]
    inputs = sum(4 * (f1 - f0 + r1 - r0) * samples for f0, f1, r0, r1, samples in spans)
    worker = max((_worker_bytes(plan, index) for index in range(len(plan.shards))), default=_WORKER_BYTES)
    return Estimate(
        rows=plan.rows,
        shards=len(plan.shards),
        tiles=len(plan.tiles),
        workers=workers,
        seconds=_seconds(plan, workers, _speed() if speed is None else speed),
        memory_bytes=_WORKER_BYTES + (0 if where.name == "serial" else workers * worker) + sum(grams),
        worker_bytes=worker,
        gram_bytes=max(grams, default=0),
        disk_bytes=inputs + 2 * sum(grams),
        free_memory_bytes=free_memory() if local else None,
        free_disk_bytes=_free_disk(output),
    )


def require_room(plan: Plan, where: EngineOptions, folder: RunFolder) -> None:
    """Raise InputError or OutputError if memory or disk cannot hold the run; say so if it will be a long one."""
    found = estimate(plan, where, folder.path, _NOMINAL)
    if found.lack is not None:
        raise found.lack
    if found.seconds > _LONG:
        _log.info(
            "about %s with %d workers, %s of memory and %s of disk (an order of magnitude)",
            format_seconds(found.seconds),
            found.workers,
            _gib(found.memory_bytes),
            _gib(found.disk_bytes),
        )


def _worker_bytes(plan: Plan, index: int) -> int:
    shard = plan.shards[index]
    d, rows = plan.groups[shard.group].features.size, shard.stop - shard.start
    m = plan.samples(plan.groups[shard.group])
    if plan.options.needs_cone_solver or plan.options.solver in ("clarabel", "scs", "mosek"):
        return _CONE_WORKER_BYTES + 6 * 8 * d * m
    gram = 8 * d * d if plan.groups[shard.group].gram in plan.grams else 2 * 8 * min(d, 512) * m
    return _WORKER_BYTES + 2 * min(_CONVERTED, 8 * d * m) + gram + 4 * 8 * rows * m


def _seconds(plan: Plan, workers: int, speed: float) -> float:
    options = plan.options
    products = float(
        sum(2 * GRAM_TILE**2 * plan.banks[plan.gram_banks[name]].samples for name, _, _ in plan.tiles)
    )
    alone = 0.0
    for shard in plan.shards:
        d, rows = plan.groups[shard.group].features.size, shard.stop - shard.start
        m = plan.samples(plan.groups[shard.group])
        products += 8.0 * rows * d * m
        if options.needs_cone_solver or options.solver in ("clarabel", "scs", "mosek"):
            alone += rows * _CONE * d * d * m
        elif options.solver == "bisection":
            alone += rows * _BISECTION * d * d
        else:
            alone += rows * d**3 * _PATH if plan.budget is not None else 0.0
            alone += rows * d * (_FEW if options.objective == "lasso" else _MANY)
    return _START_SECONDS + (products / speed + alone) / workers


def _speed() -> float:
    """Multiply-adds times two a second of this machine's float64 products, measured in some hundredths of a second."""
    a = np.ones((512, 2048))
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        a @ a.T
        best = min(best, time.perf_counter() - started)
    return float(2 * a.shape[0] ** 2 * a.shape[1] / max(best, 1e-9))


def _free_disk(path: Path) -> int | None:
    """Free bytes where ``path`` is or will be."""
    for place in (path, *path.resolve().parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
