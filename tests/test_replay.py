"""A row of a run, dumped and replayed; and the status of every row, in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from row_problems import make_rows

import simtool
from simtool import hdf5
from simtool.certificate import certify
from simtool.cli import main
from simtool.errors import FormatError, InputError, OptionError, OutputError, SolverError
from simtool.model import load_model
from simtool.row_status import STATUSES, RowStatus
from simtool.solvers import conic
from simtool.stages.inspect import inspect
from simtool.stages.replay import dump_row, is_dump, read_dump, replay
from simtool.stages.sparsify.answer import Task, answer
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify


@pytest.fixture(scope="module")
def run(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "run"
    sparsify(digits["states"], folder, SparsifyOptions(objective="l1", beta=0.5), engine="serial")
    return folder


def test_every_status_has_a_label_and_a_remedy() -> None:
    assert set(STATUSES) == set(RowStatus)
    assert len({status.label for status in RowStatus}) == len(STATUSES)
    assert [status.code for status in STATUSES] == list(range(len(STATUSES)))
    assert all(len(status.value.split()) > 5 for status in RowStatus)


def test_status_says_why_a_row_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(1, kappa=0.5)
    task = Task("lasso", None, "relaxed", "clarabel", 1e-6, 6)
    assert {STATUSES[code] for code in answer(rows, task).status} == {RowStatus.CERTIFIED}
    strict = replace(task, tolerance=1e-16)
    assert RowStatus.GAP in {STATUSES[code] for code in answer(rows, strict).status}

    def gives_up(self: Any, z: np.ndarray) -> np.ndarray:
        raise SolverError("no solution")

    monkeypatch.setattr(conic._Problem, "solve", gives_up)
    assert {STATUSES[code] for code in answer(rows, task).status} == {RowStatus.GAVE_UP}


@pytest.mark.parametrize(("solver", "match"), [("simplex", "relaxed"), ("native", "exact")])
def test_solvers_that_do_not_fit_are_refused(solver: str, match: str) -> None:
    with pytest.raises(OptionError, match="--solver must be one of"):
        Task("lasso", None, match, solver, 1e-6, 1)


def test_a_model_holds_statuses_and_old_files_without_them_load(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    assert model.certificates is not None
    assert model.certificates.count_by_status() == {"certified": len(model.certificates)}
    old = tmp_path / "old.h5"
    old.write_bytes((run / "model.h5").read_bytes())
    with h5py.File(old, "r+") as file:
        del file["certificates/status"]
        for name in ("sha256",):
            if name in file:
                del file[name]
    again = load_model(old)
    assert again.certificates is not None
    assert again.certificates.count_by_status() == {"certified": len(model.certificates)}
    with h5py.File(old, "r+") as file:
        file["certificates"].create_dataset("status", data=np.full(len(model.certificates), 99, np.uint8))
    with pytest.raises(FormatError, match="row status 99 is unknown"):
        load_model(old)
    assert hdf5.kind_of(old) == "model"


@pytest.mark.parametrize("row", [0, 40, -1])
def test_a_dumped_row_is_the_row_of_the_run(
    row: int, run: Path, digits: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(run)
    assert model.certificates is not None
    row %= len(model.certificates)
    path = dump_row(run, row, tmp_path / "row.npz", states=digits["states"])
    dump = read_dump(path)
    indices, values = model.row(row)
    assert dump.features[dump.w != 0].tolist() == indices.tolist()
    assert dump.w[dump.w != 0].tolist() == values.tolist()
    proof = certify(dump.problem, dump.w[None], 1e-6)
    assert proof.primal[0] == pytest.approx(model.certificates.primal[row], rel=1e-12)
    for solver in (None, "clarabel"):
        found = replay(path, solver)
        assert found["stored"]["certified"]
        assert found["solved"]["certified"]
        assert found["largest_difference"] < 1e-4
    assert simtool.replay is replay


@pytest.mark.parametrize(
    "options",
    [
        SparsifyOptions(objective="l1", beta=0.5, sign="nonnegative"),
        SparsifyOptions(objective="lasso", structure="free", kappa=0.5),
        SparsifyOptions(objective="perspective", match="exact"),
        SparsifyOptions(objective=f"{Path(__file__).parents[1] / 'examples' / 'own_objectives.py'}:smooth"),
    ],
    ids=["sign", "free", "exact", "own"],
)
def test_rows_of_every_kind_of_run_can_be_replayed(
    options: SparsifyOptions, digits: dict[str, Path], tmp_path: Path
) -> None:
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    model = load_model(tmp_path / "run")
    assert model.certificates is not None
    found = replay(dump_row(tmp_path / "run", 3, tmp_path / "row.npz", states=digits["states"]))
    assert found["stored"]["status"] == found["solved"]["status"] == model.certificates.status_of(3).label
    assert found["stored"]["primal"] == pytest.approx(model.certificates.primal[3], rel=1e-9)


def test_masks_and_weights_are_dumped(digits: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "run"
    sparsify(digits["states"], tmp_path / "first", SparsifyOptions(objective="l1", beta=3.0), engine="serial")
    weights = np.ones(300)
    weights[::3] = 0.0
    np.save(tmp_path / "weights.npy", weights)
    options = SparsifyOptions(
        objective="least-squares", mask=str(tmp_path / "first"), weight_samples=str(tmp_path / "weights.npy")
    )
    sparsify(digits["states"], base, options, engine="serial")
    dump = read_dump(dump_row(base, 5, tmp_path / "row.npz", states=digits["states"]))
    allowed = load_model(tmp_path / "first").row(5)[0]
    assert set(dump.features[dump.w != 0]) <= set(allowed)
    stored = load_model(base).certificates
    assert stored is not None
    proof = certify(dump.problem, dump.w[None], 1e-6)
    assert proof.primal[0] == pytest.approx(stored.primal[5], rel=1e-9)
    assert proof.certified.all()


def test_what_cannot_be_dumped_is_said(run: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    from simtool.demo import NETWORK
    from simtool.networks import NetworkSpec

    simtool.extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=20, output=other)
    with pytest.raises(InputError, match=r"is not the file that .* was made from"):
        dump_row(run, 0, tmp_path / "row.npz", states=other)
    assert not (tmp_path / "row.npz").exists()
    with pytest.raises(InputError, match=r"row must be in 0\.\.89"):
        dump_row(run, 10_000, tmp_path / "row.npz", states=digits["states"])
    with pytest.raises(OptionError, match="needs the folder of a run"):
        dump_row(run / "model.h5", 0, tmp_path / "row.npz", states=digits["states"])
    (tmp_path / "there.npz").touch()
    with pytest.raises(OutputError, match="exists already"):
        dump_row(run, 0, tmp_path / "there.npz", states=digits["states"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dump": "row.npz", "row": 1}, "needs --states FILE"),
        ({"dump": "row.npz", "states": "s.h5"}, "needs --row i"),
        ({"states": "s.h5"}, "belongs to --dump"),
        ({"solver": "native"}, "is no such file"),
    ],
)
def test_options_that_need_each_other(options: dict[str, Any], message: str, run: Path) -> None:
    with pytest.raises(OptionError, match=message):
        inspect(run, **options)


def test_files_that_are_no_rows_are_refused(run: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_dump(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    assert not is_dump(tmp_path / "text.npz")
    with pytest.raises(FormatError, match="is no row file"):
        read_dump(tmp_path / "text.npz")
    np.savez(tmp_path / "data.npz", inputs=np.zeros(3))
    with pytest.raises(FormatError, match="is not a row written by"):
        read_dump(tmp_path / "data.npz")
    good = dump_row(run, 0, tmp_path / "row.npz", states=digits["states"])
    with np.load(good) as archive:
        parts = dict(archive)
    for change, message in (
        ({"format_version": 9}, "format version 9"),
        ({"w": np.zeros(2)}, "impossible row"),
        ({"loss_weight": -1.0}, "impossible row"),
        ({"solver": "magic"}, "impossible row"),
        ({"W": np.full_like(parts["W"], np.nan)}, "NaN or infinity in W"),
    ):
        np.savez(tmp_path / "bad.npz", **{**parts, **change})
        with pytest.raises(FormatError, match=message):
            read_dump(tmp_path / "bad.npz")


def test_the_command(run: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    row = tmp_path / "row.npz"
    command = ["inspect", str(run), "--row", "2", "--dump", str(row), "--states", str(digits["states"])]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "certificate.status" in done.output
    assert "certified" in done.output
    shown = CliRunner().invoke(main, ["inspect", str(row), "--solver", "clarabel", "--json"])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert result["kind"] == "row-dump"
    assert result["solver"] == "clarabel"
    assert result["solved"]["certified"]
