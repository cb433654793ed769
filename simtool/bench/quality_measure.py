"""One network and one draw of samples: our models and everybody else's at every sparsity, and what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from simtool.bench.pruners import PEERS
from simtool.bench.pruners.peers import Peer
from simtool.bench.quality_network import Calibration, DenseNetwork, accuracy, agreement, read
from simtool.bench.quality_prune import Work, budgets, prune, tune
from simtool.errors import ConvergenceError
from simtool.model import load_model
from simtool.stages.sparsify.budget import kept_of
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.tune import sparsify


@dataclass(frozen=True)
class Recipe:
    """One of ours: ``options`` beside --target-sparsity, which chooses the rest. The first of RECIPES gives the peers our layer budgets."""

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


DEFAULT = Recipe("simtool", "simtool")
CONVEX = Recipe("simtool-convex", "simtool, convex path only", {"paths": "reweighted"})
RECIPES = (DEFAULT, CONVEX)


@dataclass(frozen=True)
class Score:
    """A model by ``method`` (a recipe's or peer's name) with ``budget`` (of pruners.BUDGETS; empty for ours).

    Attributes
    ----------
    tuned : the peer's settings were chosen on the validation samples; False: the paper's own
    samples, sparsity, seed : of the case
    accuracy, agreement : on the test split, with its labels and with the dense network
    nnz, layers : non-zeros in all, and of each layer in the order they run
    settings, validation : of a tuned peer, or the recipe of ours, and the agreement on the samples they were chosen by
    seconds : CPU seconds of one thread, the choice of the settings included
    """

    method: str
    budget: str
    tuned: bool
    samples: int
    sparsity: float
    seed: int
    accuracy: float
    agreement: float
    nnz: int
    layers: tuple[int, ...]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    validation: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Test:
    """The test split: ``inputs`` (k, size), ``labels`` (k,)."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass
class Subject:
    """A network, its samples, and where its runs may lie."""

    states: Path
    folder: Path
    seed: int
    test: Test
    network: DenseNetwork
    calibration: Calibration
    work: Work = field(default_factory=Work)

    @classmethod
    def of(cls, states: Path, folder: Path, seed: int, test: Test) -> Subject:
        network, calibration = read(states)
        return cls(states, folder, seed, test, network, calibration)

    @property
    def dense_accuracy(self) -> float:
        return accuracy(self.network.outputs(self.test.inputs), self.test.labels)


def measure(
    subject: Subject,
    sparsities: Sequence[float],
    done: Callable[[str], None],
    recipes: Sequence[Recipe] = RECIPES,
) -> Iterator[Score]:
    """Every method at each of ``sparsities``; ``done`` is called with a name after each."""
    dense = subject.network.outputs(subject.test.inputs)
    for sparsity in sparsities:
        total = kept_of(sparsity, subject.network.nnz)
        ours: DenseNetwork | None = None
        for recipe in recipes:
            score, made = _ours(subject, recipe, sparsity, dense)
            ours = ours or made
            yield score
            done(f"{recipe.label}, {sparsity:.0%}")
        assert ours is not None
        for peer in PEERS:
            for kind in peer.budgets:
                yield from _peer(
                    subject, peer, kind, sparsity, budgets(subject.network, total, kind, ours), dense
                )
                done(f"{peer.label}, {sparsity:.0%}")


def _ours(subject: Subject, recipe: Recipe, sparsity: float, dense: np.ndarray) -> tuple[Score, DenseNetwork]:
    run = subject.folder / f"run-{recipe.name}-{subject.calibration.m}-{subject.seed}-{sparsity!r}"
    options = SparsifyOptions(target_sparsity=sparsity, **recipe.options)
    with _timed() as seconds:
        result = sparsify(subject.states, run, options, engine="serial")
    model = load_model(run)
    made = subject.network.of_model(model)
    size = subject.network.nnz
    outputs = np.asarray(model.predict(subject.test.inputs))
    if result["baseline_nnz"] != size or made.nnz != result["nnz"]:
        raise ConvergenceError(
            f"the run has {result['nnz']} of {result['baseline_nnz']} non-zeros, but its layers have {made.nnz} of {size}: they would not be "
            "compared at the same size. Please report this network."
        )
    chosen = result.get("recipe")  # none where there was no choice
    settings = {} if chosen is None else {"recipe": chosen}
    validation = None if chosen is None else result["validation"][chosen]
    key = (recipe.name, "", True, sparsity)
    return _score(subject, made, outputs, dense, key, seconds[0], settings, validation), made


def _peer(
    subject: Subject, peer: Peer, kind: str, sparsity: float, keep: Sequence[int], dense: np.ndarray
) -> Iterator[Score]:
    """With the paper's settings, and with those that the validation samples choose, where there is a choice."""
    network, calibration, work = subject.network, subject.calibration, subject.work
    function, whole = work.function(peer), work.whole(calibration)
    with _timed() as plain:
        made = prune(network, whole, keep, function, peer.defaults)
    outputs = made.outputs(subject.test.inputs)
    settings, validation, seconds = peer.defaults, None, plain[0]
    if peer.tuned:
        yield _score(subject, made, outputs, dense, (peer.name, kind, False, sparsity), plain[0], settings)
        with _timed() as choice:
            chosen = tune(network, calibration, keep, peer, work)
            made = prune(network, whole, keep, function, chosen.settings)
        outputs = made.outputs(subject.test.inputs)
        settings, validation, seconds = chosen.settings, chosen.agreement, choice[0]
    yield _score(
        subject, made, outputs, dense, (peer.name, kind, True, sparsity), seconds, settings, validation
    )


def _score(
    subject: Subject,
    made: DenseNetwork,
    outputs: np.ndarray,
    dense: np.ndarray,
    key: tuple[str, str, bool, float],
    seconds: float,
    settings: dict[str, Any] | None = None,
    validation: float | None = None,
) -> Score:
    method, budget, tuned, sparsity = key
    return Score(
        method=method,
        budget=budget,
        tuned=tuned,
        samples=subject.calibration.m,
        sparsity=sparsity,
        seed=subject.seed,
        accuracy=accuracy(outputs, subject.test.labels),
        agreement=agreement(outputs, dense),
        nnz=made.nnz,
        layers=tuple(layer.nnz for layer in made.layers),
        seconds=seconds,
        settings=settings or {},
        validation=validation,
    )


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that holds the CPU seconds of the block when it is left."""
    found = [0.0]
    started = process_time()
    yield found
    found[0] = process_time() - started
