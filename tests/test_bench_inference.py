"""The comparison of inference: pruning, the layers that the peers run, the tables, and the command with its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model
from scipy import sparse

from simtool import activations
from simtool.bench import inference_contenders as peers
from simtool.bench import inference_models as models
from simtool.bench.inference import InferenceBenchOptions, Outcome, slower
from simtool.bench.inference_measure import Entry, side_by_side
from simtool.blocks import Block
from simtool.cli import main
from simtool.errors import InputError, OptionError
from simtool.inference import InferencePlan, Sizes
from simtool.model import ImplicitModel

# --- models ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(models.PATTERNS), st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99]), st.integers(0, 5))
def test_pruning_takes_its_share_of_every_layer_and_no_bias(pattern: str, sparsity: float, seed: int) -> None:
    model = layered_model(inputs=12, hidden=(9, 8), q=5)
    found = models.pruned(model, sparsity, pattern, seed)
    assert (found.B[:, [-1]] != model.B[:, [-1]]).nnz == 0
    assert (found.D != model.D).nnz == 0
    for name, rows, weights in (("B", slice(8, 17), 108), ("A", slice(0, 8), 72), ("C", slice(0, 5), 40)):
        before, after = getattr(model, name)[rows].toarray(), getattr(found, name)[rows].toarray()
        if name == "B":
            before, after = before[:, :-1], after[:, :-1]
        assert np.count_nonzero(after) == round((1 - sparsity) * weights)
        kept = after != 0
        assert (after[kept] == before[kept]).all()
        if pattern == "magnitude" and kept.any() and not kept.all():
            assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()


def test_a_network_at_several_sparsities() -> None:
    subjects = models.of_network(None, "16-8-4", (0.5, 0.75), "random", 3)
    assert [s.title for s in subjects] == ["16-8-4, random 50%", "16-8-4, random 75%"]
    assert subjects[0].model.nnz == 64 + 16 + 12
    # a step's dense matrix spans the columns that are used, so it may be smaller than the layer
    assert subjects[1].sparsity == pytest.approx(0.75, abs=0.15)
    with pytest.raises(InputError, match="--sizes must be widths"):
        models.of_network(None, "a-b", (0.5,), "random", 0)


def test_a_cyclic_model_is_refused(tmp_path: Path) -> None:
    path = replace(free_model(), has_bias=False, input_shape=(5,)).save(tmp_path / "model.h5")
    with pytest.raises(InputError, match=r"depend on each other in cycles.*layered or dag"):
        models.of_model(path)


# --- contenders --------------------------------------------------------------------------------------------------------


def _dag(seed: int = 0) -> ImplicitModel:
    """Two blocks of different activations that both read the input, and outputs that read everything."""
    rng = np.random.default_rng(seed)
    a = np.zeros((9, 9))
    a[:4, 4:] = rng.normal(size=(4, 5)) * (rng.random((4, 5)) < 0.6)
    return ImplicitModel(
        A=a,
        B=rng.normal(size=(9, 7)),
        C=rng.normal(size=(3, 9)),
        D=rng.normal(size=(3, 7)),
        blocks=(
            Block("h2", activations.make("tanh"), 0, 4, (4,), ("h1", "input", "bias")),
            Block("h1", activations.make("leaky_relu"), 4, 5, (5,), ("input", "bias")),
        ),
        input_shape=(2, 3),
    )


@pytest.mark.parametrize("name", peers.NAMES)
@pytest.mark.parametrize("spec", activations.NAMES)
def test_every_contender_computes_the_model(name: str, spec: str) -> None:
    model = replace(layered_model(activation=spec), input_shape=(6,))
    for one in (model, _dag()):
        (contender,) = peers.contenders(one, (name,))
        assert contender.prepare is not None, contender.reason
        inputs = np.random.default_rng(1).random((9, one.p - 1)).astype(np.float32)
        np.testing.assert_allclose(contender.prepare(inputs)(), one.predict(inputs), rtol=0, atol=1e-5)


def test_layers_name_what_they_read() -> None:
    assert [layer.pieces for layer in peers.layers(layered_model(hidden=(7, 5)))] == [(0,), (1,), (2,)]
    assert [layer.pieces for layer in peers.layers(_dag())] == [(0,), (0, 1), (0, 1, 2)]
    empty = layered_model(hidden=(4,))
    silent = replace(empty, B=sparse.csr_array(empty.B.shape))
    assert peers.layers(silent)[0].pieces == (0,)


def test_a_contender_that_fails_keeps_its_line() -> None:
    model = layered_model()

    def broken(inputs: np.ndarray) -> Any:
        raise RuntimeError("no such product")

    entrants = [
        *peers.contenders(model, (peers.OURS,)),
        peers.Contender(peers.TORCH, "1", broken),
        peers.Contender(peers.SCIPY, None, None, "not installed (scipy)"),
    ]
    inputs = np.zeros((4, 6), np.float32)
    ours, torch, scipy = side_by_side(entrants, model.predict(inputs), inputs, None, 4, 2)
    assert ours.ratio == 1.0
    assert ours.agrees is True
    assert (torch.seconds, torch.reason) == (None, "RuntimeError: no such product")
    assert (scipy.ratio, scipy.reason) == (None, "not installed (scipy)")


def test_wrong_outputs_are_seen_and_said() -> None:
    model = layered_model()
    wrong = peers.Contender(peers.SCIPY, None, lambda inputs: lambda: model.predict(inputs) + 0.5)
    entrants = [*peers.contenders(model, (peers.OURS,)), wrong]
    inputs = np.ones((4, 6), np.float32)
    entries = side_by_side(entrants, model.predict(inputs), inputs, np.zeros(4), 4, 1)
    assert entries[1].agrees is False
    outcome = Outcome(models.subject("m", model), InferencePlan(model), Sizes(), "", None, entries)
    assert any("scipy CSR differs from the model by" in line for line in slower([outcome]))


def test_a_loss_is_said() -> None:
    model = layered_model()
    entry = Entry(peers.ONNX, "1", 1000, seconds=1e-3, ratio=0.5, error=0.0, agrees=True)
    outcome = Outcome(models.subject("m", model), InferencePlan(model), Sizes(), "", None, [entry])
    assert slower([outcome]) == ["m, batch 1000: ONNX Runtime, dense is 2.00 times as fast as ours"]
    assert slower([replace(outcome, entries=[replace(entry, ratio=1.5)])]) == []


# --- the command -------------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["bench", "inference", "--quiet", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_the_command_with_labels() -> None:
    result = _run(
        "--quick", "--sizes", "64-12-10", "--sparsity", "0.8,0.9", "--batch", "1,70", "--data", "digits"
    )
    assert [case["title"] for case in result["cases"]] == [
        "64-12-10, magnitude 80%",
        "64-12-10, magnitude 90%",
    ]
    assert result["quick"] is True
    assert isinstance(result["slower"], list)
    assert {"torch", "onnxruntime"} <= set(result["machine"]["versions"])
    for case in result["cases"]:
        assert [(e["batch"], e["name"]) for e in case["entries"]] == [
            (b, n) for b in (1, 70) for n in peers.NAMES
        ]
        for entry in case["entries"]:
            assert entry["reason"] == ""
            assert entry["agrees"] is True
            assert entry["error"] <= 1e-5
            assert entry["seconds"] > 0
            assert entry["ratio"] > 0
            assert entry["accuracy"] == pytest.approx(case["accuracy"], abs=0.01)
        assert {e["ratio"] for e in case["entries"] if e["name"] == "simtool"} == {1.0}
        sizes = case["sizes"]
        assert sizes["nnz"] < case["nnz"]
        assert 0 < sizes["entropy_bits"] < sizes["sim_index_bits"]
        assert case["plan_bytes"] > 0
    assert result["cases"][1]["sizes"]["nnz"] < result["cases"][0]["sizes"]["nnz"]


def test_the_command_with_a_model_prints_both_tables(tmp_path: Path) -> None:
    path = replace(_dag(), output_map="softmax").save(tmp_path / "model.h5")
    done = CliRunner().invoke(main, ["bench", "inference", "--model", str(path), "--quick", "--batch", "3"])
    assert done.exit_code == 0, done.output
    assert "ONNX Runtime, dense" in done.stdout
    assert "Where ours is not the fastest:" in done.stdout
    assert "bits an index" in done.stdout
    marked = CliRunner().invoke(
        main, ["bench", "inference", "--model", str(path), "--quick", "--batch", "3", "--markdown"]
    )
    assert "| model | batch | contender | a call | x ours | error | accuracy |" in marked.stdout


def test_a_network_of_the_users() -> None:
    result = _run("--quick", "--network", "simtool.bench.networks:mlp", "--model-arg", "sizes=64-8-4")
    assert len(result["cases"]) == 3
    assert result["cases"][0]["states"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.0"], "--sparsity must lie in"),
        (["--sparsity", "nan"], "--sparsity must lie in"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--batch", ""], "at least one number each"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--model", "m.h5", "--sizes", "4-4"], "give one of --model"),
        (["--model", "does-not-exist.h5"], "does-not-exist.h5"),
        (["--data", "digits", "--sizes", "63-8-4"], "the model takes 63 numbers"),
        (["--data", "digits", "--batch", "100000"], "fewer than --batch 100000"),
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["bench", "inference", "--quick", "--quiet", "--json", *arguments])
    assert done.exit_code == 1
    assert message in json.loads(done.stdout)["error"]


def test_a_list_that_is_none_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["bench", "inference", "--sparsity", "a,b"])
    assert done.exit_code == 2
    assert "is no list of numbers" in done.output


def test_options_are_checked_by_the_library_too() -> None:
    with pytest.raises(OptionError, match="--pattern must be one of"):
        InferenceBenchOptions(pattern="regular")
