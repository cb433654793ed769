"""evaluate and predict: scores against hand-made references, attacks, data without labels, refused input."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from model_cases import free_model, layered_model
from scipy import sparse
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score

from simtool.errors import InputError, OptionError, OutputError
from simtool.model import ImplicitModel
from simtool.report import evaluate
from simtool.stages.evaluate import make_attack
from simtool.stages.evaluate.attacks import perturb
from simtool.stages.evaluate.metrics import (
    CLASSIFICATION,
    REGRESSION,
    Relative,
    Score,
    checked_labels,
    classes_of,
    decide_task,
    loss_gradient,
)
from simtool.stages.predict import predict

KEYS = [
    "task",
    "accuracy",
    "f1",
    "mse",
    "baseline_accuracy",
    "baseline_f1",
    "baseline_mse",
    "accuracy_drop",
    "agreement",
    "nnz",
    "baseline_nnz",
    "sparsity",
    "model_bytes",
    "baseline_bytes",
    "iterations_mean",
    "iterations_max",
    "converged",
    "robust_accuracy",
    "state_error",
    "output_error",
    "denominator",
    "rho",
    "s_norm_inf",
    "well_posed",
    "well_posed_by",
]


@pytest.fixture
def teacher(tmp_path: Path) -> tuple[ImplicitModel, str]:
    """The baseline: an exact model file that serves as the network."""
    model = replace(layered_model(weight=2.0, certified=False), structure="exact")
    return model, str(model.save(tmp_path / "teacher.h5"))


@pytest.fixture
def student(teacher: tuple[ImplicitModel, str]) -> ImplicitModel:
    """The baseline with its smallest weights gone and with certificates."""
    model = teacher[0]
    b = model.B.copy()
    b.data[np.abs(b.data) < 0.3] = 0.0
    g = np.linspace(0.5, 2.0, model.n)
    return replace(
        model,
        A=sparse.diags_array(g) @ model.A @ sparse.diags_array(1 / g),
        B=sparse.diags_array(g) @ b,
        C=model.C @ sparse.diags_array(1 / g),
        scaling=g,
        structure="layered",
        certificates=layered_model().certificates,
    )


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """caplog that also hears the logger after a command has configured it."""
    logger = logging.getLogger("simtool")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.INFO)
    return caplog


def write_data(folder: Path, model: ImplicitModel, m: int = 300, kind: str = "classes") -> str:
    rng = np.random.default_rng(3)
    inputs = rng.random((m, *model.input_shape)).astype(np.float32)
    arrays = {"inputs": inputs}
    y = model.forward(model.states_inputs(inputs)).Y
    if kind == "classes":
        labels = classes_of(y)
        noisy = rng.random(m) < 0.2
        labels[noisy] = rng.integers(0, model.q, noisy.sum())
        arrays["labels"] = labels
    elif kind == "targets":
        arrays["labels"] = (y.T + 0.1 * rng.normal(size=y.T.shape)).astype(np.float64)
    path = folder / f"{kind}.npz"
    np.savez(path, **arrays)
    return str(path)


def test_everything_at_once(
    teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path
) -> None:
    model, network = teacher
    data = write_data(tmp_path, model)
    path = student.save(tmp_path / "model.h5")
    result = evaluate(
        path, data, baseline=network, attack="fgsm", epsilons=("0.004", "0.20"), output=tmp_path / "report"
    )
    assert set(KEYS) <= set(result)
    arrays = np.load(data)
    labels, inputs = arrays["labels"], arrays["inputs"]
    ours, theirs = student.predict(inputs), model.predict(inputs)
    assert result["task"] == "classification"
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, ours.argmax(axis=1)))
    assert result["f1"] == pytest.approx(f1_score(labels, ours.argmax(axis=1), average="macro"))
    assert result["baseline_accuracy"] == pytest.approx(accuracy_score(labels, theirs.argmax(axis=1)))
    assert result["accuracy_drop"] == pytest.approx(result["baseline_accuracy"] - result["accuracy"])
    assert result["agreement"] == pytest.approx((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    assert result["output_error"] == pytest.approx(
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), rel=1e-5
    )
    x_ours = student.forward(student.states_inputs(inputs)).X
    x_theirs = student.scaling[:, None] * model.forward(model.states_inputs(inputs)).X
    error = np.linalg.norm(x_ours - x_theirs) / np.linalg.norm(x_theirs)
    assert result["state_error"] == pytest.approx(error, rel=1e-5)
    assert result["model_bytes"] == path.stat().st_size
    assert (result["nnz"], result["baseline_nnz"], result["baseline_bytes"]) == (student.nnz, 1000, 4000)
    assert result["sparsity"] == 1 - student.nnz / 1000
    assert "1000 non-zero explicit parameters" in result["denominator"]
    assert (result["iterations_mean"], result["iterations_max"], result["converged"]) == (0, 0, 1.0)
    assert list(result["robust_accuracy"]) == ["0.004", "0.20"]
    assert result["robust_accuracy"]["0.20"] < result["accuracy"]
    assert result["baseline_robust_accuracy"]["0.20"] < result["baseline_accuracy"]
    assert result["attack"]["inputs_perturbed"] == 3
    assert result["attack"]["clipped_to"] == [0.0, 1.0]
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(stored["attack_mask"]) == 3
    assert stored["accuracy"] == result["accuracy"]
    again = evaluate(
        path, data, baseline=network, attack="fgsm", epsilons=("0.004", "0.20"), output=tmp_path / "again"
    )
    changing = ("seconds", "report")
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in result.items() if k not in changing
    }


def test_the_network_itself_has_no_drop(teacher: tuple[ImplicitModel, str], tmp_path: Path) -> None:
    model, network = teacher
    data = write_data(tmp_path, model)
    result = evaluate(
        model, data, baseline=network, attack="fgsm", gradient="baseline", output=tmp_path / "report"
    )
    assert result["accuracy_drop"] == 0
    assert result["agreement"] == 1.0
    assert result["state_error"] < 1e-6
    assert result["output_error"] < 1e-6
    assert result["robust_accuracy"] == result["baseline_robust_accuracy"]
    own = evaluate(model, data, attack="fgsm", output=tmp_path / "own")
    assert own["robust_accuracy"] == result["robust_accuracy"]  # the same model, the same gradient


def test_without_baseline_or_attack(student: ImplicitModel, tmp_path: Path) -> None:
    result = evaluate(student, write_data(tmp_path, student), output=tmp_path / "report", samples=50, seed=4)
    assert result["samples"] == 50
    assert result["robust_accuracy"] == {}
    for key in ("baseline_accuracy", "accuracy_drop", "agreement", "state_error", "output_error", "attack"):
        assert result[key] is None, key


def test_without_labels(teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path) -> None:
    data = write_data(tmp_path, student, kind="plain")
    result = evaluate(
        student, data, baseline=teacher[1], attack="fgsm", epsilons=[0.3], output=tmp_path / "r"
    )
    assert result["accuracy"] is None
    assert result["f1"] is None
    assert 0 < result["agreement"] <= 1
    assert result["robust_accuracy"] == {"0.3": None}
    assert result["robust_agreement"]["0.3"] < 1
    assert "no labels" in (tmp_path / "r" / "report.html").read_text()


def test_regression(teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path) -> None:
    data = write_data(tmp_path, teacher[0], kind="targets")
    result = evaluate(
        student, data, baseline=teacher[1], attack="fgsm", epsilons=["0.1"], output=tmp_path / "r"
    )
    arrays = np.load(data)
    assert result["task"] == "regression"
    assert result["accuracy"] is None
    assert result["agreement"] is None
    assert result["mse"] == pytest.approx(
        np.square(student.predict(arrays["inputs"]) - arrays["labels"]).mean()
    )
    assert result["baseline_mse"] == pytest.approx(0.01, rel=0.2)
    assert result["robust_mse"]["0.1"] > result["mse"]


def test_a_cyclic_model_reports_its_iterations(tmp_path: Path) -> None:
    model = free_model(norm=0.9)
    result = evaluate(
        model, write_data(tmp_path, model), attack="inversion", epsilons=["0.1"], output=tmp_path / "r"
    )
    assert 1 < result["iterations_mean"] <= result["iterations_max"]
    assert result["well_posed_by"] == "norm"
    assert result["attack"]["inputs_perturbed"] == model.p - 1
    assert result["attack"]["gradient"] is None


def test_fgsm_moves_against_the_label_and_nothing_else(teacher: tuple[ImplicitModel, str]) -> None:
    attack = make_attack("fgsm", ["0.1"], 0.5, "model", 7)
    mask = attack.mask(784)
    assert len(mask) == 392
    assert np.array_equal(mask, attack.mask(784))
    assert not np.array_equal(mask, make_attack("fgsm", ["0.1"], 0.5, "model", 8).mask(784))
    u = np.random.default_rng(0).random((785, 3))
    u[-1] = 1.0
    moved = perturb(u, np.ones_like(u), mask, 0.1, (0.0, 1.0))
    untouched = np.setdiff1d(np.arange(785), mask)
    assert np.array_equal(moved[untouched], u[untouched])
    assert np.allclose(moved[mask], np.minimum(u[mask] + 0.1, 1.0))
    assert perturb(u, np.ones_like(u), mask, 0.1, None).max() > 1.0


def test_data_outside_the_unit_interval_are_not_clipped(student: ImplicitModel, tmp_path: Path) -> None:
    path = tmp_path / "wide.npz"
    rng = np.random.default_rng(0)
    np.savez(path, inputs=3 * rng.normal(size=(20, 6)), labels=rng.integers(0, 3, 20))
    result = evaluate(student, str(path), attack="inversion", output=tmp_path / "r")
    assert result["attack"]["clipped_to"] is None
    assert "not clipped" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("q", [1, 3])
def test_loss_gradients_equal_finite_differences(q: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(q, 5))
    labels = rng.integers(0, max(q, 2), 5)

    def loss(values: np.ndarray) -> np.ndarray:
        if q == 1:
            return np.logaddexp(0, values[0]) - labels * values[0]
        return -log_softmax(values, axis=0)[labels, np.arange(5)]

    for i in range(q):
        step = np.zeros_like(y)
        step[i] = 1e-6
        expected = (loss(y + step) - loss(y - step)) / 2e-6
        assert np.allclose(loss_gradient(CLASSIFICATION, y, labels)[i], expected, atol=1e-8)


@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 3)), st.integers(0, 1000))
def test_scores_equal_scikit_learn(labels: np.ndarray, seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=(4, len(labels)))
    score = Score(CLASSIFICATION, 4)
    for part in np.array_split(np.arange(len(labels)), 3):
        score.add(y[:, part], labels[part])
    assert score.accuracy == pytest.approx(accuracy_score(labels, y.argmax(axis=0)))
    assert score.f1 == pytest.approx(f1_score(labels, y.argmax(axis=0), average="macro"))
    assert score.mse is None


def test_tasks_and_labels() -> None:
    integers, floats = np.array([0, 1, 1]), np.array([0.5, 1.0, 2.0])
    assert decide_task(integers, 3, None) == CLASSIFICATION
    assert decide_task(integers, 1, None) == CLASSIFICATION
    assert decide_task(np.array([3, 5]), 1, None) == REGRESSION
    assert decide_task(floats, 3, None) == REGRESSION
    assert decide_task(None, 1, "sigmoid") == CLASSIFICATION
    assert decide_task(None, 1, None) == REGRESSION
    assert checked_labels(np.array([[0], [1]]), CLASSIFICATION, 1).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"0\.\.9.*3 outputs"):
        checked_labels(np.arange(10), CLASSIFICATION, 3)
    with pytest.raises(InputError, match="one integer a sample"):
        checked_labels(np.zeros((4, 3), dtype=int), CLASSIFICATION, 3)
    with pytest.raises(InputError, match="1 numbers a sample"):
        checked_labels(floats, REGRESSION, 3)
    with pytest.raises(InputError, match="NaN"):
        checked_labels(np.array([np.nan]), REGRESSION, 1)
    assert Relative().value is None


def test_refused_options(student: ImplicitModel, tmp_path: Path) -> None:
    data = write_data(tmp_path, student)
    report = tmp_path / "report"
    with pytest.raises(OptionError, match="needs the baseline"):
        evaluate(student, data, attack="fgsm", gradient="baseline", output=report)
    with pytest.raises(OptionError, match="fraction must be in"):
        evaluate(student, data, attack="fgsm", fraction=1.5, output=report)
    with pytest.raises(OptionError, match="epsilon must be a finite number > 0, got 'x'"):
        evaluate(student, data, attack="fgsm", epsilons=["x"], output=report)
    with pytest.raises(OptionError, match="attack must be one of"):
        evaluate(student, data, attack="pgd", output=report)
    plain = write_data(tmp_path, student, kind="plain")
    one = free_model(q=1, p=7)
    with pytest.raises(OptionError, match="needs targets"):
        evaluate(one, plain, attack="fgsm", output=report)
    with pytest.raises(InputError, match="a sample has shape"):
        evaluate(free_model(), data, output=report)
    assert not report.exists()


def test_a_baseline_that_does_not_fit(student: ImplicitModel, tmp_path: Path) -> None:
    other = replace(layered_model(inputs=6, q=5, certified=False), structure="exact").save(tmp_path / "o.h5")
    with pytest.raises(InputError, match="gives 5; the model takes 6 and gives 3"):
        evaluate(student, write_data(tmp_path, student), baseline=str(other), output=tmp_path / "r")


def test_a_baseline_with_other_blocks_gives_no_state_error(
    student: ImplicitModel, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    blocks = tuple(replace(b, name=f"x{b.name}", parents=()) for b in student.blocks)
    other = replace(student, blocks=blocks, output_parents=(), certificates=None, structure="exact")
    network = str(other.save(tmp_path / "other.h5"))
    result = evaluate(student, write_data(tmp_path, student), baseline=network, output=tmp_path / "r")
    assert result["state_error"] is None
    assert result["output_error"] < 1e-6
    assert "state errors cannot be measured" in log.text
    assert "another fingerprint" in result["notes"][0]  # the outputs agree


def test_inputs_on_another_scale_are_noticed(
    student: ImplicitModel, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "raw.npz", inputs=255 * rng.random((20, 6)), labels=rng.integers(0, 3, 20))
    evaluate(student, str(tmp_path / "raw.npz"), output=tmp_path / "r")
    assert "were they scaled alike?" in log.text


def test_reports_are_not_overwritten(student: ImplicitModel, tmp_path: Path) -> None:
    data = write_data(tmp_path, student)
    report = tmp_path / "report"
    evaluate(student, data, output=report)
    before = (report / "report.json").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(student, data, output=report)
    assert (report / "report.json").read_bytes() == before
    evaluate(student, data, output=report, overwrite=True)


def test_predict(student: ImplicitModel, tmp_path: Path) -> None:
    student = replace(student, output_map="softmax")
    data = write_data(tmp_path, student)
    result = predict(student, data, output=tmp_path / "y.npz", samples=20, seed=1)
    written, given_ = np.load(tmp_path / "y.npz"), np.load(data)
    assert result["arrays"] == ["classes", "indices", "labels", "outputs"]
    assert np.allclose(written["outputs"].sum(axis=1), 1.0)
    chosen = written["indices"]
    assert np.array_equal(chosen, np.sort(np.random.default_rng(1).choice(300, 20, replace=False)))
    assert np.allclose(written["outputs"], student.predict(given_["inputs"][chosen]))
    assert np.array_equal(written["labels"], given_["labels"][chosen])
    assert np.array_equal(written["classes"], written["outputs"].argmax(axis=1))
    with pytest.raises(OutputError, match="exists already"):
        predict(student, data, output=tmp_path / "y.npz")
    regression = predict(student, write_data(tmp_path, student, kind="targets"), output=tmp_path / "z.npz")
    assert regression["task"] == "regression"
    assert "classes" not in np.load(tmp_path / "z.npz")


@pytest.mark.parametrize("seed", [-1, -7])
def test_a_negative_seed_is_refused(student: ImplicitModel, tmp_path: Path, seed: int) -> None:
    data = write_data(tmp_path, student)
    with pytest.raises(OptionError, match=f"--seed must not be negative, got {seed}"):
        evaluate(student, data, attack="fgsm", seed=seed, output=tmp_path / "r")
    with pytest.raises(OptionError, match="--seed"):
        make_attack("fgsm", ["0.1"], None, "model", seed)


@pytest.mark.parametrize("epsilon", ["-0.1", "0", "-0", "nan", "inf", "", None, 0.0, float("nan")])
def test_sizes_of_an_attack_are_positive(epsilon: object) -> None:
    with pytest.raises(OptionError, match="finite number > 0, got"):
        make_attack("fgsm", [epsilon], None, "model", 0)  # type: ignore[list-item]


def test_sizes_of_an_attack_differ() -> None:
    with pytest.raises(OptionError, match=r"0\.004 and 4e-3 are equal"):
        make_attack("fgsm", ["0.004", "4e-3"], None, "model", 0)
    with pytest.raises(OptionError, match="are equal"):
        make_attack("fgsm", ["0.1", "0.1"], None, "model", 0)
    close = make_attack("fgsm", [0.12345671, 0.12345672, 0.3], None, "model", 0).epsilons
    assert close == (("0.12345671", 0.12345671), ("0.12345672", 0.12345672), ("0.3", 0.3))


@pytest.mark.parametrize(
    ("inputs", "method", "why"),
    [
        (np.full((20, 6), 0.5), "inversion", "[0.5, 0.5]"),  # the direction is 0
        (np.full((20, 6), 1e30), "fgsm", "[1e+30, 1e+30]"),  # epsilon is lost in rounding
    ],
)
def test_an_attack_that_changes_nothing_is_no_result(
    student: ImplicitModel,
    tmp_path: Path,
    log: pytest.LogCaptureFixture,
    inputs: np.ndarray,
    method: str,
    why: str,
) -> None:
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=np.arange(20) % 3)
    result = evaluate(
        student, str(tmp_path / "d.npz"), attack=method, epsilons=["0.004", "0.1"], output=tmp_path / "r"
    )
    (warning,) = result["warnings"]
    assert "changed no input value at epsilon 0.004, 0.1" in warning
    assert why in warning
    assert warning in log.text
    assert "changed no input value" in (tmp_path / "r" / "report.html").read_text()
    assert json.loads((tmp_path / "r" / "report.json").read_text())["warnings"] == [warning]


def test_an_attack_too_small_for_the_float32_of_the_baseline(
    teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.full((20, 6), 1e6), labels=np.arange(20) % 3)
    result = evaluate(
        student,
        str(tmp_path / "d.npz"),
        baseline=teacher[1],
        attack="inversion",
        epsilons=["0.004", "10"],
        output=tmp_path / "r",
    )
    (warning,) = [text for text in result["warnings"] if "float32" in text]
    assert "at epsilon 0.004: its" in warning


def test_an_attack_that_works_has_no_warning(student: ImplicitModel, tmp_path: Path) -> None:
    data = write_data(tmp_path, student)
    result = evaluate(student, data, attack="fgsm", epsilons=[0.1], output=tmp_path / "r")
    assert result["warnings"] == []
    assert result["notes"] == []


def test_another_baseline_is_named_as_such(
    teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    from simtool.cli.evaluate import describe

    other = replace(teacher[0], baseline_nnz=777, baseline_bytes=3200)
    network = str(other.save(tmp_path / "other.h5"))
    result = evaluate(student, write_data(tmp_path, student), baseline=network, output=tmp_path / "r")
    assert (result["baseline_nnz"], result["baseline_bytes"]) == (1000, 4000)
    assert result["sparsity"] == 1 - student.nnz / 1000
    assert (result["baseline"]["nnz"], result["baseline"]["bytes"]) == (777, 3200)
    assert result["denominator"].startswith("1000 non-zero")
    assert "the network the model was made from" in result["denominator"]
    (warning,) = result["warnings"]
    assert "777 non-zero parameters of 800, that network had 1000 of 1000" in warning
    assert warning in log.text
    page = (tmp_path / "r" / "report.html").read_text()
    assert '<div class="note"' in page
    assert '<td class="n">777</td>' in page
    assert "the network the model was made from, biases counted" in page
    shown = describe(result)
    assert "warning: the baseline" in shown
    assert shown.split("non-zero parameters")[1].split()[1] == "777"


def test_a_fingerprint_alone_is_a_note_where_the_states_agree(
    teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path
) -> None:
    from simtool.cli.evaluate import describe

    data = write_data(tmp_path, student)
    same = evaluate(teacher[0], data, baseline=teacher[1], output=tmp_path / "same")
    assert same["state_error"] < 1e-3
    assert same["warnings"] == []
    (note,) = same["notes"]
    assert "another fingerprint" in note
    page = (tmp_path / "same" / "report.html").read_text()
    assert '<div class="note"' not in page
    assert "Note: The baseline" in page
    assert "note: the baseline" in describe(same)
    sparse_one = evaluate(student, data, baseline=teacher[1], output=tmp_path / "sparse")
    assert sparse_one["state_error"] > 1e-3
    assert "may not be the network" in sparse_one["warnings"][0]
    assert sparse_one["denominator"].endswith("of the baseline, biases counted")


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("output_map", [None, "softmax"])
def test_one_hot_labels_are_refused(
    student: ImplicitModel, tmp_path: Path, kind: type, output_map: str | None
) -> None:
    model = replace(student, output_map=output_map)
    inputs = np.random.default_rng(0).random((20, 6))
    labels = np.eye(3, dtype=kind)[np.arange(20) % 3]
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=labels)
    with pytest.raises(InputError, match=r"one-hot rows, shape \(.*argmax"):
        evaluate(model, str(tmp_path / "d.npz"), output=tmp_path / "r")
    assert predict(model, str(tmp_path / "d.npz"), output=tmp_path / "y.npz")["task"] == CLASSIFICATION
    assert not (tmp_path / "r").exists()
    labels[0] = 0.5, 0.5, 0.0
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=labels)
    # one sample that looks one-hot does not make a regression a classification
    result = evaluate(model, str(tmp_path / "d.npz"), output=tmp_path / "r", samples=1, seed=1)
    assert result["task"] == REGRESSION
    column = (np.arange(20) % 2).astype(float)[:, None]
    assert decide_task(column, 1, None) == REGRESSION


def test_predict_replaces_only_what_it_wrote(student: ImplicitModel, tmp_path: Path) -> None:
    data, path = write_data(tmp_path, student), student.save(tmp_path / "model.h5")
    mine = tmp_path / "y.npz"
    predict(path, data, output=mine)
    predict(path, data, output=mine, overwrite=True, samples=5)
    assert len(np.load(mine)["outputs"]) == 5
    for name in ("y.h5", "y", "model.h5", "y.NPZ.txt"):
        with pytest.raises(OptionError, match=r"must end in \.npz, got"):
            predict(path, data, output=tmp_path / name, overwrite=True)
    foreign, text, link = tmp_path / "foreign.npz", tmp_path / "text.npz", tmp_path / "link.npz"
    np.savez(foreign, weights=np.ones(3), outputs=np.ones(3))
    text.write_text("precious")
    link.symlink_to(mine)
    fifo = tmp_path / "fifo.npz"
    os.mkfifo(fifo)
    for target in (foreign, text, link, fifo, Path(data)):
        before = target.read_bytes() if target != fifo else b""
        with pytest.raises(OutputError, match="Choose another"):
            predict(path, data, output=target, overwrite=True)
        assert target == fifo or target.read_bytes() == before
    # even an output of predict is not replaced while it is read as data
    np.savez(mine, outputs=np.load(data)["inputs"], indices=np.arange(300))
    before = mine.read_bytes()
    for spec in (f"{mine}:outputs", f"{mine}:outputs,indices"):
        with pytest.raises(OutputError, match="is read by this command"):
            predict(path, spec, output=mine, overwrite=True)
    assert mine.read_bytes() == before


def test_terminal_lines_fit(
    teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path
) -> None:
    from simtool.cli.evaluate import describe

    data = write_data(tmp_path, student)
    for baseline, other in ((None, None), (teacher[1], 12_345_678)):
        model = replace(student, baseline_nnz=other or 1000)
        result = evaluate(
            model,
            data,
            baseline=baseline,
            attack="fgsm",
            output=tmp_path / "r",
            overwrite=baseline is not None,
        )
        result["report"], lines = "r", describe(result | {"report": "r"}).splitlines()
        assert max(len(line) for line in lines if teacher[1] not in line) <= 80
        assert ("baseline" in lines[0].split()) == (baseline is not None)
        assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_paths_of_any_alphabet_under_any_locale(student: ImplicitModel, tmp_path: Path, locale: str) -> None:
    folder = tmp_path / "données"
    folder.mkdir()
    model, data = student.save(folder / "modèle.h5"), write_data(folder, student)
    environment = os.environ | {
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    for extra in ([], ["--json"]):
        report = folder / f"report{len(extra)}"
        done = subprocess.run(
            [sys.executable, "-m", "simtool", "evaluate", model, "--data", data, "-o", report, *extra],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert "données" in (report / "report.html").read_text(encoding="utf-8")
        assert json.loads((report / "report.json").read_text(encoding="utf-8"))["data"]["source"] == data


def test_commands(teacher: tuple[ImplicitModel, str], student: ImplicitModel, tmp_path: Path) -> None:
    from simtool.cli import main

    run = CliRunner().invoke
    data, path = write_data(tmp_path, student), str(student.save(tmp_path / "model.h5"))
    report = str(tmp_path / "report")
    arguments = [path, "--data", data, "--baseline", teacher[1], "--attack", "fgsm", "-o", report, "--quiet"]
    done = run(main, ["evaluate", *arguments])
    assert done.exit_code == 0, done.output
    assert "1000 non-zero explicit parameters of the baseline" in done.stdout
    assert "fgsm, epsilon 0.004" in done.stdout
    refused = run(main, ["evaluate", *arguments, "--json"])
    assert refused.exit_code == 1
    assert "--overwrite" in json.loads(refused.stdout)["error"]
    done = run(main, ["evaluate", *arguments, "--json", "--overwrite"])
    assert set(KEYS) <= set(json.loads(done.stdout))
    lonely = run(
        main, ["evaluate", path, "--data", data, "--trust-model", "-o", str(tmp_path / "x"), "--json"]
    )
    assert lonely.exit_code == 1
    assert "--baseline" in json.loads(lonely.stdout)["error"]
    done = run(main, ["predict", path, "--data", data, "-o", str(tmp_path / "y.npz"), "--json", "--quiet"])
    assert json.loads(done.stdout)["samples"] == 300
    for extra in (["--epsilon", "0.1"], ["--gradient", "model", "--attack", "inversion"]):
        wrong = run(main, ["evaluate", path, "--data", data, "-o", str(tmp_path / "x"), "--json", *extra])
        assert wrong.exit_code == 1
        assert "--attack inversion" in json.loads(wrong.stdout)["error"]
    for verb in ("evaluate", "predict"):
        assert "Example: simtool" in run(main, [verb, "--help"]).stdout
