"""One point of a sweep: its run, and what the finished run is worth on data, or on the states' own samples."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simtool.data import open_data
from simtool.errors import ConvergenceError, InputError, NoImplicitForm, OptionError
from simtool.networks import NetworkSpec, load_network
from simtool.stages.evaluate import load_runnable, make_attack, measure_model
from simtool.stages.evaluate.metrics import CLASSIFICATION, Relative, checked_labels, classes_of, decide_task
from simtool.states import States

_log = logging.getLogger("simtool")
_BATCH = 1024
# Of a run's result and of a measurement, what a line of the sweep holds.
_OF_RUN = (
    *("rows", "certified", "max_relative_gap", "nnz", "baseline_nnz", "sparsity"),
    *("norm_a_inf", "norm_a_inf_raw", "well_posed", "well_posed_by"),
)
_OF_MEASURE = (
    *("task", "accuracy", "baseline_accuracy", "accuracy_drop", "agreement", "f1", "mse", "baseline_mse"),
    *("output_error", "robust_accuracy", "baseline_robust_accuracy", "warnings"),
)


@dataclass(frozen=True)
class Measure:
    """What points are measured on: the options of :func:`simtool.stages.evaluate.measure_model`.

    Without ``data`` a model is compared with the network's outputs on all samples of the states file.
    """

    data: str | None = None
    split: str = "test"
    samples: int | None = None
    seed: int = 0
    baseline: NetworkSpec | None = None
    attack: str | None = None
    epsilons: tuple[str, ...] = ("0.004", "0.008")
    fraction: float | None = None
    gradient: str = "model"

    def __post_init__(self) -> None:
        if self.data is not None:
            return
        if self.attack is not None:
            raise OptionError(
                f"--attack {self.attack} is measured on data, which are missing. Pass --data DATA, or leave it out."
            )
        if self.samples is not None:
            raise OptionError(
                f"--eval-samples {self.samples} counts samples of data, which are missing. Pass --data DATA."
            )

    def to_json(self) -> dict[str, Any]:
        """What the folder of a sweep remembers of it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "baseline"}
        baseline = None
        if self.baseline is not None:
            baseline = {key: _plain(value) for key, value in asdict(self.baseline).items()}
        return {**plain, "epsilons": list(self.epsilons), "baseline": baseline}


def check(wanted: Measure, source: States) -> None:
    """Raise what measuring would, before any point is solved: for data, a network or an attack that cannot be."""
    if wanted.attack is not None:
        make_attack(wanted.attack, wanted.epsilons, wanted.fraction, wanted.gradient, wanted.seed)
        if wanted.attack == "fgsm" and wanted.gradient == "baseline" and wanted.baseline is None:
            raise OptionError(
                "the attack follows the baseline's gradient, and the baseline is missing. Pass --baseline NETWORK, or --gradient model."
            )
    inputs = source.p - int(source.has_bias)
    if wanted.data is not None:
        data = open_data(wanted.data, wanted.split)
        if math.prod(data.sample_shape) != inputs:
            raise InputError(
                f"a sample of {wanted.data} has shape {data.sample_shape}, the states' network takes {inputs} numbers. Pass data of that size."
            )
        chosen = data.select(wanted.samples, wanted.seed)
        labels = data.labels()
        task = decide_task(labels, source.q, source.header.output_map)
        checked_labels(labels if labels is None else labels[chosen], task, source.q)
    if wanted.baseline is not None:
        network = load_network(wanted.baseline, source.input_shape)
        if math.prod(network.input_shape) != inputs or network.output_size != source.q:
            raise InputError(
                f"the baseline {wanted.baseline.network} takes {math.prod(network.input_shape)} numbers and gives {network.output_size}; the "
                f"states' network takes {inputs} and gives {source.q}. Pass the network that the states came from."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def line_of(run: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """What the sweep says of a point: the numbers of its ``run`` and those ``measured``, times last."""
    return {
        **{key: run[key] for key in _OF_RUN},
        "recipe": run.get("recipe"),
        **{key: measured.get(key) for key in _OF_MEASURE},
        "measured_on": measured["measured_on"],
        "error": measured.get("error"),
        "seconds": run["seconds"],
        "solve_seconds": run["solve_seconds"],
    }


def measure(model: Path, source: States, wanted: Measure) -> dict[str, Any]:
    """What the model of a finished run is worth. A model that has no fixed point on a sample has no numbers, and ``error`` says so."""
    try:
        if wanted.data is None:
            return _on_states(model, source, wanted.baseline)
        options = {
            f.name: getattr(wanted, f.name) for f in fields(wanted) if f.name not in ("data", "baseline")
        }
        result, _ = measure_model(model, wanted.data, baseline=wanted.baseline, **options)
        return {**result, "measured_on": f"{wanted.data}, split {result['data']['split']}"}
    except ConvergenceError as error:
        _log.warning("%s: %s", model, error)
        return {"measured_on": wanted.data or "states", "error": str(error)}


def _on_states(model: Path, source: States, network: NetworkSpec | None) -> dict[str, Any]:
    """How far the model is from the network, on all samples of the states file: the same class, and relative error."""
    try:
        loaded = load_runnable(model, network)
    except NoImplicitForm:
        _log.warning(
            "%s runs in its network only: without --baseline NETWORK it is not compared with its outputs",
            model,
        )
        return {"measured_on": "nothing"}
    classified = decide_task(None, loaded.q, loaded.output_map) == CLASSIFICATION
    error, agreeing = Relative(), 0
    inputs = source.p - int(source.has_bias)
    for start in range(0, source.m, _BATCH):
        here = slice(start, min(start + _BATCH, source.m))
        batch = np.asarray(source.U[:inputs, here], dtype=np.float64).T
        found = loaded.forward(loaded.states_inputs(batch)).Y
        wanted = np.asarray(source.Y[:, here], dtype=np.float64)
        error.add(found, wanted)
        agreeing += int((classes_of(found) == classes_of(wanted)).sum())
    agreement = agreeing / source.m if classified else None
    return {"measured_on": "states", "agreement": agreement, "output_error": error.value}
