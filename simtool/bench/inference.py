"""``simtool bench inference``: sparse models beside the same weights in dense layers, and the bytes that they take."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simtool.bench import cases, machine, table
from simtool.bench import inference_contenders as peers
from simtool.bench import inference_models as models
from simtool.bench.inference_measure import Entry, side_by_side
from simtool.data import open_data
from simtool.errors import InputError, OptionError
from simtool.inference import InferencePlan, Sizes, sizes
from simtool.inference.schedule import schedule
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress

_log = logging.getLogger("simtool")
SIZES = (cases.CASE_F, "784-256-128-10", cases.MLP_1024)
_SAMPLES = 1000  # that accuracy and agreement are judged on, at least


@dataclass(frozen=True)
class InferenceBenchOptions:
    """What ``simtool bench inference`` is asked for.

    Attributes
    ----------
    model : a run folder or model.h5 to run as it is
    network : a network whose weights are taken out at each of ``sparsity``
    sizes : widths of networks with random weights, where neither is given
    sparsity : fractions of each layer's weights that are 0, chosen by ``pattern`` (magnitude or random)
    batch : samples a call
    data : labelled inputs; without, random numbers and no accuracy
    repeats : turns of every contender
    quick : sizes of a test
    """

    model: Path | None = None
    network: NetworkSpec | None = None
    sizes: tuple[str, ...] = ()
    sparsity: tuple[float, ...] = (0.8, 0.9, 0.95)
    pattern: str = "magnitude"
    batch: tuple[int, ...] = (1, 1000)
    data: str | None = None
    seed: int = 0
    repeats: int = 15
    quick: bool = False

    def __post_init__(self) -> None:
        for value in self.sparsity:
            if not 0.0 <= value < 1.0:
                raise OptionError(
                    f"--sparsity must lie in [0, 1), got {value!r}. Pass for instance 0.8,0.9,0.95."
                )
        for count in self.batch:
            if count < 1:
                raise OptionError(f"--batch must be at least 1, got {count}.")
        if not self.batch or not self.sparsity:
            raise OptionError("--batch and --sparsity need at least one number each.")
        if self.pattern not in models.PATTERNS:
            raise OptionError(f"--pattern must be one of {', '.join(models.PATTERNS)}, got {self.pattern!r}.")
        if self.repeats < 1:
            raise OptionError(f"--repeats must be at least 1, got {self.repeats}.")
        if sum(given is not None for given in (self.model, self.network, self.sizes or None)) > 1:
            raise OptionError("give one of --model, --network and --sizes: each says what is run.")

    def subjects(self) -> list[models.Subject]:
        """The models to run."""
        if self.model is not None:
            return [models.of_model(self.model)]
        widths = self.sizes or ((cases.CASE_F_QUICK,) if self.quick else SIZES)
        if self.network is not None:
            widths = ("",)
        return [
            subject
            for width in widths
            for subject in models.of_network(self.network, width, self.sparsity, self.pattern, self.seed)
        ]


@dataclass
class Outcome:
    """One model: what was measured of it."""

    subject: models.Subject
    plan: InferencePlan
    sizes: Sizes
    samples: str
    accuracy: float | None
    entries: list[Entry] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        model, program = self.subject.model, self.plan.program
        assert program is not None
        return {
            "title": self.subject.title,
            "states": model.n,
            "inputs": model.p,
            "outputs": model.q,
            "nnz": model.nnz,
            "sparsity_of_weights": self.subject.sparsity,
            "steps": len(program.schedule.steps),
            "dense_steps_one": sum(program.dense_one),
            "dense_steps_many": sum(program.dense_many),
            "plan_bytes": self.plan.nbytes,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "entries": [entry.to_json() for entry in self.entries],
            "sizes": self.sizes.to_json(),
        }


def bench_inference(options: InferenceBenchOptions, *, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
    """Run the contenders on every model.

    Returns the JSON object of the command: machine, quick, repeats, cases (each with its entries and sizes), slower (where a
    contender beats ours, or disagrees), seconds; and ``text`` and ``markdown``, the tables as printed. Raises OptionError or InputError.
    """
    started = time.perf_counter()
    subjects = options.subjects()
    outcomes = []
    progress.start(len(subjects) * len(options.batch), "tables", "bench inference")
    with machine.one_thread(), peers.one_torch_thread():
        for subject in subjects:
            inputs, labels, origin = _inputs(options, subject)
            expected = subject.model.predict(inputs)
            accuracy = None if labels is None else float((expected.argmax(axis=1) == labels).mean())
            outcome = Outcome(subject, InferencePlan(subject.model), _sizes(subject), origin, accuracy)
            entrants = peers.contenders(subject.model)
            for batch in options.batch:
                progress.note(f"{subject.title}, batch {batch}")
                repeats = 2 if options.quick else options.repeats
                outcome.entries += side_by_side(entrants, expected, inputs, labels, batch, repeats)
                progress.advance()
            outcomes.append(outcome)
        described = machine.describe()
    progress.finish()
    described["versions"] |= {name: peers.package_version(name) for name in ("torch", "onnxruntime")}
    content = {
        "machine": described,
        "quick": options.quick,
        "repeats": 2 if options.quick else options.repeats,
        "cases": [outcome.to_json() for outcome in outcomes],
        "slower": slower(outcomes),
        "seconds": time.perf_counter() - started,
    }
    place = f"CPU time of one thread, medians of {content['repeats']} turns; {machine.one_line(described)}"
    if options.quick:
        place = f"--quick: sizes of a test; {place}"
    return {
        **content,
        "text": _page(outcomes, place, table.aligned),
        "markdown": _page(outcomes, place, table.as_markdown),
    }


def _inputs(
    options: InferenceBenchOptions, subject: models.Subject
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Inputs (m, size) float32, labels (m,) or None, and what they are in words."""
    model, count = subject.model, max(_SAMPLES, *options.batch)
    if options.quick:
        count = max(options.batch)
    size = model.p - int(model.has_bias)
    if options.data is None:
        random = np.random.default_rng(options.seed).random((count, size), dtype=np.float32)
        return random, None, f"{count} random inputs in [0, 1)"
    source = open_data(options.data, "test")
    if int(np.prod(source.sample_shape)) != size:
        raise InputError(
            f"the samples of {source.name} have shape {source.sample_shape}, the model takes {size} numbers. Pass data of "
            "that size, or leave out --data."
        )
    if source.count < max(options.batch):
        raise InputError(
            f"{source.name} has {source.count} samples, fewer than --batch {max(options.batch)}. Pass a smaller batch."
        )
    chosen = source.select(min(source.count, max(10_000, count)), options.seed)
    inputs = np.concatenate(list(source.batches(chosen, 1024))).reshape(len(chosen), size)
    labels = source.labels() if source.has_labels else None
    classes = None
    if labels is not None and np.asarray(labels).ndim == 1 and np.asarray(labels).dtype.kind in "iu":
        classes = np.asarray(labels)[chosen]
    return inputs.astype(np.float32), classes, f"{len(chosen)} samples of {source.name}"


def _sizes(subject: models.Subject) -> Sizes:
    """Of every layer's weights with the shape that a dense layer has, biases not counted."""
    made = schedule(subject.model)
    return sizes(made.matrix[s.first : s.last, s.low : s.high] for s in made.steps)


def slower(outcomes: Sequence[Outcome]) -> list[str]:
    """Where ours loses, in words: a contender that is faster, or one (ours too) whose outputs are not the model's."""
    found = []
    for outcome in outcomes:
        for entry in outcome.entries:
            where = f"{outcome.subject.title}, batch {entry.batch}: {peers.LABELS[entry.name]}"
            if entry.agrees is False:
                found.append(f"{where} differs from the model by {entry.error:.1e}")
            elif entry.ratio is not None and entry.ratio < 1.0:
                found.append(f"{where} is {1.0 / entry.ratio:.2f} times as fast as ours")
    return found


# --- tables ------------------------------------------------------------------------------------------------------------

_SPEED = ("model", "batch", "contender", "a call", "x ours", "error", "accuracy")
_BYTES = (
    "model",
    "entries",
    "non-zeros",
    "dense",
    "CSR",
    "ours",
    "ours float16",
    "bits an index",
    "SIM",
    "bound",
)


def _speed_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [_SPEED]
    above: tuple[str, int] | None = None
    for outcome in outcomes:
        for entry in outcome.entries:
            here = (outcome.subject.title, entry.batch)
            title, batch = (here[0], str(here[1])) if here != above else ("", "")
            above = here
            accuracy = "-" if entry.accuracy is None else f"{entry.accuracy:.2%}"
            if entry.seconds is None or entry.ratio is None:
                cells = (entry.reason, "-", "-", "-")
            else:
                cells = (
                    table.duration(entry.seconds),
                    table.number(entry.ratio),
                    f"{entry.error:.0e}",
                    accuracy,
                )
            rows.append((title, batch, peers.LABELS[entry.name], *cells))
    return rows


def _byte_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [_BYTES]
    for outcome in outcomes:
        size = outcome.sizes
        each = max(size.nnz, 1)
        rows.append(
            (
                outcome.subject.title,
                str(size.entries),
                str(size.nnz),
                _bytes(size.dense_bytes),
                _bytes(size.csr_bytes),
                _bytes(size.index_bytes + size.float32_bytes),
                _bytes(size.index_bytes + size.float16_bytes),
                f"{8 * size.index_bytes / each:.2f}",
                f"{size.sim_index_bits / each:.2f}",
                f"{size.entropy_bits / each:.2f}",
            )
        )
    return rows


def _bytes(count: int) -> str:
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def _page(outcomes: Sequence[Outcome], place: str, draw: Any) -> str:
    lost = slower(outcomes)
    losses = "\n".join(f"- {line}" for line in lost) if lost else "- nowhere"
    about = (
        "x ours: its time over ours, turn by turn (above 1: ours is faster). error: against ImplicitModel.predict, over "
        "max(1, |y|)."
    )
    origins = "\n".join(f"- {o.subject.title}: on {o.samples}" for o in outcomes)
    bytes_about = (
        "Weights of all layers, biases not counted. CSR: 4-byte indices and float32. ours: gaps and values, shuffled and "
        "packed by zlib. SIM: the paper's count (appendix B). bound: log2 C(entries, non-zeros) a layer."
    )
    return "\n\n".join(
        [
            draw(_speed_rows(outcomes)),
            about,
            f"Where ours is not the fastest:\n{losses}",
            origins,
            draw(_byte_rows(outcomes)),
            bytes_about,
            place,
        ]
    )
