"""The sparsify stage: a states file in, a run folder with a certified sparse implicit model out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simtool import engines, environment
from simtool.blocks import lipschitz, to_json
from simtool.errors import InputError, OutputError
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers import backends
from simtool.stages.sparsify import constraints, elimination
from simtool.stages.sparsify.finish import finish, finished
from simtool.stages.sparsify.folder import SPEC_VERSION, RunFolder
from simtool.stages.sparsify.local import solve
from simtool.stages.sparsify.options import SparsifyOptions, resolve
from simtool.stages.sparsify.work import Plan, plan_of
from simtool.states import States, open_states

_log = logging.getLogger("simtool")


def sparsify(
    states: str | Path,
    output: str | Path,
    options: SparsifyOptions | None = None,
    *,
    engine: str = "process",
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Solve every row of the states file and write the sparse implicit model.

    Parameters
    ----------
    states : a states.h5 written by extract
    output : the run folder; an unfinished run with the same spec is resumed, a finished one is returned
    options : what is asked of every row
    engine, workers : where rows are solved; no effect on the answer

    Returns
    -------
    dict with rows, certified, statuses, max_relative_gap, nnz, baseline_nnz, sparsity, norm_a_inf, norm_a_inf_raw,
    well_posed, well_posed_by, seconds, solve_seconds, peak_memory_bytes, engine, workers, run, model; with
    ``eliminate`` also eliminated_features, eliminated_per_row_mean

    Raises OptionError, InputError, FormatError, SpecChanged, OutputError or WorkerError; a run that failed can be
    resumed by the same call.
    """
    started = time.perf_counter()
    chosen = engines.get(engine, workers)
    folder = RunFolder(Path(output))
    try:
        with open_states(Path(states)) as source:
            source.verify_content()
            asked, options = _constraints(source, options or SparsifyOptions())
            spec = _spec(source, options)
            # A finished run is only read: its folder need not be writable, nor free.
            if folder.spec.exists():
                folder.claim(spec)
                result = finished(folder, plan_of(folder))
                if result is not None:
                    return result
            backends.require(spec["options"]["solver"])
            _check_own_objective(Plan(spec))
            folder.prepare()
            with folder.locked(), _logged_to(folder):
                folder.claim(spec)
                plan = plan_of(folder)
                if plan.has_constraints_file:
                    asked.save(folder.constraints)
                _warn_if_interpolating(plan)
                _check_room(folder, plan)
                times = solve(folder, plan, source, chosen, progress)
                return finish(folder, plan, source, times, time.perf_counter() - started)
    finally:
        chosen.close()


def _constraints(source: States, options: SparsifyOptions) -> tuple[constraints.Constraints, SparsifyOptions]:
    """The mask and sample weights that ``options`` name by their files, and options that name them by content."""
    header = source.header
    rows, features = header.states + header.outputs, header.states + header.inputs
    asked = constraints.read(options.mask, options.weight_samples, rows, features, header.samples)
    return asked, replace(options, mask=asked.mask_sha256, weight_samples=asked.weights_sha256)


def _spec(source: States, options: SparsifyOptions) -> dict[str, Any]:
    """Everything that defines the answer."""
    header = source.header
    elimination.check_features(options.features, header.states, header.inputs, header.has_bias)
    largest = float(lipschitz(header.blocks).max(initial=1e-12))
    resolved = resolve(options, largest)
    own: dict[str, Any] = {}
    if options.custom:
        from simtool.solvers.custom.objective import load

        own = {"objective": {"source_sha256": load(options.objective).source_sha256}}
    return {
        **own,
        "format_version": SPEC_VERSION,
        "options": asdict(resolved),
        "sizes": {"n": header.states, "p": header.inputs, "q": header.outputs, "m": header.samples},
        "blocks": to_json(header.blocks),
        "output_parents": list(header.output_parents),
        "has_bias": header.has_bias,
        "states": {"content_sha256": source.content_sha256()},
        "environment": environment.fingerprint(_packages(resolved)),
    }


def _packages(options: SparsifyOptions) -> tuple[str, ...]:
    """What solves the rows of resolved ``options`` beside our own code; the bound of an objective of one's own is always Clarabel's."""
    cones = {name for name in ("clarabel", "mosek", "scs") if name == options.solver}
    if options.custom:
        cones |= {"clarabel"}
    return ("cvxpy", *sorted(cones)) if cones else ()


def _check_own_objective(plan: Plan) -> None:
    """Call the user's function for rows of every shape: whatever is wrong with it is said before any work."""
    if plan.options.custom:
        from simtool.solvers.custom.objective import check, load

        tasks = ((plan.task(group), group.features.size) for group in plan.groups)
        check(load(plan.options.objective), {(task.states, size - task.states) for task, size in tasks})


def _warn_if_interpolating(plan: Plan) -> None:
    widest = max((group.features.size for group in plan.groups), default=0)
    if plan.m < widest:
        _log.warning(
            "%d samples for rows of up to %d features: such rows can fit any target exactly, noise included, and "
            "say little about new data. Extract at least %d samples, or use a smaller --kappa.",
            plan.m,
            widest,
            2 * widest,
        )


def _check_room(folder: RunFolder, plan: Plan) -> None:
    """Refuse a run that memory or disk cannot hold, before any work."""
    grams = max((features.size for features in plan.grams.values()), default=0) ** 2 * 8
    inputs = (2 * plan.n + plan.p + plan.q) * plan.m * 4
    available = _available_memory()
    if available is not None and 2 * grams > available:
        raise InputError(
            f"the Gram matrix needs {2 * grams / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free. "
            "Use --structure layered, which needs one per layer only, or a machine with more memory."
        )
    stored = sum(features.size**2 * 16 for features in plan.grams.values())
    free = shutil.disk_usage(folder.path).free
    if inputs + stored > free:
        raise OutputError(
            f"the run needs about {(inputs + stored) / 2**20:.0f} MiB in {folder.path}, {free / 2**20:.0f} MiB are "
            "free. Free some space or choose another -o."
        )


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


@contextmanager
def _logged_to(folder: RunFolder) -> Iterator[None]:
    """Copy the log into the run folder while the run is at work."""
    handler = logging.FileHandler(folder.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        handler.close()
