"""``simtool bench quality``: our sparse models beside those of other post-training methods, at the same size and samples."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simtool.bench import cases, machine
from simtool.bench import quality_report as report
from simtool.bench.arrays import DATA
from simtool.bench.pruners import PEERS
from simtool.bench.quality_measure import RECIPES, Score, Subject, Test, measure
from simtool.bench.quality_quoted import QUOTED
from simtool.bench.quality_summary import lines, targets
from simtool.bench.quality_train import train
from simtool.bench.report_folder import ReportFolder
from simtool.data import open_data
from simtool.errors import InputError, OptionError
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers.warm import warm
from simtool.stages.extract import extract

_log = logging.getLogger("simtool")
SAMPLES, SPARSITY, SEEDS = (6000, 1000), (0.8, 0.9, 0.95, 0.98), 3
_EPOCHS, _QUICK_EPOCHS = 15, 40
_QUICK = {"samples": (400,), "sparsity": (0.8,), "seeds": 1, "data": "digits"}


@dataclass(frozen=True)
class QualityBenchOptions:
    """What ``simtool bench quality`` is asked for; None means the default, and a smaller one with ``quick``.

    Attributes
    ----------
    networks : to be made sparse, taken in turn by the seeds; empty for case F's sizes trained from every seed
    data : labelled; networks are trained and samples taken on its split train, accuracy is measured on its split test
    samples : how many calibration samples; a table for each
    sparsity : of floor((1 - S) * non-zeros of the network), biases counted
    seeds : networks and draws of the samples
    quick : sizes of a test
    """

    networks: tuple[NetworkSpec, ...] = ()
    data: str | None = None
    samples: tuple[int, ...] | None = None
    sparsity: tuple[float, ...] | None = None
    seeds: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.samples is not None:
            if not self.samples:
                raise OptionError("--samples needs at least one number, for instance 6000.")
            for count in self.samples:
                if count < 10:
                    raise OptionError(
                        f"--samples must be at least 10, got {count}: a fifth of them is kept for choices."
                    )
        if self.sparsity is not None:
            if not self.sparsity:
                raise OptionError("--sparsity needs at least one number, for instance 0.9.")
            for value in self.sparsity:
                if not 0.0 <= value < 1.0:
                    raise OptionError(
                        f"--sparsity must lie in [0, 1), got {value!r}. Pass for instance 0.8,0.9,0.95."
                    )
        if self.seeds is not None and self.seeds < 1:
            raise OptionError(f"--seeds must be at least 1, got {self.seeds}.")

    def of(self, name: str) -> Any:
        """The option ``name``, or its default."""
        given = getattr(self, name)
        defaults = {"samples": SAMPLES, "sparsity": SPARSITY, "seeds": SEEDS, "data": DATA}
        return given if given is not None else (_QUICK if self.quick else defaults)[name]


def bench_quality(
    options: QualityBenchOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Run every method, and write the report to the folder ``output`` if one is given.

    Returns the JSON object of the command: machine, quick, data, network, samples, sparsity, seeds, dense, methods (mean, spread
    and values of each), scores (every model), targets, quoted, seconds, report; and ``text`` and ``markdown``, the tables as printed. Raises
    OptionError, InputError or OutputError.
    """
    started = time.perf_counter()
    if output is not None:
        _folder(output).check(overwrite)
    data, sparsity = str(options.of("data")), tuple(sorted(set(options.of("sparsity"))))
    samples, seeds = (
        tuple(dict.fromkeys(options.of("samples"))),
        max(options.of("seeds"), len(options.networks)),
    )
    test = _test(data)
    _enough(data, max(samples))
    warm("native")
    scores: list[Score] = []
    dense: dict[int, list[float]] = {count: [] for count in samples}
    sizes: list[str] = []
    models = len(sparsity) * (len(RECIPES) + sum(len(peer.budgets) for peer in PEERS))
    progress.start(seeds * len(samples) * models, "models", "bench quality")

    def ended(name: str) -> None:
        progress.note(name)
        progress.advance()

    described = machine.describe()
    with tempfile.TemporaryDirectory(prefix="simtool-bench-") as scratch, machine.one_thread():
        for subject in _subjects(options, data, samples, seeds, test, Path(scratch)):
            sizes.append(subject.network.sizes)
            dense[subject.calibration.m].append(subject.dense_accuracy)
            scores += measure(subject, sparsity, ended)
    progress.finish()
    case = Case(options, data, sizes, dense, time.perf_counter() - started, described)
    content, text, page, picture = reported(case, scores)
    if output is not None:
        _folder(output).write(
            content, page, {f"{report.PICTURE}.{kind}": data for kind, data in picture.items()}
        )
    return {**content, "report": None if output is None else str(output), "text": text, "markdown": page}


@dataclass(frozen=True)
class Case:
    """What was run: the networks' ``sizes``, the accuracy of each ``dense`` one by the number of samples, and on which machine."""

    options: QualityBenchOptions
    data: str
    sizes: Sequence[str]
    dense: Mapping[int, Sequence[float]]
    seconds: float
    machine: dict[str, Any]

    @property
    def network(self) -> str:
        return self.sizes[0] if len(set(self.sizes)) == 1 else "networks of several sizes"

    @property
    def seeds(self) -> int:
        return max(len(values) for values in self.dense.values())


def reported(case: Case, scores: Sequence[Score]) -> tuple[dict[str, Any], str, str, dict[str, bytes]]:
    """The JSON object, the tables for a terminal and as Markdown, and the picture."""
    found = lines(scores)
    goals = targets(found, case.network, case.data, case.seeds)
    content = {
        "machine": case.machine,
        "quick": case.options.quick,
        "data": case.data,
        "network": case.network,
        "samples": list(case.dense),
        "sparsity": sorted({score.sparsity for score in scores}),
        "seeds": case.seeds,
        "dense": {str(count): list(values) for count, values in case.dense.items()},
        "methods": [line.to_json() for line in found],
        "scores": [score.to_json() for score in scores],
        "targets": [goal.to_json() for goal in goals],
        "quoted": [one.to_json() for one in QUOTED],
        "seconds": case.seconds,
    }
    origin = _origin(case.options, case.network, case.data, case.seeds)
    place = machine.one_line(case.machine)
    if case.options.quick:
        place = f"--quick: sizes of a test; {place}"
    text, page = (report.tables(found, case.dense, goals, place, origin, kind) for kind in (False, True))
    return content, text, page, report.draw_picture(found, case.dense)


def _subjects(
    options: QualityBenchOptions, data: str, samples: tuple[int, ...], seeds: int, test: Test, scratch: Path
) -> Iterator[Subject]:
    """A network for each seed, with each number of samples."""
    sizes, epochs = (cases.CASE_F_QUICK, _QUICK_EPOCHS) if options.quick else (cases.CASE_F, _EPOCHS)
    for seed in range(seeds):
        if options.networks:
            network = options.networks[seed % len(options.networks)]
        else:
            _log.info("training %s on %s from seed %d", sizes, data, seed)
            network = train(sizes, data, seed, epochs, scratch)
        for count in samples:
            path = scratch / f"states-{seed}-{count}.h5"
            extract(network, data, samples=count, seed=seed, output=path)
            yield Subject.of(path, scratch, seed, test)
            path.unlink()


def _test(data: str) -> Test:
    """The test split of ``data``. Raises InputError where it has no classes."""
    source = open_data(data, "test")
    labels = source.labels()
    if labels is None or np.asarray(labels).ndim != 1 or np.asarray(labels).dtype.kind not in "iu":
        raise InputError(
            f"{source.name} has no classes, and the comparison is one of accuracies. Pass data with a class a sample."
        )
    inputs = np.concatenate(list(source.batches(source.select(None, 0), 1024)))
    return Test(inputs.reshape(len(inputs), -1).astype(np.float64), np.asarray(labels))


def _enough(data: str, samples: int) -> None:
    available = open_data(data, "train").count
    if samples > available:
        raise OptionError(f"--samples {samples} are more than the {available} of {data}. Pass fewer.")


def _origin(options: QualityBenchOptions, name: str, data: str, seeds: int) -> str:
    count = "1 seed" if seeds == 1 else f"{seeds} seeds"
    if options.networks:
        names = ", ".join(Path(network.network).name for network in options.networks)
        return f"{name} ({names}) on {data}; {count}, each with samples of its own."
    return f"{name}, trained on {data} by Adam; {count}, each with a network and samples of its own."


def _folder(output: Path) -> ReportFolder:
    return ReportFolder(output, "quality.json", "quality.md")
