"""A sweep: its points one after the other, in a folder of their own, resumable like a run.

OUT/grid.json     everything that defines the points and what they are measured on
OUT/points/NNN/   the run of a point, an ordinary run folder
OUT/results/      what each finished point is worth, one small file each
OUT/shared/       inputs, Gram matrices and paths that several points use; removed when the sweep is finished
OUT/sweep.json    all results; OUT/sweep.csv the same as a table, a line a point
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from simtool.engines import BATCH, EngineOptions
from simtool.engines.shards import write_bytes
from simtool.errors import OptionError
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages import tune
from simtool.stages.sparsify.finish import finished
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import plan_of
from simtool.stages.sparsify.spec import spec_of
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sweep import table
from simtool.stages.sweep.folder import SweepFolder
from simtool.stages.sweep.grid import Grid, Point, points_of
from simtool.stages.sweep.points import Measure, check, line_of, measure
from simtool.stages.sweep.shared import Shared
from simtool.stages.tune import AUTO, RECIPES
from simtool.states import States, first, open_states
from simtool.strict_json import finite

_log = logging.getLogger("simtool")
SWEEP_VERSION = 1


def run_sweep(
    states: str | Path,
    output: str | Path,
    grids: Sequence[Grid],
    *,
    measured: Measure | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    engine: str | EngineOptions = "process",
    workers: int | None = None,
    network: NetworkSpec | None = None,
    allow_mixed: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Solve and measure every point of ``grids`` on one states file.

    Parameters
    ----------
    states : a states.h5 written by extract
    output : the folder of the sweep; the same call again goes on with it, or returns what is finished
    grids : the points, see :class:`Grid`
    measured : what the models are measured on; the states' own samples without it
    recipe : how budgets are spent, a name of :data:`simtool.stages.tune.RECIPES`, or ``auto``: each point tries them all on samples kept
        back, as :func:`simtool.sparsify` does; as the points' own options say unless given
    preset : the name under which the grids are known, for the report
    engine, workers, network, allow_mixed : as for :func:`simtool.sparsify`; slurm only where it waits

    Returns the content of OUT/sweep.json: ``points`` with their ``values`` and numbers, ``axes``, ``preset``, ``measure``. Raises
    OptionError for a grid that is empty or a point that cannot be, SpecChanged where ``output`` holds another sweep, OutputError
    where it holds something else, and what runs and measurements raise.
    """
    started = time.perf_counter()
    where = engine if isinstance(engine, EngineOptions) else EngineOptions(engine, workers)
    if where.name in BATCH and not where.wait:
        raise OptionError(
            "a sweep solves its points one after the other, and --engine slurm returns before a point is solved. Add --wait, or use "
            "--engine serial, process or ray."
        )
    points = points_of(_spent(grids, recipe))
    _check_recipe(points, recipe)
    if not any(point.values for point in points):
        raise OptionError(
            "there is nothing to sweep. Pass values separated by commas, as --kappa 0.1,0.5,0.99, or --preset thesis-3.1."
        )
    measured = measured or Measure()
    folder = SweepFolder(Path(output))
    with open_states(Path(states)) as source:
        source.verify_content()
        jobs = [_job(source, point, measured, recipe) for point in points]
        content = {
            "format_version": SWEEP_VERSION,
            "states": source.content_sha256(),
            "points": [job.asked for job in jobs],
            "recipe": recipe,
            "measure": measured.to_json(),
        }
        if not folder.grid.exists():  # what cannot be measured must not begin a sweep
            check(measured, source)
        folder.prepare()
        with folder.locked():
            folder.claim(content)
            call = _Call(folder, source, measured, recipe == AUTO, where, network, allow_mixed, progress)
            call.carry_out(jobs)
            result = {
                "format_version": SWEEP_VERSION,
                "preset": preset,
                "axes": list(dict.fromkeys(axis for point in points for axis in point.typed)),
                "states": {
                    "file": str(source.path),
                    "content_sha256": source.content_sha256(),
                    "samples": source.m,
                },
                "measure": measured.to_json(),
                "points": [_shown(job) for job in jobs],
                "seconds": time.perf_counter() - started,
                "sweep": str(folder.path),
            }
            return folder.finish(dict(finite(result)), table.csv_of(result))


def _spent(grids: Sequence[Grid], recipe: str | None) -> list[Grid]:
    """``grids`` with the options of ``recipe``; what they ask for themselves stays."""
    if recipe in (None, AUTO):
        return list(grids)
    if recipe not in RECIPES:
        raise OptionError(f"--recipe must be one of {AUTO}, {', '.join(RECIPES)}, got {recipe!r}.")
    return [replace(grid, fixed={**RECIPES[recipe], **grid.fixed}) for grid in grids]


def _check_recipe(points: Sequence[Point], recipe: str | None) -> None:
    if recipe is None:
        return
    if not all(point.options.has_budget for point in points):
        raise OptionError(
            f"--recipe {recipe} belongs to budgets of non-zeros. Pass --target-sparsity, or leave it out."
        )
    for point in points:
        tune.refuse_other_weights(recipe, point.options)
    if recipe == AUTO and any(point.samples is not None for point in points):
        raise OptionError(
            f"--recipe {AUTO} keeps samples back to choose by, and --samples says how many there are. Leave one of them out, or name a "
            f"recipe: {', '.join(RECIPES)}."
        )


@dataclass
class _Job:
    """A point with the spec of its run; ``line`` is what is known of it once it is measured."""

    point: Point
    spec: dict[str, Any]
    asked: dict[str, Any]
    key: str
    line: dict[str, Any] = field(default_factory=dict)


def _job(source: States, point: Point, measured: Measure, recipe: str | None) -> _Job:
    spec = spec_of(part_of(source, point), point.options)
    default = asdict(SparsifyOptions())
    changed = {key: value for key, value in asdict(point.options).items() if value != default[key]}
    asked = {"values": point.typed, "options": changed}
    # Not its environment: what a finished point is worth does not change with the machine that asks.
    defines = {key: value for key, value in spec.items() if key != "environment"}
    text = json.dumps([defines, point.samples, recipe, measured.to_json()], sort_keys=True)
    return _Job(point, spec, asked, hashlib.sha256(text.encode()).hexdigest())


def part_of(source: States, point: Point) -> States:
    """The samples that the run of ``point`` may see."""
    return source if point.samples is None else first(source, point.samples)


def _shown(job: _Job) -> dict[str, Any]:
    """What sweep.json says of a point."""
    point = job.point
    return {
        "point": point.name,
        "objective": job.spec["options"]["objective"],
        "values": point.values,
        "typed": point.typed,
        "options": job.asked["options"],
        **job.line,
    }


@dataclass
class _Call:
    """One call of run_sweep."""

    folder: SweepFolder
    source: States
    measured: Measure
    tries_recipes: bool
    where: EngineOptions
    network: NetworkSpec | None
    allow_mixed: bool
    progress: Progress

    def carry_out(self, jobs: list[_Job]) -> None:
        """Fill the ``line`` of every job: those that are known are read, the others run."""
        todo = [job for job in jobs if not self._known(job)]
        if not todo:
            _log.info("%s is finished already; its result is returned", self.folder.path)
            return
        if len(todo) < len(jobs):
            _log.info("%d of %d points are finished already", len(jobs) - len(todo), len(jobs))
        shared = Shared(self.folder.shared, self.where, self.progress)
        for number, job in enumerate(todo):
            _log.info("point %d of %d: %s", len(jobs) - len(todo) + number + 1, len(jobs), job.point.words)
            self._run(job, shared, [later.spec for later in todo[number + 1 :]])

    def _known(self, job: _Job) -> bool:
        """Whether this point is measured, and its run is there."""
        stored = self.folder.result(job.point.name)
        run = self.folder.point(job.point.name)
        if stored is None or stored.get("key") != job.key or not run.spec.exists():
            return False
        result = finished(run, plan_of(run))
        if result is None:
            return False
        job.line = {**stored["line"], "run": str(run.path)}
        return True

    def _run(self, job: _Job, shared: Shared, later: list[dict[str, Any]]) -> None:
        run = self.folder.point(job.point.name)
        call: dict[str, Any] = {
            **{"engine": self.where, "network": self.network},
            **{"allow_mixed": self.allow_mixed, "progress": self.progress},
        }
        if self.tries_recipes:
            result = tune.sparsify(self.source.path, run.path, job.point.options, **call)
        else:
            shared.give(run, part_of(self.source, job.point), job.spec, later)
            samples = job.point.samples
            result = sparsify(self.source.path, run.path, job.point.options, samples=samples, **call)
        line = line_of(result, measure(run.model, self.source, self.measured))
        content = {"key": job.key, "line": finite(line)}
        write_bytes(self.folder.result_file(job.point.name), (json.dumps(content, indent=1) + "\n").encode())
        job.line = {**content["line"], "run": str(run.path)}
