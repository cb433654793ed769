"""The sparsify stage: a states file in, a run folder with a certified sparse implicit model out."""

from __future__ import annotations

import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from simtool import engines, environment
from simtool.blocks import lipschitz, to_json
from simtool.engines import Engine
from simtool.engines.shards import is_valid, write_bytes
from simtool.errors import InputError, OutputError, SimtoolError
from simtool.model import load_model
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers import backends
from simtool.solvers.warm import warm
from simtool.stages.sparsify import constraints, elimination
from simtool.stages.sparsify.folder import SPEC_VERSION, RunFolder
from simtool.stages.sparsify.merge import merge, spec_sha256
from simtool.stages.sparsify.options import SparsifyOptions, resolve
from simtool.stages.sparsify.work import Plan, assemble_gram, gram_array, plan_of
from simtool.states import States, open_states

_log = logging.getLogger("simtool")
_WORK = "simtool.stages.sparsify.work"
_ELIMINATE = "simtool.stages.sparsify.elimination_rounds"
_COPY_BYTES = 64 * 2**20
RESULT_KEYS = {
    *(
        "rows",
        "certified",
        "max_relative_gap",
        "nnz",
        "baseline_nnz",
        "sparsity",
        "statuses",
        "norm_a_inf",
        "norm_a_inf_raw",
    ),
    *("well_posed", "well_posed_by", "seconds", "solve_seconds", "peak_memory_bytes"),
    *("engine", "workers", "run", "model"),
}


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
                finished = _finished(folder, plan_of(folder))
                if finished is not None:
                    return finished
            backends.require(spec["options"]["solver"])
            _check_own_objective(Plan(spec))
            folder.prepare()
            with folder.locked(), _logged_to(folder):
                folder.claim(spec)
                plan = plan_of(folder)
                if plan.has_constraints_file:
                    asked.save(folder.constraints)
                _warn_if_interpolating(plan)
                times = _solve(folder, plan, source, chosen, progress)
                model = merge(folder, plan, source, spec)
                model.save(folder.model, overwrite=True)
                eliminated = elimination.finish(folder, plan)
                result = _result(folder, times, chosen, time.perf_counter() - started) | eliminated
                _write_timing(folder, times, result)
                folder.remove_work()
                return result
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


def _finished(folder: RunFolder, plan: Plan) -> dict[str, Any] | None:
    """The stored result if every shard and the model are there and valid."""
    timing = folder.read_timing()
    result = None if timing is None else timing.get("result")
    keys = RESULT_KEYS | elimination.result_keys(plan)
    if not isinstance(result, dict) or set(result) != keys or not folder.model.exists():
        return None
    if not elimination.is_complete(folder, plan):
        return None
    if not all(is_valid(folder.shard(index)) for index in range(len(plan.shards))):
        return None
    try:
        model = load_model(folder.model)
    except SimtoolError as error:
        _log.warning("the model of this finished run is damaged (%s); it is written again", error)
        return None
    if model.fingerprints.get("spec") != spec_sha256(folder.read_spec()):
        _log.warning("the model in this finished run belongs to another run; it is written again")
        return None
    _log.info("%s is finished already; its result is returned", folder.path)
    return {**result, "run": str(folder.path), "model": str(folder.model)}


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


def _solve(
    folder: RunFolder, plan: Plan, source: States, engine: Engine, progress: Progress
) -> dict[str, float]:
    """Bring every shard to completion; returns the seconds of each phase and the workers' peak memory."""
    chosen = elimination.is_chosen(folder, plan)
    todo = [index for index in range(len(plan.shards)) if not (chosen and is_valid(folder.shard(index)))]
    times = {"gram_seconds": 0.0, "rows_seconds": 0.0, "worker_peak_memory_bytes": 0.0}
    if not todo:
        return times
    _check_room(folder, plan)
    # Exact matching decides by the native solver whether a row is feasible.
    warm("native" if plan.options.match == "exact" else plan.options.solver or "native")
    _write_inputs(folder, source)

    def run_phase(task: str, items: list[int], label: str, weight: Callable[[int], int], unit: str) -> float:
        phase_started = time.perf_counter()
        seen = {"rows": 0, "certified": 0}

        def done(item: int, report: dict[str, Any]) -> None:
            times["worker_peak_memory_bytes"] = max(
                times["worker_peak_memory_bytes"], float(report["peak_memory_bytes"])
            )
            if "rows" in report:
                seen["rows"] += report["rows"]
                seen["certified"] += report["certified"]
                progress.note(f"{seen['certified']} certified")
            progress.advance(weight(item))

        progress.start(sum(weight(item) for item in items), unit, label)
        engine.run(
            f"{_ELIMINATE if task == 'eliminate' else _WORK}:{task}", folder.path.resolve(), items, done
        )
        progress.finish()
        return time.perf_counter() - phase_started

    needed = {plan.groups[plan.shards[index].group].gram for index in todo} & set(plan.grams)
    missing = [name for name in sorted(needed) if not folder.array(gram_array(plan, name)).exists()]
    tiles = [
        index
        for index, tile in enumerate(plan.tiles)
        if tile[0] in missing and not is_valid(folder.tile(index))
    ]
    if tiles:
        times["gram_seconds"] = run_phase("gram_tile", tiles, "Gram matrix", lambda _: 1, "tiles")
    for name in missing:
        assemble_gram(folder, name)
    if not chosen:
        elimination.write_weights(folder, source.sensitivity)
        times["elimination_seconds"] = run_phase("eliminate", [0], "elimination", lambda _: 1, "task")
    times["rows_seconds"] = run_phase(
        "solve_shard",
        todo,
        "rows",
        lambda index: plan.shards[index].stop - plan.shards[index].start,
        "rows",
    )
    return times


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


def _write_inputs(folder: RunFolder, source: States) -> None:
    """[X; U] and [Z; Y] as plain arrays that workers map, copied piece by piece."""
    folder.work.mkdir(exist_ok=True)
    for name, parts in (
        ("design", (("X", source.X), ("U", source.U))),
        ("targets", (("Z", source.Z), ("Y", source.Y))),
    ):
        if folder.array(name).exists():
            continue
        rows = sum(part.shape[0] for _, part in parts)
        samples = parts[0][1].shape[1]
        with folder.new_array(name, (rows, samples), np.float32) as mapped:
            offset = 0
            for label, part in parts:
                step = max(1, _COPY_BYTES // max(1, 4 * samples))
                for start in range(0, part.shape[0], step):
                    piece = part[start : start + step]
                    if not np.isfinite(piece).all():
                        row, sample = np.argwhere(~np.isfinite(piece))[0]
                        raise InputError(
                            f"the states file holds {piece[row, sample]} in {label}[{start + row}, {sample}]; every "
                            "value must be finite. Extract again from a network and data without NaN or infinity."
                        )
                    mapped[offset : offset + piece.shape[0]] = piece
                    offset += piece.shape[0]


def _result(folder: RunFolder, times: dict[str, float], engine: Engine, seconds: float) -> dict[str, Any]:
    """The JSON object of the command, read back from the model as it was written."""
    model = load_model(folder.model)
    table = model.certificates
    assert table is not None
    verdict = model.well_posedness()
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows": len(table),
        "certified": int(table.certified.sum()),
        "statuses": table.count_by_status(),
        "max_relative_gap": float(table.relative_gap.max(initial=0.0)),
        "nnz": model.nnz,
        "baseline_nnz": model.baseline_nnz,
        "sparsity": model.sparsity if model.baseline_nnz else None,
        "norm_a_inf": model.norm_a_inf,
        "norm_a_inf_raw": model.norm_a_inf_raw,
        "well_posed": verdict.well_posed,
        "well_posed_by": verdict.by,
        "seconds": seconds,
        "solve_seconds": times["gram_seconds"]
        + times.get("elimination_seconds", 0.0)
        + times["rows_seconds"],
        "peak_memory_bytes": int(max(own_peak, times["worker_peak_memory_bytes"])),
        "engine": engine.name,
        "workers": engine.workers,
        "run": str(folder.path),
        "model": str(folder.model),
    }


def _write_timing(folder: RunFolder, times: dict[str, float], result: dict[str, Any]) -> None:
    import json
    import platform

    content = {**times, "host": platform.node(), "result": result}
    write_bytes(folder.timing, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


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
