"""simtool sweep: grids on one states file, measured side by side, resumable; its points are ordinary runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simtool.cli.sweep import command
from simtool.demo import NETWORK
from simtool.errors import OptionError, OutputError, SpecChanged
from simtool.model import load_model
from simtool.report.sweep import sweep
from simtool.stages import tune
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sweep import AXES, PRESETS, Axis, Grid, Measure
from simtool.stages.sweep.grid import points_of
from simtool.stages.sweep.presets import grids_of
from simtool.states import open_states

_TIMES = ("seconds", "solve_seconds")


def _table(folder: Path) -> list[dict[str, str]]:
    """sweep.csv without its times."""
    with (folder / "sweep.csv").open() as file:
        return [
            {key: value for key, value in line.items() if key not in _TIMES} for line in csv.DictReader(file)
        ]


def _call(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(command, [*(str(a) for a in arguments), "--json", "--quiet"])
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture(scope="module")
def kappas(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three kappas, measured on data against the network."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    code, found = _call(
        *(digits["states"], "--kappa", "0.05,0.5,.99", "--kappa-relative", "--engine", "serial", "-o", out),
        *("--data", "digits", "--baseline", NETWORK, "--weights", digits["weights"], "--attack", "fgsm"),
        *("--epsilon", "0.02"),
    )
    assert code == 0
    assert found["report"] == str(out / "sweep.html")
    return out


def test_every_point_is_what_sparsify_gives_alone(
    digits: dict[str, Path], tmp_path: Path, kappas: Path
) -> None:
    """Sharing inputs and Gram matrices changes no bit of a model."""
    for name, kappa in (("000", 0.05), ("002", 0.99)):
        options = SparsifyOptions(kappa=kappa, kappa_relative=True)
        sparsify(digits["states"], tmp_path / name, options, engine="serial")
        alone = (tmp_path / name / "model.h5").read_bytes()
        assert (kappas / "points" / name / "model.h5").read_bytes() == alone
    assert not (kappas / "shared").exists()


def test_the_numbers_are_those_of_evaluate(digits: dict[str, Path], kappas: Path) -> None:
    from simtool.networks import NetworkSpec
    from simtool.stages.evaluate import measure_model

    result, _ = measure_model(
        kappas / "points" / "001",
        "digits",
        baseline=NetworkSpec(NETWORK, weights=digits["weights"]),
        attack="fgsm",
        epsilons=["0.02"],
    )
    stored = json.loads((kappas / "sweep.json").read_text())
    point = stored["points"][1]
    for key in ("accuracy", "accuracy_drop", "agreement", "nnz", "sparsity", "robust_accuracy", "norm_a_inf"):
        assert point[key] == result[key], key
    assert point["values"] == {"kappa": 0.5}
    line = _table(kappas)[2]
    assert line["kappa"] == ".99"  # as typed
    assert float(line["accuracy"]) == stored["points"][2]["accuracy"]
    assert float(line["robust_accuracy_0.02"]) == stored["points"][2]["robust_accuracy"]["0.02"]
    assert float(line["baseline_robust_accuracy_0.02"]) <= float(line["baseline_accuracy"])
    sizes = [int(line["nnz"]) for line in _table(kappas)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_pictures_and_page(kappas: Path) -> None:
    names = {path.stem for path in kappas.glob("*.png")}
    assert names == {"drop-sparsity", "robust-sparsity", "dial-kappa"}
    assert all((kappas / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    assert {path.stem for path in kappas.glob("*.svg")} == names
    page = (kappas / "sweep.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http://www.w3.org", "")
    for line in _table(kappas):
        assert f"{100 * float(line['sparsity']):.2f} %" in page


def test_the_same_command_again_returns_what_is_there(digits: dict[str, Path], kappas: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in kappas.glob("points/*/*")}
    content = (kappas / "sweep.json").read_bytes()
    arguments = (digits["states"], "--kappa", "0.05,0.5,.99", "--kappa-relative", "-o", kappas)
    data = ("--data", "digits", "--baseline", NETWORK, "--weights", digits["weights"])
    code, found = _call(*arguments, *data, "--attack", "fgsm", "--epsilon", "0.02", "--engine", "serial")
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in kappas.glob("points/*/*")} == before
    assert (kappas / "sweep.json").read_bytes() == content
    assert found["seconds"] == json.loads(content)["seconds"]
    # Another sweep is refused, with what differs.
    code, found = _call(*arguments, *data, "--engine", "serial")
    assert code == 1
    assert "measure.attack = fgsm" in found["error"]
    code, found = _call(digits["states"], "--kappa", "0.05,0.6", "-o", kappas)
    assert code == 1
    assert "point 000" in found["error"]


def test_engines_and_budgets_give_the_same_table(digits: dict[str, Path], tmp_path: Path) -> None:
    """A product of budgets and kappas, whose paths are found once a budget, on two engines."""
    asked = (digits["states"], "--target-sparsity", "0.8,0.95", "--kappa", "0.8,1", "--kappa-on", "ab")
    asked = (*asked, "--kappa-relative")
    for engine in ("serial", "process"):
        code, found = _call(*asked, "--engine", engine, "-o", tmp_path / engine)
        assert code == 0
    assert _table(tmp_path / "serial") == _table(tmp_path / "process")
    assert [point["values"] for point in found["points"]] == [
        {"target_sparsity": 0.8, "kappa": 0.8},
        {"target_sparsity": 0.8, "kappa": 1.0},
        {"target_sparsity": 0.95, "kappa": 0.8},
        {"target_sparsity": 0.95, "kappa": 1.0},
    ]
    assert {point["measured_on"] for point in found["points"]} == {"states"}
    assert found["points"][0]["agreement"] > found["points"][2]["agreement"]
    options = SparsifyOptions(target_sparsity=0.95, kappa=1.0, kappa_on="ab", kappa_relative=True)
    sparsify(digits["states"], tmp_path / "alone", options, engine="serial")
    alone = (tmp_path / "alone" / "model.h5").read_bytes()
    assert (tmp_path / "serial" / "points" / "003" / "model.h5").read_bytes() == alone


def test_recipes_of_budgets(digits: dict[str, Path], tmp_path: Path) -> None:
    """A named recipe gives what sparsify gives by it; auto chooses one at every point."""
    asked = (digits["states"], "--target-sparsity", "0.9,0.97", "--engine", "serial")
    code, gate = _call(*asked, "--recipe", "gate", "-o", tmp_path / "gate")
    assert code == 0
    options = SparsifyOptions(target_sparsity=0.97)
    tune.sparsify(digits["states"], tmp_path / "alone", options, wish=tune.Wish("gate"), engine="serial")
    alone = (tmp_path / "alone" / "model.h5").read_bytes()
    assert (tmp_path / "gate" / "points" / "001" / "model.h5").read_bytes() == alone
    assert [point["nnz"] for point in gate["points"]] == [501, 150]
    code, auto = _call(*asked, "--recipe", "auto", "-o", tmp_path / "auto")
    assert code == 0
    assert {point["recipe"] for point in auto["points"]} <= set(tune.RECIPES)
    code, again = _call(*asked, "--recipe", "auto", "-o", tmp_path / "auto")
    assert again == auto
    code, found = _call(*asked, "--recipe", "plain", "-o", tmp_path / "auto")
    assert code == 1
    assert "point 000" not in found["error"]
    assert "recipe = auto" in found["error"]


_SCRIPT = """
import sys
from simtool.cli.sweep import command
command(sys.argv[1:])
"""


def test_a_killed_sweep_goes_on(digits: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(digits["states"]), "--kappa", "0.05,0.1,0.2,0.4,0.8", "--engine", "serial"]
    code, _ = _call(*arguments, "-o", tmp_path / "whole")
    assert code == 0
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments, "-o", str(out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (out / "results" / "001.json").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "sweep.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    assert done
    code, _ = _call(*arguments, "-o", out)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was finished is not done again
    assert _table(out) == _table(tmp_path / "whole")
    for name in ("000", "004"):
        models = [(place / "points" / name / "model.h5").read_bytes() for place in (out, tmp_path / "whole")]
        assert models[0] == models[1]


def test_damage_to_what_is_shared_or_finished_is_repaired(digits: dict[str, Path], tmp_path: Path) -> None:
    grids = [Grid({"kappa_relative": True}, (Axis.of("kappa", [0.2, 0.6]),))]
    out = tmp_path / "out"
    first = sweep(digits["states"], out, grids, engine="serial")
    (out / "results" / "001.json").write_text("{")
    shard = next((out / "points" / "000" / "rows").glob("0*.shard"))
    shard.write_bytes(shard.read_bytes()[:-3])
    # As a killed sweep leaves it, with a Gram matrix that has changed since.
    shared = out / "shared" / "000"
    sparsify(digits["states"], shared, SparsifyOptions(kappa=0.2, kappa_relative=True), engine="serial")
    (shared / "work").mkdir()
    (shared / "work" / "gram-0.npy").write_bytes(b"nonsense")
    (shared / "work" / "gram-0.sha256").write_bytes(b"nonsense")
    again = sweep(digits["states"], out, grids, engine="serial")
    for a, b in zip(first["points"], again["points"], strict=True):
        assert {**a, "seconds": 0, "solve_seconds": 0} == {**b, "seconds": 0, "solve_seconds": 0}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_grids_that_can_be(name: str) -> None:
    points = points_of(grids_of(name, {}, []))
    assert len(points) == len({(point.options, point.samples) for point in points}) > 3
    if name == "thesis-3.1":
        assert [point.values["kappa"] for point in points] == [0.005, 0.01, 0.05, 0.1, 0.5, 0.99]
        relative = points_of(grids_of(name, {"kappa_relative": True}, [Axis.of("kappa", ["0.3"])]))
        assert [(point.typed, point.options.kappa_relative) for point in relative] == [
            ({"kappa": "0.3"}, True)
        ]


def test_what_the_command_line_lists_is_what_there_is() -> None:
    choices = {param.name: getattr(param.type, "choices", None) for param in command.params}
    assert tuple(choices["preset"] or ()) == tuple(PRESETS)
    assert tuple(choices["recipe"] or ()) == (tune.AUTO, *tune.RECIPES)
    names = {param.name for param in command.params}
    assert set(AXES) <= names
    fields = {field.name for field in dataclasses.fields(SparsifyOptions)}
    assert fields <= names


def test_the_preset_of_figure_4_attacks_along_the_baseline(digits: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = (
        digits["states"],
        "--preset",
        "sim-4",
        "--alpha",
        "0.1",
        "--beta",
        "0.2",
        "--engine",
        "serial",
        "-o",
        out,
    )
    code, found = _call(*asked, "--data", "digits")
    assert code == 1
    assert "Pass --baseline NETWORK, or --gradient model" in found["error"]
    code, found = _call(*asked, "--data", "digits", "--baseline", NETWORK, "--weights", digits["weights"])
    assert code == 0
    assert found["measure"]["gradient"] == "baseline"
    assert [set(point["robust_accuracy"]) for point in found["points"]] == 2 * [{"0.004", "0.008"}]
    assert "robust-sparsity" in found["figures"]


def test_a_preset_sets_what_it_is_about() -> None:
    with pytest.raises(OptionError, match="sets --objective itself"):
        grids_of("sim-2", {"objective": "lasso"}, [])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kappa", ""], 2, "--kappa is empty"),
        (["--kappa", "0.1,x"], 2, "'x' is not a finite number"),
        (["--kappa", "0.1,nan"], 2, "'nan' is not a finite number"),
        (["--kappa", "0.1,.1"], 2, "0.1 and .1 are equal"),
        (["--samples", "100,2.5"], 2, "'2.5' is not a whole number"),
        ([], 1, "nothing to sweep"),
        (["--kappa", "0.1,-1"], 1, "--kappa must be finite and >= 0"),
        (["--alpha", "0.1,1"], 1, "--alpha does not belong to --objective lasso"),
        (["--target-sparsity", "0.5,1"], 1, "--target-sparsity must lie in"),
        (["--kappa", "0.1,0.2", "--samples", "0,10"], 1, "--samples must be at least 1"),
        (["--kappa", "0.1", "--attack", "fgsm"], 1, "Pass --data DATA"),
        (["--kappa", "0.1", "--epsilon", "0.1", "--data", "digits"], 1, "--attack fgsm"),
        (["--kappa", "0.1", "--weights", "w.safetensors"], 1, "Pass --baseline NETWORK"),
        (["--kappa", "0.1", "--recipe", "gate"], 1, "belongs to a budget of non-zeros"),
        (["--kappa", "0.1", "--recipe", "auto"], 1, "belongs to budgets of non-zeros"),
        (["--target-sparsity", ".9", "--samples", "50,60", "--recipe", "auto"], 1, "keeps samples back"),
        (["--target-sparsity", ".9", "--weight-samples", "gate", "--recipe", "fisher"], 1, "other weights"),
        (["--kappa", "0.1", "--engine", "slurm"], 1, "Add --wait"),
        (["--beta", ",".join(str(i) for i in range(1, 1200)), "--objective", "l1"], 1, "1199 points"),
    ],
)
def test_bad_requests_say_what_to_do(
    digits: dict[str, Path], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = CliRunner().invoke(command, [str(digits["states"]), *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_something_else_is_left_alone(digits: dict[str, Path], tmp_path: Path) -> None:
    grids = [Grid({}, (Axis.of("kappa", [0.2]),))]
    other = tmp_path / "run"
    sparsify(digits["states"], other, SparsifyOptions(), engine="serial")
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(OutputError, match=r"not a sweep of simtool \(it has no grid.json\)"):
        sweep(digits["states"], other, grids, engine="serial")
    assert sorted(path.name for path in other.iterdir()) == before
    with pytest.raises(OutputError, match="is a file"):
        sweep(digits["states"], digits["states"], grids, engine="serial")


def test_a_model_that_does_not_converge_has_a_line_all_the_same(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simtool.errors import ConvergenceError
    from simtool.stages.sweep import points

    def diverges(*_: object, **__: object) -> None:
        raise ConvergenceError("the fixed point diverged")

    monkeypatch.setattr(points, "measure_model", diverges)
    grids = [Grid({}, (Axis.of("kappa", [0.2, 0.5]),))]
    found = sweep(digits["states"], tmp_path / "out", grids, measured=Measure(data="digits"), engine="serial")
    assert [point["error"] for point in found["points"]] == ["the fixed point diverged"] * 2
    assert [point["accuracy"] for point in found["points"]] == [None, None]
    assert _table(tmp_path / "out")[0]["nnz"] == str(found["points"][0]["nnz"])


def test_samples_are_the_first_of_the_states(digits: dict[str, Path], tmp_path: Path) -> None:
    """SIM's Figure 3: what fewer samples do, each number with a Gram matrix of its own."""
    out = tmp_path / "out"
    code, found = _call(
        *(digits["states"], "--preset", "sim-3", "--samples", "100,300", "--engine", "serial", "-o", out),
    )
    assert code == 0
    assert [(point["objective"], point["values"]["samples"]) for point in found["points"]] == [
        ("perspective", 100),
        ("perspective", 300),
        ("l1", 100),
        ("l1", 300),
    ]
    assert found["figures"] == ["drop-sparsity", "samples-sparsity"]
    agreement = [point["agreement"] for point in found["points"]]
    assert agreement[0] < agreement[1]
    options = SparsifyOptions(objective="l1", beta=0.02)
    sparsify(digits["states"], tmp_path / "whole", options, engine="serial")
    whole = load_model(tmp_path / "whole" / "model.h5")
    assert whole.nnz == found["points"][3]["nnz"]
    with open_states(digits["states"]) as source:
        few = np.asarray(source.U[:, :100])
    model = load_model(out / "points" / "002" / "model.h5")
    table = model.certificates
    assert table is not None
    assert table.certified.all()
    unseen = ~few.any(axis=1)  # a pixel that is 0 on these samples has no weight
    assert unseen.any()
    assert not model.B.toarray()[:, unseen].any()
    code, found = _call(
        digits["states"], "--samples", "100,301", "--engine", "serial", "-o", tmp_path / "more"
    )
    assert code == 1
    assert "301" in found["error"]


def convolutions() -> Any:
    """Two layers with shared weights and a linear map, on the digits."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10))


def test_rows_of_layers_with_shared_weights(tmp_path: Path) -> None:
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    network = NetworkSpec(f"{__file__}:convolutions", input_shape=(64,))
    extract(network, "digits", samples=120, output=tmp_path / "states.h5")
    code, found = _call(
        *(
            tmp_path / "states.h5",
            "--target-sparsity",
            "0.6,0.9",
            "--samples",
            "60,120",
            "--engine",
            "serial",
        ),
        *("-o", tmp_path / "out"),
    )
    assert code == 0
    assert [point["values"]["samples"] for point in found["points"]] == [60, 60, 120, 120]
    total = found["points"][0]["baseline_nnz"]
    assert [point["nnz"] for point in found["points"]] == 2 * [
        math.floor(0.4 * total),
        math.floor(0.1 * total),
    ]
    agreement = [point["agreement"] for point in found["points"]]
    assert agreement[2] > agreement[3]
    options = SparsifyOptions(target_sparsity=0.9)
    sparsify(tmp_path / "states.h5", tmp_path / "alone", options, engine="serial")
    alone = (tmp_path / "alone" / "model.h5").read_bytes()
    assert (tmp_path / "out" / "points" / "003" / "model.h5").read_bytes() == alone


def test_rows_that_are_not_certified_are_told(digits: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(digits["states"]), "--objective", "l1", "--beta", "0.001,0.01", "--tol", "1e-12"]
    arguments += ["--solver", "scs", "--samples", "40", "--engine", "serial", "--quiet"]
    result = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "2 of 2 points have rows that are not certified" in result.output


def test_what_measures_is_checked_before_any_point_is_solved(digits: dict[str, Path], tmp_path: Path) -> None:
    out, narrow, targets = tmp_path / "out", tmp_path / "narrow.npz", tmp_path / "targets.npz"
    np.savez(narrow, inputs=np.zeros((20, 5), np.float32))
    np.savez(targets, inputs=np.zeros((20, 64), np.float32), labels=np.zeros(20))
    arguments = (digits["states"], "--kappa", "0.1,0.5", "--engine", "serial", "-o", out)
    for more, message in (
        (("--data", "nowhere.npz"), "nowhere.npz"),
        (("--data", narrow), "takes 64 numbers"),
        (("--data", targets), "the targets have 1 numbers a sample"),
        (("--data", "digits", "--attack", "fgsm", "--epsilon", "-1"), "epsilon must be a finite number"),
        (("--data", "digits", "--attack", "fgsm", "--gradient", "baseline"), "Pass --baseline NETWORK"),
        (("--data", "digits", "--baseline", "nothing.onnx"), "nothing.onnx"),
    ):
        code, found = _call(*arguments, *more)
        assert code == 1
        assert message in found["error"]
        assert not out.exists()


def test_a_sweep_keeps_to_its_states(digits: dict[str, Path], tmp_path: Path) -> None:
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    grids = [Grid({}, (Axis.of("kappa", [0.2, 0.5]),))]
    sweep(digits["states"], tmp_path / "out", grids, engine="serial")
    other = tmp_path / "other.h5"
    extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=200, output=other)
    with pytest.raises(SpecChanged, match="was started with states"):
        sweep(other, tmp_path / "out", grids, engine="serial")
