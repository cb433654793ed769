"""The stage: options to the numbers of a report. :mod:`simtool.report` writes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from simtool.data import open_data
from simtool.errors import OptionError
from simtool.model import KINDS, ImplicitModel, model_path, rho, sensitivity_norm
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages.evaluate.attacks import Attack, make_attack
from simtool.stages.evaluate.baseline import Baseline
from simtool.stages.evaluate.measure import Measurement
from simtool.stages.evaluate.metrics import CLASSIFICATION, checked_labels, decide_task
from simtool.stages.evaluate.sparse_network import Model, SparseNetwork, load_runnable

_log = logging.getLogger("simtool")
_BATCH_NUMBERS = 2**21


def measure_model(
    model: str | Path | ImplicitModel,
    data: str,
    *,
    split: str = "test",
    baseline: NetworkSpec | str | None = None,
    attack: str | None = None,
    epsilons: Sequence[float | str] = (0.004, 0.008),
    fraction: float | None = None,
    gradient: str = "model",
    samples: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> tuple[dict[str, Any], Model]:
    """Measure ``model`` on held-out ``data``.

    Parameters
    ----------
    model : a RUN folder, a model.h5 or a model
    data, split, samples, seed : as for extraction; the data are transformed exactly as they were there
    baseline : the network that the model replaces; without it the baseline's numbers are None
    attack : ``fgsm`` (epsilon times the sign of the loss gradient, at the label, or the prediction where there is
        none) or ``inversion`` (epsilon times sign(1/2 - u))
    epsilons : perturbation sizes; their text is the key in ``robust_accuracy``
    fraction : share of the inputs that is perturbed, one seeded choice for the run (fgsm .5, inversion 1)
    gradient : whose gradient fgsm follows, the ``model``'s own through the fixed point, or the ``baseline``'s

    Returns the numbers of the report (the JSON keys of evaluate, and ``attack_mask``) and the model. ``warnings`` lists
    what makes numbers mean something else than their names say, ``notes`` what is worth knowing. Raises InputError for
    files, networks or data that do not fit, OptionError for options, ConvergenceError where the model has no fixed point.
    """
    started = time.perf_counter()
    if seed < 0:
        raise OptionError(f"--seed must not be negative, got {seed}. Pass 0 or any larger integer.")
    chosen = make_attack(attack, epsilons, fraction, gradient, seed) if attack is not None else None
    spec = NetworkSpec(baseline) if isinstance(baseline, str) else baseline
    loaded = model if isinstance(model, ImplicitModel) else load_runnable(model, spec)
    if isinstance(loaded, SparseNetwork) and attack == "fgsm":
        raise OptionError(
            "--attack fgsm follows a gradient through an implicit form, which this model has not. Use --attack inversion, or leave "
            "it out."
        )
    source = open_data(data, split)
    indices = source.select(samples, seed)
    labels = np.asarray(source.labels()) if source.has_labels else None
    task = decide_task(labels, loaded.q, loaded.output_map)
    if labels is not None:
        labels = labels[indices]
    targets = checked_labels(labels, task, loaded.q)
    reference = Baseline(spec, loaded) if spec is not None else None
    size = int(np.clip(_BATCH_NUMBERS // (loaded.n + loaded.p), 16, 1024))

    clip: tuple[float, float] | None = None
    if chosen is not None:
        low, high = _range(source.batches(indices, size), len(indices), progress)
        clip = (0.0, 1.0) if low >= 0.0 and high <= 1.0 else None
    measurement = Measurement(loaded, reference, task, targets, chosen, clip)
    progress.start(len(indices), "samples", "evaluating")
    measurement.run(source.batches(indices, size), progress)
    progress.finish()
    _compare_ranges(loaded, measurement.input_range)

    result = _result(measurement, model, loaded)
    result["attack"] = None if chosen is None else _describe(chosen, measurement.mask, clip)
    result["data"] = {"source": data, "split": source.split, "name": source.name, "sha256": source.sha256()}
    result["baseline"] = None
    if reference is not None:
        counted = {"nnz": reference.nnz, "bytes": reference.bytes}
        result["baseline"] = reference.network.description | counted
    result["seed"] = seed
    result["seconds"] = time.perf_counter() - started
    result["warnings"], result["notes"] = _remarks(measurement)
    result["attack_mask"] = measurement.mask.tolist() if chosen is not None else None
    return result, loaded


def _remarks(measured: Measurement) -> tuple[list[str], list[str]]:
    """(warnings, notes) for the report; also logged."""
    warnings = measured.idle_attacks()
    notes: list[str] = []
    if measured.baseline is not None:
        states = measured.state_error.value
        alarms, notes = measured.baseline.identity(measured.output_error.value if states is None else states)
        warnings = alarms + warnings
    for text in warnings:
        _log.warning("%s", text)
    for text in notes:
        _log.info("%s", text)
    return warnings, notes


def _range(batches: Any, count: int, progress: Progress) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    progress.start(count, "samples", "reading the range of the data")
    for batch in batches:
        low, high = min(low, float(batch.min())), max(high, float(batch.max()))
        progress.advance(len(batch))
    progress.finish()
    return low, high


def _compare_ranges(model: Model, found: tuple[float, float]) -> None:
    """Warn where these data were hardly transformed as those the model was made from."""
    known = model.header_extra.get("input_range")
    if not (isinstance(known, list | tuple) and len(known) == 2):
        return
    low, high = float(known[0]), float(known[1])
    margin = 0.5 * (high - low)
    if found[0] < low - margin or found[1] > high + margin:
        _log.warning(
            "these inputs lie in [%g, %g], those the model was made from in [%g, %g]: were they scaled alike?",
            *found,
            low,
            high,
        )


def _describe(attack: Attack, mask: np.ndarray, clip: tuple[float, float] | None) -> dict[str, Any]:
    return {
        "method": attack.method,
        "epsilons": [key for key, _ in attack.epsilons],
        "fraction": attack.fraction,
        "inputs_perturbed": len(mask),
        "gradient": attack.gradient if attack.method == "fgsm" else None,
        "seed": attack.seed,
        "clipped_to": None if clip is None else list(clip),
    }


def _model_bytes(origin: str | Path | ImplicitModel, model: Model) -> int:
    if not isinstance(origin, ImplicitModel):
        return model_path(origin).stat().st_size
    with TemporaryDirectory() as folder:
        return origin.save(Path(folder) / "model.h5").stat().st_size


def _result(measured: Measurement, origin: str | Path | ImplicitModel, model: Model) -> dict[str, Any]:
    if measured.samples == 0:
        raise OptionError("no samples were chosen. Pass --samples of at least 1, or data that hold some.")
    score, reference = measured.score, measured.baseline_score
    compared = measured.baseline is not None
    drop = None
    if score.accuracy is not None and reference.accuracy is not None:
        drop = reference.accuracy - score.accuracy
    verdict = model.well_posedness()
    sparsity = model.sparsity if model.baseline_nnz else None
    table = model.proofs
    classified = measured.task == CLASSIFICATION
    other = measured.baseline is not None and measured.baseline.other_counts
    made_from = "the network the model was made from" if other else "the baseline"
    result: dict[str, Any] = {
        "task": measured.task,
        "samples": measured.samples,
        "input_range": list(measured.input_range),
        "accuracy": score.accuracy,
        "f1": score.f1,
        "mse": score.mse,
        "baseline_accuracy": reference.accuracy,
        "baseline_f1": reference.f1,
        "baseline_mse": reference.mse,
        "accuracy_drop": drop,
        "agreement": measured.agreeing / measured.samples if compared and classified else None,
        "nnz": model.parameters,
        "baseline_nnz": model.baseline_nnz,
        "sparsity": sparsity,
        "denominator": f"{model.baseline_nnz} non-zero explicit parameters of {made_from}, biases counted",
        "model_bytes": _model_bytes(origin, model),
        "baseline_bytes": model.baseline_bytes,
        "iterations_mean": measured.iterations / measured.samples,
        "iterations_max": measured.iterations_max,
        "converged": measured.converged / measured.samples,
        "state_error": measured.state_error.value,
        "output_error": measured.output_error.value,
        "state_error_by_block": {name: error.value for name, error in measured.block_errors.items()},
        "robust_accuracy": {key: item.accuracy for key, item in measured.robust.items()},
        "baseline_robust_accuracy": {
            key: item.accuracy if compared else None for key, item in measured.baseline_robust.items()
        },
        "robust_mse": {key: item.mse for key, item in measured.robust.items()},
        "baseline_robust_mse": {key: item.mse for key, item in measured.baseline_robust.items()},
        "robust_agreement": {
            key: count / measured.samples if classified else None for key, count in measured.unchanged.items()
        },
        "rho": rho(model) if isinstance(model, ImplicitModel) else None,
        "s_norm_inf": sensitivity_norm(model) if isinstance(model, ImplicitModel) else None,
        "norm_a_inf": model.norm_a_inf,
        "norm_a_inf_raw": model.norm_a_inf_raw,
        "well_posed": verdict.well_posed,
        "well_posed_by": verdict.by,
        "structure": model.structure,
        "form": "implicit" if isinstance(model, ImplicitModel) else "layers",
        "fixed_support": 0 if table is None else int((table.kind == KINDS.index("fixed-support")).sum()),
        "rows": model.n + model.q if table is None else len(table),
        "certified": None if table is None else int(table.certified.sum()),
        "max_relative_gap": None if table is None else table.max_relative_gap,
    }
    return result
