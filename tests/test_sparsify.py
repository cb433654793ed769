"""The sparsify stage on real states: answers, engines, resuming, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from simtool import environment
from simtool.activations import make
from simtool.blocks import BIAS, INPUT, Block
from simtool.certificate import certify
from simtool.engines.shards import read_shard, write_shard
from simtool.errors import FormatError, InputError, OptionError, OutputError, SpecChanged, WorkerError
from simtool.model import load_model
from simtool.stages.sparsify import estimate, finish
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions, objective_of, resolve
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.spec import packages_of
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sparsify.structure import SHARD_ROWS_MOST, row_groups, shards

BLOCKS = (
    Block("late", make("relu"), 0, 3, (3,), ("early", BIAS)),
    Block("early", make("tanh"), 3, 4, (2, 2), (INPUT, BIAS)),
)


# --- structure ---------------------------------------------------------------------------------------------------------


def test_layered_rows_use_what_the_network_feeds() -> None:
    late, early, out = row_groups("layered", BLOCKS, ("late", BIAS), p=6, q=2, has_bias=True)
    assert late.features.tolist() == [3, 4, 5, 6, 12]
    assert early.features.tolist() == [7, 8, 9, 10, 11, 12]
    assert out.features.tolist() == [0, 1, 2, 12]
    assert out.rows == (7, 9)


def test_dag_rows_use_earlier_layers_and_all_inputs() -> None:
    late, early, out = row_groups("dag", BLOCKS, ("late", BIAS), p=6, q=2, has_bias=True)
    assert late.features.tolist() == list(range(3, 13))
    assert early.features.tolist() == list(range(7, 13))
    assert out.features.tolist() == list(range(13))


def test_free_rows_use_everything_but_themselves() -> None:
    states, out = row_groups("free", BLOCKS, ("late", BIAS), p=6, q=2, has_bias=True)
    assert states.excludes_itself
    assert not out.excludes_itself
    assert states.features.tolist() == list(range(13))


@pytest.mark.parametrize("samples", [10, 10**5, 10**7])
@pytest.mark.parametrize("structure", ["layered", "dag", "free"])
def test_shards_partition_the_rows(structure: str, samples: int) -> None:
    blocks = (
        Block("b", make("relu"), 0, 100, (100,), ("a", BIAS)),
        Block("a", make("relu"), 100, 33, (33,), (INPUT, BIAS)),
    )
    pieces = shards(row_groups(structure, blocks, ("b", BIAS), p=9, q=5, has_bias=True), [samples])
    rows = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
    assert rows.tolist() == list(range(138))
    assert max(piece.stop - piece.start for piece in pieces) <= SHARD_ROWS_MOST


# --- options -----------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_design() -> None:
    lasso = resolve(SparsifyOptions(), 1.0)
    assert (lasso.kappa, lasso.kappa_on, lasso.lambda1) == (0.99, "ab", 0.5)
    l1 = objective_of(resolve(SparsifyOptions(objective="l1"), 1.0), False, 10)
    assert (l1.loss_weight, l1.penalty.lam1, l1.kappa) == (0.1, 1e-3, None)
    perspective = objective_of(resolve(SparsifyOptions(objective="perspective"), 1.0), False, 10)
    assert (perspective.penalty.lam0, perspective.penalty.lam2) == (1e-3, 1e-3)
    net = objective_of(resolve(SparsifyOptions(objective="elastic-net"), 1.0), False, 10)
    assert (net.loss_weight, net.penalty.lam2, net.penalty.lam0) == (0.5, 5e-3, 0.0)
    assert resolve(SparsifyOptions(objective="least-squares"), 1.0).kappa is None
    assert objective_of(lasso, True, 10).kappa is None


def test_mean_loss_divides_by_the_samples() -> None:
    objective = objective_of(resolve(SparsifyOptions(mean_loss=True), 1.0), False, 50)
    assert objective.loss_weight == 0.5 / 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -0.1}, "--kappa must be finite and >= 0, got -0.1"),
        ({"kappa": float("nan")}, "--kappa must be finite"),
        ({"objective": "lasso", "alpha": 1e-3}, "--alpha does not belong to --objective lasso"),
        ({"objective": "l1", "kappa_on": "ab"}, "--kappa-on ab says what kappa bounds"),
        ({"objective": "ridge"}, "--objective must be one of"),
        ({"lambda1": 0.0}, "--lambda1 must lie in"),
        ({"tol": 1.0}, "--tol must lie in"),
        ({"kappa_on": "b"}, "--kappa-on must be one of a, ab"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(**options)


def test_kappa_of_a_free_structure_depends_on_the_activations() -> None:
    with pytest.raises(OptionError, match=r"got 1\.2\. Pass --kappa 0\.95, or --structure layered"):
        resolve(SparsifyOptions(structure="free", kappa=1.2), 1.0)
    with pytest.raises(OptionError, match=r"largest Lipschitz constant 1\.09984"):
        resolve(SparsifyOptions(structure="free", kappa=0.95), 1.09984)
    assert resolve(SparsifyOptions(structure="free"), 1.09984).kappa == pytest.approx(0.99 / 1.09984)
    assert resolve(SparsifyOptions(structure="free", kappa=3.0), 0.25).kappa == 3.0
    assert resolve(SparsifyOptions(structure="layered", kappa=1.2), 1.0).kappa == 1.2


def test_kappa_one_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="simtool"):
        assert resolve(SparsifyOptions(structure="free", kappa=1.0), 1.0).kappa == 1.0
    assert "proves nothing" in caplog.text


# --- the stage ---------------------------------------------------------------------------------------------------------

L1 = SparsifyOptions(objective="l1", beta=4.0)


def test_result_has_the_contract_keys(digits: dict[str, Path], tmp_path: Path) -> None:
    result = sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert set(result) >= {
        *("rows", "certified", "max_relative_gap", "nnz", "baseline_nnz", "sparsity", "norm_a_inf"),
        *("norm_a_inf_raw", "well_posed", "well_posed_by", "seconds", "solve_seconds"),
        *("peak_memory_bytes", "engine", "workers", "run", "model"),
    }
    assert result["certified"] == result["rows"] == 90
    assert result["well_posed_by"] == "acyclic"
    assert result["norm_a_inf"] < 1 < result["norm_a_inf_raw"]
    assert 0 < result["nnz"] < result["baseline_nnz"]
    assert result["sparsity"] == pytest.approx(1 - result["nnz"] / result["baseline_nnz"])
    assert not (tmp_path / "run" / "work").exists()


@pytest.mark.parametrize("structure", ["layered", "dag", "free"])
def test_stored_certificates_can_be_recomputed_from_the_model(
    digits: dict[str, Path], tmp_path: Path, structure: str
) -> None:
    """The model alone, with the states, gives the same proof: nothing was changed after it."""
    from simtool.design import Design
    from simtool.problem import RowSet
    from simtool.states import open_states

    sparsify(digits["states"], tmp_path / "run", SparsifyOptions(structure=structure), engine="serial")
    model = load_model(tmp_path / "run")
    table = model.certificates
    assert table is not None
    plan = Plan(RunFolder(tmp_path / "run").read_spec())
    with open_states(digits["states"]) as states:
        w = np.concatenate([states.X[:], states.U[:]])
        t = np.concatenate([states.Z[:], states.Y[:]])
    for group in plan.groups:
        rows = np.arange(*group.rows)
        dense = np.zeros((rows.size, plan.n + plan.p))
        for k, i in enumerate(rows):
            indices, values = model.row(int(i))
            dense[k, indices] = values
        again = certify(
            RowSet(
                Design(w[group.features]),
                t[rows],
                objective_of(plan.options, group.is_output, plan.m),
                plan.bounded(group),
                plan.allowed(group, rows),
            ),
            np.ascontiguousarray(dense[:, group.features]),
            1e-6,
        )
        assert again.certified.all()
        # A row that fits exactly leaves rounding alone, and that depends on which rows share a product.
        np.testing.assert_allclose(again.primal, table.primal[rows], rtol=1e-10, atol=1e-15)


def test_free_rows_never_use_their_own_state(digits: dict[str, Path], tmp_path: Path) -> None:
    result = sparsify(digits["states"], tmp_path / "run", SparsifyOptions(structure="free"), engine="serial")
    model = load_model(tmp_path / "run")
    assert not model.A.diagonal().any()
    assert result["well_posed"]
    assert result["norm_a_inf_raw"] <= 0.99 * (1 + 1e-12)


def test_every_engine_and_worker_count_gives_the_same_bytes(digits: dict[str, Path], tmp_path: Path) -> None:
    contents = set()
    for name, engine, workers in [
        ("s", "serial", None),
        ("p1", "process", 1),
        ("p2", "process", 2),
        ("p3", "process", 3),
    ]:
        sparsify(digits["states"], tmp_path / name, L1, engine=engine, workers=workers)
        contents.add((tmp_path / name / "model.h5").read_bytes())
    assert len(contents) == 1


def test_a_finished_run_returns_its_result(digits: dict[str, Path], tmp_path: Path) -> None:
    first = sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    stamp = (tmp_path / "run" / "model.h5").stat().st_mtime_ns
    assert sparsify(digits["states"], tmp_path / "run", L1, engine="process", workers=2) == first
    assert (tmp_path / "run" / "model.h5").stat().st_mtime_ns == stamp


def test_missing_and_corrupted_shards_are_solved_again(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    folder = RunFolder(tmp_path / "run")
    before = folder.model.read_bytes()
    folder.shard(0).unlink()
    damaged = bytearray(folder.shard(1).read_bytes())
    damaged[-20] ^= 0xFF
    folder.shard(1).write_bytes(damaged)
    folder.shard(2).write_bytes(b"")
    assert [folder.holds(folder.shard(i)) for i in range(4)] == [False, False, False, True]
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert folder.model.read_bytes() == before


def test_a_damaged_model_of_a_finished_run_is_written_again(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    model = tmp_path / "run" / "model.h5"
    before = model.read_bytes()
    model.write_bytes(before[:200])
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert model.read_bytes() == before


@pytest.mark.parametrize("content", ["{}", '{"result": {"rows": 90}}', "not json", '{"result": 3}'])
def test_a_damaged_timing_file_costs_only_a_merge(
    content: str, digits: dict[str, Path], tmp_path: Path
) -> None:
    first = sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    (tmp_path / "run" / "timing.json").write_text(content)
    again = sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert {k: again[k] for k in ("rows", "nnz", "certified")} == {
        k: first[k] for k in ("rows", "nnz", "certified")
    }


def test_a_finished_run_is_only_read(digits: dict[str, Path], tmp_path: Path) -> None:
    """Neither a lock nor a folder is made, so it may lie on a read-only disk."""
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
        sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_layered_rows_of_a_cyclic_teacher_never_use_themselves(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    """A block that feeds itself: no state may be copied from itself, or the model is well-posed in name only."""
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    sparsify(digits["states"], tmp_path / "free", SparsifyOptions(structure="free"), engine="serial")
    extract(NetworkSpec(str(tmp_path / "free" / "model.h5")), "digits", samples=200, output=tmp_path / "s.h5")
    for objective in ("l1", "lasso", "least-squares"):
        run = tmp_path / objective
        result = sparsify(tmp_path / "s.h5", run, SparsifyOptions(objective=objective), engine="serial")
        assert result["certified"] == result["rows"]
        assert not load_model(run).A.diagonal().any()


def test_the_model_of_another_run_is_not_passed_off_as_this_one(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    own = (tmp_path / "run" / "model.h5").read_bytes()
    sparsify(digits["states"], tmp_path / "other", SparsifyOptions(objective="l1", beta=9.0), engine="serial")
    shutil.copy(tmp_path / "other" / "model.h5", tmp_path / "run" / "model.h5")
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert (tmp_path / "run" / "model.h5").read_bytes() == own


def test_a_changed_spec_is_refused_and_named(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    with pytest.raises(SpecChanged, match=r"options\.beta = 4\.0, now it is 5\.0"):
        sparsify(digits["states"], tmp_path / "run", SparsifyOptions(objective="l1", beta=5.0))


def test_other_states_are_refused(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    other = tmp_path / "other.h5"
    shutil.copy(digits["states"], other)
    with h5py.File(other, "r+") as file:
        file["Z"][0, 0] += 1.0
    with pytest.raises(FormatError, match="changed after it was written"):
        sparsify(other, tmp_path / "run", L1)
    with h5py.File(other, "r+") as file:
        del file["sha256"]  # an edit on purpose
    with pytest.raises(SpecChanged, match=r"states\.content_sha256"):
        sparsify(other, tmp_path / "run", L1)


def test_a_run_depends_on_what_solves_it_alone() -> None:
    assert packages_of(SparsifyOptions()) == ()
    assert packages_of(SparsifyOptions(solver="scs")) == ("cvxpy", "scs")
    own = SparsifyOptions(objective="own.py:function", solver="scs")
    assert packages_of(own) == ("cvxpy", "clarabel", "scs")
    assert set(environment.fingerprint(("scs",))) > {"numpy", "numba", "scs", "blas"}


def test_nan_in_states_is_named(digits: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.h5"
    shutil.copy(digits["states"], bad)
    with h5py.File(bad, "r+") as file:
        del file["sha256"]
        file["X"][2, 7] = np.nan
    with pytest.raises(InputError, match=r"nan in X\[2, 7\]"):
        sparsify(bad, tmp_path / "run", L1, engine="serial")
    assert not (tmp_path / "run" / "model.h5").exists()


def test_a_folder_that_is_no_run_is_refused(digits: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="not a run of simtool"):
        sparsify(digits["states"], tmp_path / "mine", L1)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="is a file"):
        sparsify(digits["states"], tmp_path / "file", L1)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_two_runs_on_one_folder_are_refused(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.prepare()
    with folder.locked(), pytest.raises(OutputError, match="in use by another simtool"):
        sparsify(digits["states"], tmp_path / "run", L1)


def test_a_full_disk_is_refused_before_any_work(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError, match=r"MiB are free\. Free some space"):
        sparsify(digits["states"], tmp_path / "run", L1, engine="serial")


def test_a_disk_that_fills_up_loses_nothing(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third shard cannot be written; the first two are kept and the rerun gives the usual bytes."""
    from simtool.engines import shards as shards_module

    real = os.replace
    calls = {"n": 0}

    def failing(source: Any, target: Any) -> None:
        if str(target).endswith(".shard") and "rows" in str(target):
            calls["n"] += 1
            if calls["n"] == 3:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(shards_module.os, "replace", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "run")
    assert [folder.holds(folder.shard(i)) for i in range(4)] == [True, True, False, False]
    sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    sparsify(digits["states"], tmp_path / "clean", L1, engine="serial")
    assert folder.model.read_bytes() == (tmp_path / "clean" / "model.h5").read_bytes()


def test_a_gram_matrix_too_large_for_memory_is_refused(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match="Gram matrix needs"):
        sparsify(digits["states"], tmp_path / "run", L1, engine="serial")


def test_few_samples_are_warned_about(
    digits: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from simtool.demo import NETWORK
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=20, output=tmp_path / "few.h5")
    caplog.clear()
    with caplog.at_level("WARNING", logger="simtool"):
        result = sparsify(tmp_path / "few.h5", tmp_path / "run", L1, engine="serial")
    assert "20 samples for rows of up to 65 features" in caplog.text
    assert result["certified"] == result["rows"]


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_positive(digits: dict[str, Path], tmp_path: Path, workers: int) -> None:
    with pytest.raises(OptionError, match="--workers must be at least 1"):
        sparsify(digits["states"], tmp_path / "run", L1, workers=workers)


def test_an_uncertified_row_is_counted(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A solver that stops early cannot pass: the certificate judges the row, not the solver."""
    from simtool import solvers
    from simtool.solvers import native

    def lazy(rows: Any, tolerance: float) -> np.ndarray:
        w = native.solve(rows, tolerance)
        w[0] *= 0.5
        return w

    monkeypatch.setattr(solvers, "get", lambda _: lazy)
    result = sparsify(digits["states"], tmp_path / "run", L1, engine="serial")
    assert result["certified"] == result["rows"] - 4


# --- engines -----------------------------------------------------------------------------------------------------------


def test_shards_round_trip_and_detect_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.shard"
    arrays = {"a": np.arange(5), "b": np.array([np.inf, -0.0])}
    write_shard(path, arrays)
    again = read_shard(path)
    assert all(np.array_equal(again[k], arrays[k]) for k in arrays)
    whole = path.read_bytes()
    for cut in (0, 5, 40, 80, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError, match="damaged"):
            read_shard(path)


def fail_task(folder: Path, item: int) -> dict[str, Any]:
    """A task for the engine tests: fails in the way ``item`` says."""
    if item == 1:
        raise InputError("a user's mistake")
    if item == 2:
        raise RuntimeError("a fault")
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    print("noise on stdout")
    return {"item": item}


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (1, InputError, "a user's mistake"),
        (2, WorkerError, "shard 2 failed: RuntimeError: a fault"),
        (3, WorkerError, "ended by SIGKILL, on its own too"),
    ],
)
def test_worker_failures_are_errors_with_words(
    item: int, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simtool.engines.process import ProcessEngine

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    engine = ProcessEngine(2)
    seen: list[int] = []
    try:
        with pytest.raises(error, match=message):
            engine.run("test_sparsify:fail_task", tmp_path, [0, item], lambda i, _: seen.append(i))
    finally:
        engine.close()
    assert seen == [0]


def _command(states: Path, run: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "simtool", "sparsify", str(states), "--objective", "l1", "--beta", "4"),
        *("--workers", "2", "-o", str(run), "--json", "--quiet"),
    ]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_and_resumes(
    sent: signal.Signals, code: int, digits: dict[str, Path], tmp_path: Path
) -> None:
    for attempt in range(5):  # on a busy machine the signal may come when all is done
        run = tmp_path / f"run-{attempt}"
        process = subprocess.Popen(
            _command(digits["states"], run), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while not (run / "work").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(sent)
        out, _ = process.communicate()
        if "certified" not in json.loads(out):
            break
    assert process.returncode == code
    assert json.loads(out)["exit"] == code
    assert subprocess.run(_command(digits["states"], run), check=False, capture_output=True).returncode == 0


def test_no_worker_survives_its_parent(digits: dict[str, Path], tmp_path: Path) -> None:
    """kill -9 of the parent: the workers end by themselves."""
    code = (
        "import sys, time; from pathlib import Path; from simtool.engines.process import ProcessEngine;"
        "e = ProcessEngine(2); e._children = [e._start(), e._start()];"
        "print(*[c.pid for c in e._children], flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "signals", [("SIGKILL",), ("SIGHUP",), ("SIGINT",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM")]
)
def test_no_worker_survives_in_the_middle_of_a_shard(signals: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "def task(folder, item):\n"
        "    (folder / f'{item}.pid').write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
    )
    code = (
        "import sys; from pathlib import Path; from simtool.engines.process import ProcessEngine\n"
        "engine = ProcessEngine(2)\n"
        "try:\n    engine.run('slow:task', Path(sys.argv[1]), [0, 1], print)\n"
        "finally:\n    engine.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    )
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in signals:
        parent.send_signal(signal.Signals[number])
        time.sleep(0.1)
    parent.wait(timeout=60)
    deadline = time.monotonic() + 30
    while any(_alive(int(file.read_text())) for file in files):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_nothing_proves_well_posed_is_said(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = SparsifyOptions(objective="least-squares")
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert "well-posed" not in caplog.text
    monkeypatch.setattr(finish, "_verdict", lambda model: (False, None))
    sparsify(digits["states"], tmp_path / "doubtful", options, engine="serial")
    assert "nothing proves this model well-posed" in caplog.text
    assert "--kappa .95" in caplog.text
