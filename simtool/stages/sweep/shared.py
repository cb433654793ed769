"""What several points of a sweep need is made once: inputs, Gram matrices and paths, in folders that points take them from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from simtool import engines
from simtool.engines import BATCH, EngineOptions
from simtool.errors import SimtoolError
from simtool.progress import Progress
from simtool.stages.sparsify import local
from simtool.stages.sparsify.adopt import adopt, share_paths
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.inputs import write_inputs
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.request import Request
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.tasks import PATHS, TILES
from simtool.states import States

_log = logging.getLogger("simtool")


class Shared:
    """The folders below ``path``: unfinished runs that hold what others take over, and never rows of their own."""

    def __init__(self, path: Path, where: EngineOptions, progress: Progress) -> None:
        self._path, self._where, self._progress = path, where, progress
        self._kept: list[tuple[RunFolder, Plan]] = []
        self._known = False

    def give(self, run: RunFolder, source: States, spec: dict[str, Any], later: list[dict[str, Any]]) -> None:
        """Begin ``run`` on ``source``, and let it take over what there is; first make what the runs ``later`` will need as well."""
        plan = Plan(spec)
        run.prepare()
        with run.locked():
            if not run.spec.exists():
                Request(source.path, self._where).write(run)
            run.claim(spec)
            if self._where.name in BATCH or plan.has_constraints_file:
                return
            self._look(spec)
            others = [Plan(other) for other in later if _same_inputs(spec, other)]
            if self._pays(plan, others):
                self._make(run.path.name, source, spec, plan)
            for folder, owner in self._kept:
                adopt(run, plan, folder, owner)

    def _look(self, spec: dict[str, Any]) -> None:
        """Find what an earlier call has left; what another environment made is dropped."""
        if self._known:
            return
        self._known = True
        for place in sorted(self._path.iterdir()) if self._path.is_dir() else []:
            folder = RunFolder(place)
            try:
                stored = folder.read_spec()
                if stored["environment"] != spec["environment"]:
                    raise SimtoolError("another environment")
                self._kept.append((folder, Plan(stored)))
            except (SimtoolError, LookupError) as error:
                _log.info("%s is dropped: %s", place, error)
                shutil.rmtree(place, ignore_errors=True)

    def _pays(self, plan: Plan, later: list[Plan]) -> bool:
        """Whether other runs need what no folder has yet."""
        mine = [owner for _, owner in self._kept if _same_grams(owner, plan)]
        if not mine:
            return any(_same_grams(plan, other) for other in later)
        return (
            plan.budget is not None
            and not any(share_paths(owner, plan) for owner in mine)
            and any(share_paths(plan, other) for other in later)
        )

    def _make(self, name: str, source: States, spec: dict[str, Any], plan: Plan) -> None:
        folder = RunFolder(self._path / name)
        folder.prepare()
        with folder.locked():
            folder.claim(spec)
            folder.remove_temporary()
            for other, owner in self._kept:
                adopt(folder, plan, other, owner)
            write_inputs(folder, source, bool(plan.layers), plan.options.anchor or 0.0)
            steps = Steps(folder, plan)
            if steps.tiles or steps.grams or steps.paths:
                engine = engines.get(self._where)
                try:
                    engine.prepare(local.IMPORTS, max(len(steps.tiles), len(steps.paths)))
                    local.run_tasks(folder, plan, engine, TILES, steps.tiles, self._progress)
                    steps.assemble()
                    if steps.paths:
                        from simtool.budget.warm import warm

                        warm(plan.options.paths)
                        local.write_weights(folder, plan, source)
                        local.run_tasks(folder, plan, engine, PATHS, steps.paths, self._progress)
                finally:
                    engine.close()
        self._kept.append((folder, plan))


def _same_inputs(spec: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(spec.get(key) == other.get(key) for key in ("states", "sizes", "layers"))


def _same_grams(plan: Plan, other: Plan) -> bool:
    """Whether all that ``other`` wants of inputs and Gram matrices, ``plan`` has."""
    return (
        plan.banks == other.banks
        and plan.options.anchor == other.options.anchor
        and set(other.grams) <= set(plan.grams)
        and all(plan.grams[name].tolist() == other.grams[name].tolist() for name in other.grams)
    )
