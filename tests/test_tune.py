"""Recipes of a budget chosen on samples kept back, and sizes found from what may be lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import simtool
from simtool import activations
from simtool.blocks import BIAS, INPUT, Block
from simtool.cli import main
from simtool.engines import EngineOptions
from simtool.errors import FormatError, InputError, OptionError, SpecChanged
from simtool.model import ImplicitModel, load_model
from simtool.stages import tune
from simtool.stages.extract import extract
from simtool.stages.sparsify import stage
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.tune import RECIPES, Wish, sparsify
from simtool.states import first, open_states

BUDGET = SparsifyOptions(target_sparsity=0.95)


def _cli(*args: object) -> Result:
    return CliRunner().invoke(main, ["sparsify", *map(str, args), "--engine", "serial", "--quiet"])


@pytest.fixture(scope="module")
def run(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("tune") / "run"
    done = _cli(digits["states"], "--target-sparsity", 0.95, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    (out.parent / "result.json").write_text(done.stdout)
    return out


def test_the_best_recipe_is_the_default(run: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    result = json.loads((run.parent / "result.json").read_text())
    assert result["nnz"] == int(0.05 * result["baseline_nnz"] + 1e-9)
    assert result["certified"] == result["rows"]
    assert set(result["validation"]) == set(RECIPES)
    assert not (run / "validation").exists()
    options = SparsifyOptions(target_sparsity=0.95, **RECIPES[result["recipe"]])
    stage.sparsify(digits["states"], tmp_path / "by-name", options, engine="serial")
    assert (tmp_path / "by-name" / "model.h5").read_bytes() == (run / "model.h5").read_bytes()

    with open_states(digits["states"]) as source:
        fit = int(0.8 * source.m)
        u, y = source.U[:, fit:], source.Y[:, fit:]
    scores = {}
    for name, more in RECIPES.items():
        options = SparsifyOptions(target_sparsity=0.95, **more)
        stage.sparsify(digits["states"], tmp_path / name, options, engine="serial", samples=fit)
        out = load_model(tmp_path / name).forward(u.astype(np.float64)).Y
        scores[name] = float((out.argmax(axis=0) == y.argmax(axis=0)).mean())
    assert result["validation"] == pytest.approx(scores)
    top = max(scores.values())
    assert scores[result["recipe"]] >= top - np.sqrt(top * (1 - top) / y.shape[1])


def test_runs_of_recipes_are_gone_once_the_choice_is_known(
    run: Path, digits: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "killed"  # right after the choice was written
    shutil.copytree(run, out)
    shutil.copytree(run, out / "validation" / "plain")
    sparsify(digits["states"], out, BUDGET, engine="serial")
    assert not (out / "validation").exists()
    assert (out / "model.h5").read_bytes() == (run / "model.h5").read_bytes()


def test_a_rerun_returns_the_result_and_another_wish_is_refused(run: Path, digits: dict[str, Path]) -> None:
    before = json.loads((run.parent / "result.json").read_text())
    again = sparsify(digits["states"], run, BUDGET, engine="process")
    assert again["recipe"] == before["recipe"]
    assert again["nnz"] == before["nnz"]
    with pytest.raises(SpecChanged, match=r"options\.target_sparsity = 0\.95, now it is 0\.9"):
        sparsify(digits["states"], run, SparsifyOptions(target_sparsity=0.9))
    with pytest.raises(SpecChanged, match=r"wish\.validate"):
        sparsify(digits["states"], run, BUDGET, wish=Wish(validate="labels"))
    assert simtool.resume(run)["nnz"] == before["nnz"]


def test_an_interrupted_choice_goes_on(
    run: Path, digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = stage.sparsify

    def stops(states: Path, output: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append(Path(output).name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(states, output, *args, **kwargs)

    monkeypatch.setattr(stage, "sparsify", stops)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sparsify(digits["states"], out, BUDGET, engine="serial")
    assert (out / "validation" / "plain" / "model.h5").exists()
    with pytest.raises(InputError, match="still being chosen"):
        simtool.resume(out)
    with pytest.raises(InputError, match="still being chosen"):
        simtool.status(out)
    sparsify(digits["states"], out, BUDGET, engine="serial")
    assert (out / "model.h5").read_bytes() == (run / "model.h5").read_bytes()
    (out / "recipe.json").write_text("{")
    with pytest.raises(FormatError, match=r"recipe\.json"):
        sparsify(digits["states"], out, BUDGET, engine="serial")


@pytest.mark.parametrize("validate", ["agreement", "labels"])
def test_a_size_from_what_may_be_lost(validate: str, digits: dict[str, Path], tmp_path: Path) -> None:
    results = {}
    for drop in (0.02, 0.3):
        out = tmp_path / str(drop)
        done = _cli(
            *(digits["states"], "--max-accuracy-drop", drop, "--validate", validate),
            *("--recipe", "sequential", "-o", out, "--json"),
        )
        assert done.exit_code == 0, done.output
        results[drop] = json.loads(done.stdout)
        assert results[drop]["recipe"] == "sequential"
        sparsity = json.loads((out / "spec.json").read_text())["options"]["target_sparsity"]
        with open_states(digits["states"]) as source:
            fit = int(0.8 * source.m)
            u, y, labels = source.U[:, fit:], source.Y[:, fit:], source.labels[fit:]
        truth = y.argmax(axis=0) if validate == "agreement" else labels
        lost = {}
        for size in (sparsity, 1 - (1 - sparsity) / 1.04):
            part = tmp_path / f"{drop}-{size}"
            options = SparsifyOptions(target_sparsity=size, sequential=True)
            stage.sparsify(digits["states"], part, options, engine="serial", samples=fit)
            found = load_model(part).forward(u.astype(np.float64)).Y.argmax(axis=0)
            lost[size] = float((y.argmax(axis=0) == truth).mean() - (found == truth).mean())
        assert lost[sparsity] <= drop + 1e-9
    assert results[0.3]["sparsity"] > results[0.02]["sparsity"]


def test_what_cannot_be_found_is_said(digits: dict[str, Path], tmp_path: Path) -> None:
    states = digits["states"]
    for args, said in (
        (("--max-accuracy-drop", 2), "must lie in [0, 1)"),
        (("--max-accuracy-drop", 0.1, "--target-nnz", 5), "looks for the size"),
        (("--max-accuracy-drop", 0.1, "--objective", "l1"), "Leave the objective out"),
        (("--max-accuracy-drop", 0.1, "--dry-run"), "needs to know the size"),
        (("--recipe", "fisher"), "--recipe fisher belongs to a budget"),
        (("--validate", "labels"), "--validate labels belongs to a budget"),
        (
            ("--target-sparsity", 0.9, "--recipe", "fisher", "--weight-samples", "gate"),
            "asks for other weights",
        ),
    ):
        done = _cli(states, *args, "-o", tmp_path / "bad")
        assert done.exit_code == 1, done.output
        assert said in done.output
        assert not (tmp_path / "bad").exists()
    for field, value in (("recipe", "best"), ("validate", "mse")):
        with pytest.raises(OptionError, match=f"--{field} must be one of"):
            Wish(**{field: value})
    slurm = EngineOptions("slurm")
    with pytest.raises(OptionError, match="--wait"):
        sparsify(states, tmp_path / "bad", BUDGET, engine=slurm)
    assert not (tmp_path / "bad").exists()


def one_output() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 1))


def test_one_output_has_no_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (300, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=rng.integers(0, 2, 300))
    states = tmp_path / "s.h5"
    extract(f"{Path(__file__).resolve()}:one_output", str(tmp_path / "d.npz"), output=states)
    budget = SparsifyOptions(target_sparsity=0.5)
    result = sparsify(states, tmp_path / "run", budget, engine="serial")
    assert set(result["validation"]) == {"plain", "sequential", "gate"}
    assert min(result["validation"].values()) > 0.5  # of the output's variance
    for wish, said in ((Wish(validate="labels"), "one output"), (Wish("fisher"), "no choice of a class")):
        with pytest.raises((OptionError, InputError), match=said):
            sparsify(states, tmp_path / "bad", budget, wish=wish, engine="serial")
        assert not (tmp_path / "bad").exists()


def test_states_in_a_cycle_of_layers_are_fitted_at_once(tmp_path: Path) -> None:
    """Neither block feeds itself, but each the other: no layer is before the other."""
    rng = np.random.default_rng(0)
    a = np.zeros((6, 6))
    a[:3, 3:], a[3:, :3] = rng.normal(0, 0.2, (3, 3)), rng.normal(0, 0.2, (3, 3))
    relu = activations.parse("relu")
    names = ("one", "two")
    blocks = tuple(
        Block(name, relu, 3 * i, 3, (3,), (names[1 - i], INPUT, BIAS)) for i, name in enumerate(names)
    )
    model = ImplicitModel(
        A=a,
        B=rng.normal(size=(6, 6)),
        C=rng.normal(size=(3, 6)),
        D=np.zeros((3, 6)),
        blocks=blocks,
        has_bias=True,
        input_shape=(5,),
        output_parents=names,
    )
    model.save(tmp_path / "model.h5")
    np.savez(tmp_path / "d.npz", inputs=rng.uniform(-1, 1, (200, 5)).astype(np.float32))
    extract(str(tmp_path / "model.h5"), str(tmp_path / "d.npz"), output=tmp_path / "s.h5")
    result = sparsify(
        tmp_path / "s.h5", tmp_path / "run", SparsifyOptions(target_sparsity=0.3), engine="serial"
    )
    assert "recipe" not in result
    assert result["nnz"] == int(0.7 * result["baseline_nnz"] + 1e-9)


def test_few_samples_take_the_plain_recipe(tmp_path: Path, digits: dict[str, Path]) -> None:
    from simtool.demo import NETWORK
    from simtool.networks import NetworkSpec

    few = tmp_path / "few.h5"
    simtool.extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=60, output=few)
    result = sparsify(few, tmp_path / "run", SparsifyOptions(target_sparsity=0.5), engine="serial")
    assert "recipe" not in result
    assert not (tmp_path / "run" / "recipe.json").exists()
    with pytest.raises(InputError, match="at least 20 are needed"):
        sparsify(few, tmp_path / "none", wish=Wish(max_accuracy_drop=0.1), engine="serial")


def test_the_nearest_outputs_decide_between_equals() -> None:
    judged = {"plain": (0.94, 0.3), "sequential": (0.95, 0.2), "gate": (0.945, 0.1), "fisher": (0.5, 0.0)}
    assert tune._best(judged, 100) == "gate"
    assert tune._best(judged, 10**6) == "sequential"
    assert tune._best(dict.fromkeys(RECIPES, (1.0, 0.0)), 100) == "plain"


def test_what_is_asked_for_is_part_of_every_recipe(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(target_sparsity=0.8, pattern="2:4")
    result = sparsify(digits["states"], tmp_path / "pattern", options, engine="serial")
    assert set(result["validation"]) == {"plain", "sequential"}
    given = SparsifyOptions(target_sparsity=0.8, weight_samples="gate")
    assert "recipe" not in sparsify(digits["states"], tmp_path / "given", given, engine="serial")
    free = SparsifyOptions(target_sparsity=0.8, structure="free")
    assert "recipe" not in sparsify(digits["states"], tmp_path / "free", free, engine="serial")


@pytest.mark.parametrize("k", [1, 7, 300])
def test_the_first_samples_of_a_file(k: int, digits: dict[str, Path]) -> None:
    with open_states(digits["states"]) as source:
        part = first(source, k)
        assert part.m == part.header.samples == k
        assert part.content_sha256() == source.content_sha256()
        for name in ("U", "Z", "X", "Y"):
            whole, own = np.asarray(getattr(source, name)[:]), getattr(part, name)
            assert own.shape == (whole.shape[0], k)
            assert np.array_equal(own[:], whole[:, :k])
            assert np.array_equal(own[2:5], whole[2:5, :k])
            assert np.array_equal(own[:, 0:1000], whole[:, :k])
            assert np.array_equal(own[1:3, 1:4], whole[1:3, :k][:, 1:4])
        assert part.labels is not None
        assert len(part.indices) == len(part.labels) == k
        assert source.m == 300
        with pytest.raises(InputError, match="holds 300 samples"):
            first(source, 301)


def test_a_run_on_the_first_samples_is_resumed_on_them(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(objective="least-squares")
    stage.sparsify(digits["states"], tmp_path / "a", options, engine="serial", samples=120)
    model = (tmp_path / "a" / "model.h5").read_bytes()
    assert load_model(tmp_path / "a").header_extra["samples"] == 120
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("model.h5", "timing.json", "rows/000000.shard"):
        (tmp_path / "b" / name).unlink()
    stage.resume(tmp_path / "b", engine="serial")
    assert (tmp_path / "b" / "model.h5").read_bytes() == model


def test_outputs_that_are_no_classes_are_judged_by_their_variance(tmp_path: Path) -> None:
    """Two targets: which of them is larger says nothing."""
    import networks_zoo as zoo

    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (200, 10)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=rng.normal(size=(200, 2)).astype(np.float32))
    path = zoo.export(zoo.mlp("10-8-6-2"), tmp_path / "n.onnx", (10,))
    simtool.extract(str(path), str(tmp_path / "d.npz"), output=tmp_path / "s.h5")
    options = SparsifyOptions(target_sparsity=0.5)
    result = sparsify(tmp_path / "s.h5", tmp_path / "run", options, engine="serial")
    assert set(result["validation"]) == {"plain", "sequential", "gate"}
    with open_states(tmp_path / "s.h5") as source:
        u, y = source.U[:, 160:].astype(np.float64), source.Y[:, 160:].astype(np.float64)
    stage.sparsify(tmp_path / "s.h5", tmp_path / "plain", options, engine="serial", samples=160)
    rest = np.square(load_model(tmp_path / "plain").forward(u).Y - y).sum()
    explained = 1 - rest / np.square(y - y.mean(axis=1, keepdims=True)).sum()
    assert result["validation"]["plain"] == pytest.approx(explained)


def test_a_run_by_name_is_not_chosen_again(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "run", BUDGET, wish=Wish("plain"), engine="serial")
    with pytest.raises(SpecChanged, match="recipe = 'one by its name'"):
        sparsify(digits["states"], tmp_path / "run", BUDGET, engine="serial")
    assert not (tmp_path / "run" / "validation").exists()
