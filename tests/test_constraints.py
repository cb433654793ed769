"""Signs, boxes, masks and sample weights, from the command line to the certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simtool.cli import main
from simtool.errors import FormatError, InputError, OptionError
from simtool.model import KINDS, ImplicitModel, load_model
from simtool.stages.sparsify.constraints import pieces
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states


def _run(states: Path, out: Path, **options: Any) -> tuple[dict[str, Any], ImplicitModel]:
    result = sparsify(states, out, SparsifyOptions(**options), engine="serial")
    assert result["certified"] == result["rows"]
    return result, load_model(out / "model.h5")


def _matrix(model: ImplicitModel) -> np.ndarray:
    return np.block([[model.A.toarray(), model.B.toarray()], [model.C.toarray(), model.D.toarray()]])


CASES = [
    ("least-squares", "layered"),
    ("lasso", "layered"),
    ("l1", "dag"),
    ("perspective", "free"),
    ("elastic-net", "free"),
]


@pytest.mark.parametrize(("objective", "structure"), CASES)
@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"sign": "nonnegative"}, 0.0, np.inf),
        ({"sign": "nonpositive"}, -np.inf, 0.0),
        ({"box": "-0.05,0.02"}, -0.05, 0.02),
        ({"sign": "nonnegative", "box": "-0.05,0.02"}, 0.0, 0.02),
    ],
    ids=["nonnegative", "nonpositive", "box", "both"],
)
def test_signs_and_boxes_hold_but_for_biases(
    digits: dict[str, Path],
    tmp_path: Path,
    objective: str,
    structure: str,
    options: dict[str, str],
    low: float,
    high: float,
) -> None:
    _, model = _run(digits["states"], tmp_path / "run", objective=objective, structure=structure, **options)
    matrix = _matrix(model)
    assert matrix[:, :-1].min() >= low
    assert matrix[:, :-1].max() <= high
    assert np.count_nonzero(matrix[:, :-1])
    # Something must have been held, or the test shows nothing; biases go where they like.
    reached = [bound for bound in (low, high) if np.isfinite(bound) and bound != 0.0]
    assert all((matrix[:, :-1] == bound).any() for bound in reached)
    if objective != "lasso":
        assert ((matrix[:, -1] < low) | (matrix[:, -1] > high)).any()


@pytest.mark.parametrize(("objective", "structure"), CASES)
def test_a_mask_is_kept_to_and_each_row_is_optimal_within_it(
    digits: dict[str, Path], tmp_path: Path, objective: str, structure: str
) -> None:
    with open_states(digits["states"]) as states:
        h = states.header
    rng = np.random.default_rng(0)
    mask = rng.random((h.states + h.outputs, h.states + h.inputs)) < 0.4
    np.save(tmp_path / "mask.npy", mask)
    _, model = _run(
        digits["states"],
        tmp_path / "run",
        objective=objective,
        structure=structure,
        mask=str(tmp_path / "mask.npy"),
    )
    matrix = _matrix(model)
    assert not matrix[~mask].any()
    assert np.count_nonzero(matrix)
    table = model.certificates
    assert table is not None
    assert {KINDS[kind] for kind in table.kind} == {"fixed-support"}
    # The same rows by cone programs, which know of masks in their own way.
    other = sparsify(
        digits["states"],
        tmp_path / "referee",
        SparsifyOptions(
            objective=objective, structure=structure, mask=str(tmp_path / "mask.npy"), solver="clarabel"
        ),
        engine="serial",
    )
    referee = load_model(tmp_path / "referee" / "model.h5").certificates
    assert referee is not None
    assert other["certified"] > 0
    certified = referee.certified
    np.testing.assert_allclose(table.primal[certified], referee.primal[certified], rtol=2e-6, atol=1e-9)


def test_a_model_as_mask_refits_its_support(digits: dict[str, Path], tmp_path: Path) -> None:
    _, sparse = _run(digits["states"], tmp_path / "sparse", kappa=0.3)
    result, refit = _run(
        digits["states"], tmp_path / "refit", objective="least-squares", mask=str(tmp_path / "sparse")
    )
    assert not _matrix(refit)[_matrix(sparse) == 0].any()
    before, after = sparse.certificates, refit.certificates
    assert before is not None
    assert after is not None
    assert result["nnz"] <= sparse.nnz
    assert after.primal.sum() < before.primal.sum()


def test_weights_of_samples_count_as_repetitions(digits: dict[str, Path], tmp_path: Path) -> None:
    """Weight 0 leaves a sample out; the others are the problem on those samples, whatever the solver does inside."""
    with open_states(digits["states"]) as states:
        m = states.header.samples
    weights = np.zeros(m)
    weights[::2] = 3.0
    np.save(tmp_path / "weights.npy", weights)
    options = {"objective": "l1", "beta": 0.3, "weight_samples": str(tmp_path / "weights.npy")}
    _, weighted = _run(digits["states"], tmp_path / "weighted", **options)
    _, plain = _run(digits["states"], tmp_path / "plain", objective="l1", beta=0.3)
    np.save(tmp_path / "ones.npy", np.ones(m))
    _, ones = _run(
        digits["states"], tmp_path / "ones", **{**options, "weight_samples": str(tmp_path / "ones.npy")}
    )
    assert np.array_equal(_matrix(ones), _matrix(plain))
    assert not np.allclose(_matrix(weighted), _matrix(plain))
    table, reference = weighted.certificates, plain.certificates
    assert table is not None
    assert reference is not None
    with open_states(digits["states"]) as states:
        w = np.concatenate([states.X[:], states.U[:]]).astype(float)
        z = np.concatenate([states.Z[:], states.Y[:]]).astype(float)
    for model in (weighted, plain):
        matrix = _matrix(model)
        loss = 0.1 * (weights * np.square(z - matrix @ w)).sum(axis=1) + 0.3 * np.abs(matrix).sum(axis=1)
        # The weighted rows are the best of all for the weighted loss, and their primal value is that loss.
        if model is weighted:
            np.testing.assert_allclose(table.primal, loss, rtol=1e-6)
        else:
            assert np.all(table.primal <= loss * (1 + 1e-6))


def test_the_spec_knows_files_by_content(digits: dict[str, Path], tmp_path: Path) -> None:
    with open_states(digits["states"]) as states:
        h = states.header
    mask = np.ones((h.states + h.outputs, h.states + h.inputs), dtype=np.int8)
    np.save(tmp_path / "one.npy", mask)
    np.save(tmp_path / "same.npy", mask.astype(float))
    first = sparsify(
        digits["states"], tmp_path / "run", SparsifyOptions(mask=str(tmp_path / "one.npy")), engine="serial"
    )
    again = sparsify(
        digits["states"], tmp_path / "run", SparsifyOptions(mask=str(tmp_path / "same.npy")), engine="serial"
    )
    assert again == first
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert str(tmp_path) not in json.dumps(spec)
    mask[0, 0] = 0
    np.save(tmp_path / "other.npy", mask)
    with pytest.raises(Exception, match=r"options\.mask"):
        sparsify(
            digits["states"],
            tmp_path / "run",
            SparsifyOptions(mask=str(tmp_path / "other.npy")),
            engine="serial",
        )


@pytest.mark.parametrize("box", ["1", "0,0", "0.5,1", "-1,-0.5", "a,b", "1,-1", "nan,1", "", "-1,1,2"])
def test_boxes_that_are_none_are_refused(box: str) -> None:
    with pytest.raises(OptionError, match=r"--box must be LO,HI"):
        SparsifyOptions(box=box)


def test_what_files_must_hold_is_said(digits: dict[str, Path], tmp_path: Path) -> None:
    def refused(kind: type[Exception], match: str, **options: str) -> None:
        with pytest.raises(kind, match=match):
            sparsify(digits["states"], tmp_path / "run", SparsifyOptions(**options), engine="serial")
        assert not (tmp_path / "run").exists()

    refused(InputError, "there is no such file", mask=str(tmp_path / "missing.npy"))
    (tmp_path / "text.npy").write_text("hello")
    refused(FormatError, "is no readable .npy file", mask=str(tmp_path / "text.npy"))
    refused(FormatError, "is no readable .npy file", weight_samples=str(tmp_path / "text.npy"))
    np.save(tmp_path / "small.npy", np.ones((2, 2)))
    refused(OptionError, r"holds \(2, 2\) of float64", mask=str(tmp_path / "small.npy"))
    with open_states(digits["states"]) as states:
        h = states.header
    np.save(tmp_path / "two.npy", np.full((h.states + h.outputs, h.states + h.inputs), 2))
    refused(OptionError, "numbers other than 0 and 1", mask=str(tmp_path / "two.npy"))
    for bad, seen in (
        (-1.0, "-1.0"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (0.0, "only zeros"),
        (1e15, "1e\\+15"),
    ):
        np.save(tmp_path / "w.npy", np.full(h.samples, bad))
        refused(OptionError, seen, weight_samples=str(tmp_path / "w.npy"))
    with pytest.raises(OptionError, match="leave one of them out"):
        SparsifyOptions(mask="m.npy", eliminate="safe")


def test_sign_without_a_word_is_nonnegative(digits: dict[str, Path], tmp_path: Path) -> None:
    run = CliRunner().invoke(
        main,
        [
            "sparsify",
            str(digits["states"]),
            "--sign",
            "--box",
            "-1,1",
            "-o",
            str(tmp_path / "run"),
            "--engine",
            "serial",
            "--json",
        ],
    )
    assert run.exit_code == 0, run.output
    assert _matrix(load_model(tmp_path / "run" / "model.h5"))[:, :-1].min() >= 0.0
    told = CliRunner().invoke(
        main, ["sparsify", str(digits["states"]), "--box", "2,3", "-o", str(tmp_path / "bad")]
    )
    assert told.exit_code == 1
    assert "--box must be LO,HI" in told.output


def test_pieces_cover_every_row_once_and_hide_nothing_smooth() -> None:
    rng = np.random.default_rng(0)
    allowed, smooth = rng.random((9, 6)) < 0.5, np.array([True, False, True, False, False, True])
    found = pieces(allowed, smooth, 9)
    assert sorted(np.concatenate([at for at, _ in found]).tolist()) == list(range(9))
    for at, features in found:
        assert allowed[np.ix_(at, features[smooth[features]])].all()
        assert not (allowed[at][:, np.setdiff1d(np.arange(6), features)]).any()
    assert len(pieces(None, smooth, 9)) == 1
