"""Finished shards to model.h5, elimination.json, timing.json, and the JSON object that the command prints."""

from __future__ import annotations

import json
import logging
import platform
import resource
from dataclasses import asdict, dataclass, field
from typing import Any

from threadpoolctl import threadpool_limits

from simtool.engines.shards import write_bytes
from simtool.errors import NoImplicitForm, SimtoolError
from simtool.model import ImplicitModel, load_layers, load_model, save_model
from simtool.networks.stored import load
from simtool.stages.sparsify import budget, elimination, tracks
from simtool.stages.sparsify.expand import implicit_of
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.merge import merge, merge_layers, spec_sha256
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.tasks import ROWS
from simtool.states import States

_log = logging.getLogger("simtool")
RESULT_KEYS = {
    *("rows", "certified", "max_relative_gap", "nnz", "baseline_nnz", "sparsity", "statuses"),
    *("norm_a_inf", "norm_a_inf_raw", "well_posed", "well_posed_by", "seconds", "solve_seconds"),
    *("peak_memory_bytes", "engine", "workers", "run", "model"),
}


@dataclass
class Times:
    """Seconds of each phase, the largest memory of a worker, and where the work was done."""

    engine: str
    workers: int
    gram_seconds: float = 0.0
    paths_seconds: float = 0.0
    elimination_seconds: float = 0.0
    rows_seconds: float = 0.0
    worker_peak_memory_bytes: float = 0.0
    hosts: list[str] = field(default_factory=lambda: [platform.node()])

    @property
    def solve_seconds(self) -> float:
        """Gram matrices, choice of features, rows and certificates; no file reading."""
        return self.gram_seconds + self.paths_seconds + self.elimination_seconds + self.rows_seconds


def finish(folder: RunFolder, plan: Plan, source: States, times: Times, seconds: float) -> dict[str, Any]:
    """Write the model of a run whose shards are all there; ``seconds`` is what the whole call took. Returns the result."""
    # The bytes of a product may depend on how many threads share it.
    with threadpool_limits(limits=1):
        if plan.layers:
            layers = merge_layers(folder, plan, source, folder.read_spec())
            save_model(implicit_of(layers, load(source.file)), folder.model, overwrite=True, layers=layers)
        else:
            merge(folder, plan, source, folder.read_spec()).save(folder.model, overwrite=True)
        eliminated = elimination.finish(folder, plan)
        result = _result(folder, times, seconds) | eliminated
    _compare_with_budget(folder, plan, result["nnz"])
    if not result["well_posed"]:
        _log.warning(
            "nothing proves this model well-posed: its states feed one another in a cycle. Bound its rows with --kappa .95, or see simtool "
            "inspect %s for what fails",
            folder.path,
        )
    shards = [
        {"shard": track.index, "seconds": track.seconds, "host": track.owner["host"]}
        for track in tracks.read(folder, ROWS)
    ]
    content = {**asdict(times), "shards": shards, "result": result}
    write_bytes(folder.timing, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    folder.remove_work()
    return result


def _compare_with_budget(folder: RunFolder, plan: Plan, nnz: int) -> None:
    """Say why a model has fewer non-zeros than were asked for."""
    asked = folder.read_spec().get("budget", {}).get("total")
    if asked is not None and nnz < asked:
        reason = "no row can use more of them"
        if plan.options.kappa is not None:
            reason = "kappa makes some of them zero"
        elif plan.options.pattern is not None:
            reason = f"rows of the pattern {plan.options.pattern} have no more places"
        _log.warning("%d non-zeros were asked for, the model has %d: %s", asked, nnz, reason)


def finished(folder: RunFolder, plan: Plan) -> dict[str, Any] | None:
    """The stored result if every shard and the model are there and valid."""
    timing = folder.read_timing()
    result = None if timing is None else timing.get("result")
    keys = RESULT_KEYS | elimination.result_keys(plan)
    if not isinstance(result, dict) or set(result) != keys or not folder.model.exists():
        return None
    if not (elimination.is_complete(folder, plan) and budget.is_chosen(folder, plan)):
        return None
    if not all(folder.holds(folder.shard(index)) for index in range(len(plan.shards))):
        return None
    try:
        model = load_layers(folder.model) if plan.layers else load_model(folder.model)
    except SimtoolError as error:
        _log.warning("the model of this finished run is damaged (%s); it is written again", error)
        return None
    if model is None or model.fingerprints.get("spec") != spec_sha256(folder.read_spec()):
        _log.warning("the model in this finished run belongs to another run; it is written again")
        return None
    return {**result, "run": str(folder.path), "model": str(folder.model)}


def _result(folder: RunFolder, times: Times, seconds: float) -> dict[str, Any]:
    """The JSON object of the command, read back from the model as it was written."""
    layers = load_layers(folder.model)
    try:
        implicit = load_model(folder.model)
    except NoImplicitForm:
        implicit = None
    model = implicit if layers is None else layers
    assert model is not None
    table = model.certificates
    assert table is not None
    # Layers of a network that has no implicit form run in the order in which it runs them: no state feeds itself.
    verdict = (True, "acyclic") if implicit is None else _verdict(implicit)
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows": len(table),
        "certified": int(table.certified.sum()),
        "statuses": table.count_by_status(),
        "max_relative_gap": float(table.relative_gap.max(initial=0.0)),
        "nnz": model.nnz if layers is None else layers.nnz,
        "baseline_nnz": model.baseline_nnz,
        "sparsity": model.sparsity if model.baseline_nnz else None,
        "norm_a_inf": None if implicit is None else implicit.norm_a_inf,
        "norm_a_inf_raw": None if implicit is None else implicit.norm_a_inf_raw,
        "well_posed": verdict[0],
        "well_posed_by": verdict[1],
        "seconds": seconds,
        "solve_seconds": times.solve_seconds,
        "peak_memory_bytes": int(max(own_peak, times.worker_peak_memory_bytes)),
        "engine": times.engine,
        "workers": times.workers,
        "run": str(folder.path),
        "model": str(folder.model),
    }


def _verdict(model: ImplicitModel) -> tuple[bool, str | None]:
    found = model.well_posedness()
    return found.well_posed, found.by
