"""--pattern N:M: of every M consecutive features of a row at most N stay, counted entry by entry in finished models."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import simtool
from simtool.budget.search import Search, find
from simtool.cli import main
from simtool.errors import OptionError
from simtool.model import load_layers, load_model
from simtool.networks.tracing import quiet_torch
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states

HERE = Path(__file__).resolve()
SHAPE = (3, 6, 6)
PATTERNS = {"2:4": (2, 4), "4:8": (4, 8), "1:3": (1, 3)}


def small() -> nn.Module:
    """Kernels of 27 and of 18 values, so that the last group of a row is shorter; the second layer has two groups."""
    import torch

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 5),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patterns")


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(place / "data.npz", inputs=rng.uniform(0, 1, (400, *SHAPE)).astype(np.float32))
    return place / "data.npz"


@pytest.fixture(scope="module")
def states(place: Path, data: Path) -> Path:
    with quiet_torch():
        extract(f"{HERE}:small", str(data), output=place / "states.h5", positions=20)
    return place / "states.h5"


def count(row: np.ndarray, of: int) -> np.ndarray:
    """Non-zeros of every ``of`` consecutive entries, the last ones perhaps fewer."""
    padded = np.zeros(-(-row.size // of) * of)
    padded[: row.size] = row
    return np.count_nonzero(padded.reshape(-1, of), axis=1)


def layer_counts(run: Path, states: Path, of: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every row of every layer, the bias left out: its non-zeros in groups, and how many features of each are not always 0."""
    found = []
    layers = load_layers(run)
    assert layers is not None
    with open_states(states) as source:
        lives = [(np.asarray(layer.design[:]) != 0).any(axis=1) for layer in source.layers]
    for layer, matrix, live in zip(layers.layers, layers.matrices, lives, strict=True):
        dense = matrix.toarray()
        for i in range(layer.rows):
            group = i // layer.group_rows
            own = slice(group * layer.fan_in, (group + 1) * layer.fan_in)
            found.append((count(dense[i, own], of), count(live[own], of)))
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_of_convolutions_hold_the_pattern(states: Path, place: Path, pattern: str) -> None:
    keep, of = PATTERNS[pattern]
    run = place / f"alone-{of}"
    result = sparsify(states, run, SparsifyOptions(pattern=pattern), engine="serial")
    assert result["certified"] == result["rows"] == 15
    for found, places in layer_counts(run, states, of):
        # Nothing limits a pattern alone: every group keeps as many as it may.
        assert found.tolist() == np.minimum(places, keep).tolist()
    layers = load_layers(run)
    assert layers is not None
    for layer, matrix in zip(layers.layers, layers.matrices, strict=True):
        if layer.has_bias:  # no group counts it, and all rows keep theirs
            assert (matrix.toarray()[:, -1] != 0).all()
    assert layers.certificates is not None
    assert set(layers.certificates.kind.tolist()) == {2}  # fixed-support


def check_states(run: Path, states: Path, structure: str, keep: int, of: int) -> int:
    """Every row of a model of states holds the pattern in the features of its group; returns how many groups are full."""
    model = load_model(run)
    whole = np.block([[model.A.toarray(), model.B.toarray()], [model.C.toarray(), model.D.toarray()]])
    with open_states(states) as source:
        blocks, parents = source.header.blocks, source.header.output_parents
    places = {block.name: np.arange(block.offset, block.offset + block.size) for block in blocks}
    last = whole.shape[1] - 1  # the bias, which no group counts
    places |= {"input": np.arange(model.A.shape[0], last), "bias": np.arange(0)}
    full = 0
    for i, row in enumerate(whole):
        block = next((b for b in blocks if b.offset <= i < b.offset + b.size), None)
        if structure == "layered":
            fed = parents if block is None else block.parents
            columns = np.unique(np.concatenate([places[name] for name in fed]))
        else:
            columns = np.arange(block.offset + block.size if block and structure == "dag" else 0, last)
        found = count(row[columns], of)
        assert found.max() <= keep
        assert not np.delete(row[:last], columns).any()
        full += int((found == keep).sum())
    return full


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("structure", ["layered", "dag", "free"])
def test_rows_of_states_hold_the_pattern(
    digits: dict[str, Path], tmp_path: Path, structure: str, pattern: str
) -> None:
    options = SparsifyOptions(structure=structure, pattern=pattern)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    assert check_states(tmp_path / "run", digits["states"], structure, *PATTERNS[pattern]) > 100


def test_a_budget_below_the_pattern_is_met_and_one_above_as_far_as_it_goes(
    states: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = sparsify(states, place / "alone-4", SparsifyOptions(pattern="2:4"), engine="serial")["nnz"]
    below = SparsifyOptions(pattern="2:4", target_nnz=alone - 123)
    with caplog.at_level(logging.WARNING):
        assert sparsify(states, place / "below", below, engine="serial")["nnz"] == alone - 123
    assert "non-zeros were asked for" not in caplog.text
    assert all(found.max() <= 2 for found, _ in layer_counts(place / "below", states, 4))
    above = SparsifyOptions(pattern="2:4", target_nnz=alone + 100)
    with caplog.at_level(logging.WARNING):
        assert sparsify(states, place / "above", above, engine="serial")["nnz"] == alone
    assert (
        f"{alone + 100} non-zeros were asked for, the model has {alone}: rows of the pattern 2:4"
        in caplog.text
    )
    assert all(found.max() <= 2 for found, _ in layer_counts(place / "above", states, 4))


def test_a_pattern_through_the_command_line(digits: dict[str, Path], tmp_path: Path) -> None:
    """Every engine gives the same bytes, evaluation and the network with the rows in place take the model like any other."""
    for engine in (["serial"], ["process", "--workers", "2"]):
        asked = [str(digits["states"]), "--pattern", "2:4", "-o", str(tmp_path / engine[0])]
        found = CliRunner().invoke(main, ["sparsify", *asked, "--engine", *engine, "--json"])
        assert found.exit_code == 0, found.output
    assert (tmp_path / "serial" / "model.h5").read_bytes() == (tmp_path / "process" / "model.h5").read_bytes()
    result = json.loads(found.stdout)
    assert 0.4 < result["sparsity"] < 0.6
    network = simtool.demo.NETWORK
    report = simtool.evaluate(
        tmp_path / "serial",
        "digits",
        baseline=simtool.networks.NetworkSpec(network, weights=digits["weights"]),
        output=tmp_path / "report",
    )
    assert report["accuracy"] > 0.9


def test_sequential_fits_hold_the_pattern(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(pattern="2:4", sequential=True)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    assert check_states(tmp_path / "run", digits["states"], "layered", 2, 4) > 100


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(1, 24),
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 3), (4, 8)]),
)
def test_every_size_that_a_path_offers_fits(seed: int, d: int, pattern: tuple[int, int]) -> None:
    keep, of = pattern
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, 40)) + rng.standard_normal((d, 3)) @ rng.standard_normal((3, 40))
    w[rng.random(d) < 0.2] = 0.0
    z = rng.standard_normal((2, 40))
    exempt = np.arange(d) == d - 1
    gram = w @ w.T
    orders, losses = find(Search(pattern=pattern), gram, z @ w.T, np.square(z).sum(axis=1), exempt)
    live = (np.diag(gram) > 0) & ~exempt
    largest = np.minimum(count(live.astype(float), of), keep).sum() + int(np.diag(gram)[-1] > 0)
    for order, curve in zip(orders, losses, strict=True):
        assert order.size == largest
        assert curve.size == order.size + 1
        for size in range(order.size + 1):
            row = np.zeros(d)
            row[order[order.size - size :]] = 1.0
            assert count(row[: d - 1], of).max(initial=0) <= keep


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "2", "2:65", "a:b", ""])
def test_patterns_that_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(OptionError, match=r"--pattern must be N:M with 1 <= N < M <= 64"):
        SparsifyOptions(pattern=pattern)
