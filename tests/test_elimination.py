"""--eliminate: what safe proves changes no answer, what heuristic keeps is what was asked for, both resumable."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from row_problems import PENALTIES, make_rows

from simtool.certificate import certify
from simtool.cli import main
from simtool.errors import OptionError, SpecChanged
from simtool.model import ImplicitModel, load_model
from simtool.solvers import native
from simtool.stages.inspect import inspect
from simtool.stages.sparsify import elimination, elimination_rounds
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.inputs import write_inputs
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import plan_of
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sparsify.structure import RowGroup
from simtool.stages.sparsify.work import gram_array, row_set
from simtool.states import open_states

STRUCTURES = ("layered", "dag", "free")


def _options(structure: str, **more: Any) -> SparsifyOptions:
    kappa = {"kappa": 0.9} if structure == "free" else {}
    return SparsifyOptions(objective="l1", beta=4.0, structure=structure, **kappa, **more)


def _stored(run: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((run / "elimination.json").read_text()))


def _matrix(model: ImplicitModel) -> np.ndarray:
    return np.block([[model.A.toarray(), model.B.toarray()], [model.C.toarray(), model.D.toarray()]])


def _chosen(found: dict[str, list[int]], model: ImplicitModel) -> np.ndarray:
    """Features named as rows of X and of U, as columns of [A B; C D]."""
    return np.array([*found["X"], *(model.n + j for j in found["U"])], dtype=int)


# --- safe ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_safe_changes_no_coefficient_and_names_what_no_row_reads(
    digits: dict[str, Path], tmp_path: Path, structure: str
) -> None:
    sparsify(digits["states"], tmp_path / "plain", _options(structure), engine="serial")
    result = sparsify(
        digits["states"], tmp_path / "safe", _options(structure, eliminate="safe"), engine="serial"
    )
    plain, safe = load_model(tmp_path / "plain"), load_model(tmp_path / "safe")
    for name in "ABCD":
        one, two = getattr(plain, name), getattr(safe, name)
        assert one.data.tobytes() == two.data.tobytes()
        assert np.array_equal(one.indices, two.indices)
    found = _stored(tmp_path / "safe")
    gone = _chosen(found["proven"], safe)
    assert not _matrix(safe)[:, gone].any()
    assert result["eliminated_features"] == gone.size == found["eliminated_features"] > 0
    assert 0 < result["eliminated_per_row_mean"] < found["features"]
    assert safe.n + safe.p - 1 not in gone  # the bias
    assert set(found["proven"]["U"]).isdisjoint(found["unused_by_structure"]["U"])
    # At this gap all zeros but ties are proven: as many a row as there are zeros.
    assert result["eliminated_per_row_mean"] <= (_matrix(safe) == 0).sum(axis=1).mean()


@pytest.mark.parametrize("structure", ["layered", "dag"])
def test_what_safe_says_can_be_dropped_moves_no_output(
    digits: dict[str, Path], tmp_path: Path, structure: str
) -> None:
    sparsify(
        digits["states"],
        tmp_path / "run",
        _options(structure, eliminate="safe", kappa_outputs=0.5),
        engine="serial",
    )
    model, found = load_model(tmp_path / "run"), _stored(tmp_path / "run")
    assert found["droppable"]["Z"] == found["droppable"]["X"]
    dropped = _chosen(found["droppable"], model)
    assert set(_chosen(found["proven"], model)) <= set(dropped)
    whole = _matrix(model)
    reduced = whole.copy()
    reduced[:, dropped] = 0.0
    reduced[found["droppable"]["Z"], :] = 0.0

    def outputs(m: np.ndarray, u: np.ndarray) -> np.ndarray:
        x = np.zeros((model.n, u.shape[1]))
        for _ in range(len(model.blocks) + 1):
            z = m[: model.n] @ np.concatenate([x, u])
            for block in model.blocks:
                x[block.rows] = block.activation(z[block.rows])
        return m[model.n :] @ np.concatenate([x, u])

    with open_states(digits["states"]) as states:
        u = np.asarray(states.U[:, :50], dtype=np.float64)
    np.testing.assert_array_equal(outputs(whole, u), outputs(reduced, u))


def test_closure_follows_what_the_outputs_read() -> None:
    """y <- x0 <- u1; x1 <- u0 and x2 read each other, but nobody who matters reads them."""
    group = RowGroup("g", (0, 4), np.arange(5), False, False, "g")
    reads = {3: [0], 0: [4], 1: [3, 2], 2: [1]}  # features: x0 x1 x2 u0 u1; row 3 is the output
    needs = {row: (group, np.packbits(np.isin(np.arange(5), features))) for row, features in reads.items()}
    plan = SimpleNamespace(n=3, p=2, q=1)
    reached = elimination._reached(cast(Any, plan), needs)
    assert reached.tolist() == [True, False, False, False, True]


def test_every_engine_stores_the_same_bits(digits: dict[str, Path], tmp_path: Path) -> None:
    options = _options("free", eliminate="safe")
    for name, engine in (("one", "serial"), ("two", "process")):
        sparsify(digits["states"], tmp_path / name, options, engine=engine)
    for first in sorted((tmp_path / "one" / "rows").iterdir()):
        assert first.read_bytes() == (tmp_path / "two" / "rows" / first.name).read_bytes()
    assert _stored(tmp_path / "one") == _stored(tmp_path / "two")
    again = sparsify(digits["states"], tmp_path / "one", options, engine="serial")
    (tmp_path / "one" / "elimination.json").write_text("{")
    assert (
        sparsify(digits["states"], tmp_path / "one", options, engine="serial")["eliminated_features"]
        == again["eliminated_features"]
    )
    assert _stored(tmp_path / "one") == _stored(tmp_path / "two")


def test_least_squares_proves_nothing_but_dead_features(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(objective="least-squares", eliminate="safe")
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    with open_states(digits["states"]) as states:
        dead = [
            *np.flatnonzero(~np.any(states.X[:], axis=1)),
            *(states.n + np.flatnonzero(~np.any(states.U[:], axis=1))),
        ]
    model = load_model(tmp_path / "run")
    assert sorted(_chosen(_stored(tmp_path / "run")["proven"], model)) == sorted(dead)
    assert result["eliminated_features"] == len(dead)


# --- heuristic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("wanted", [1, 20, 60])
def test_heuristic_keeps_as_many_features_as_wanted(
    digits: dict[str, Path], tmp_path: Path, structure: str, wanted: int
) -> None:
    options = _options(structure, eliminate="heuristic", features=wanted)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    model, found = load_model(tmp_path / "run"), _stored(tmp_path / "run")
    kept = elimination.kept_features(RunFolder(tmp_path / "run"), plan_of(RunFolder(tmp_path / "run")))
    assert kept is not None
    assert kept[-1]
    assert kept.sum() == wanted + 1
    assert not _matrix(model)[:, ~kept].any()
    assert found["wanted"] == wanted == found["rounds"][-1]["features"]
    assert (
        result["eliminated_features"] + len(found["unused_by_structure"]["X"]) >= found["features"] - wanted
    )
    assert [a["features"] - a["removed"] for a in found["rounds"][:-1]] == [
        b["features"] for b in found["rounds"][1:]
    ]
    assert all(np.isfinite([r["mse"], r["mse_outputs"]]).all() for r in found["rounds"])


def test_keeping_all_features_changes_no_coefficient(digits: dict[str, Path], tmp_path: Path) -> None:
    sparsify(digits["states"], tmp_path / "plain", _options("layered"), engine="serial")
    plain = load_model(tmp_path / "plain")
    most = plain.n + plain.p - 1
    options = _options("layered", eliminate="heuristic", features=most)
    result = sparsify(digits["states"], tmp_path / "all", options, engine="serial")
    assert np.array_equal(_matrix(load_model(tmp_path / "all")), _matrix(plain))
    assert result["eliminated_features"] == 0
    # The curve's one point is the mean square error of these rows on their own states.
    (point,) = _stored(tmp_path / "all")["rounds"]
    with open_states(digits["states"]) as states:
        features = np.concatenate([states.X[:], states.U[:]]).astype(np.float64)
        targets = np.concatenate([states.Z[:], states.Y[:]]).astype(np.float64)
    errors = np.square(targets - _matrix(plain) @ features).mean(axis=1)
    assert point["mse"] == pytest.approx(errors.mean(), rel=1e-5)
    assert point["mse_outputs"] == pytest.approx(errors[plain.n :].mean(), rel=1e-5)


def test_heuristic_is_resumed_from_its_stored_choice(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options("dag", eliminate="heuristic", features=30)
    sparsify(digits["states"], tmp_path / "whole", options, engine="process", workers=2)
    real = elimination_rounds.eliminate
    calls: list[int] = []

    def counted(path: Path, index: int) -> dict[str, Any]:
        calls.append(index)
        return real(path, index)

    monkeypatch.setattr(elimination_rounds, "eliminate", counted)
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert calls == [0]
    folder = RunFolder(tmp_path / "run")
    folder.shard(0).unlink()
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert calls == [0]
    # Without the stored choice no shard can be trusted.
    folder.kept.unlink()
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert calls == [0, 0]
    for name in ("model.h5", "elimination.json", "rows/kept.shard"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(SpecChanged, match="features"):
        sparsify(
            digits["states"],
            tmp_path / "run",
            _options("dag", eliminate="heuristic", features=31),
            engine="serial",
        )


@pytest.mark.parametrize("gram", [True, False])
def test_saliency_is_what_the_refitted_error_gains(gram: bool) -> None:
    rows = make_rows(6, d=9, m=40, r=1, penalty=PENALTIES["l1"], oddities=False)
    if gram:
        _ = rows.design.gram
    features = rows.design.dense(np.arange(9))
    inside = np.array([1, 4, 5, 8])
    z = rows.target()[0]

    def fitted(support: np.ndarray) -> tuple[np.ndarray, float]:
        w, *_ = np.linalg.lstsq(features[support].T, z, rcond=None)
        return w, float(np.square(z - features[support].T @ w).sum())

    best, error = fitted(inside)
    w = np.zeros(9)
    w[inside] = best
    gains = [fitted(np.delete(inside, k))[1] - error for k in range(inside.size)]
    np.testing.assert_allclose(elimination_rounds._saliency(rows, w, inside), gains, rtol=1e-6)


def test_dependent_features_cost_nothing_to_leave_out() -> None:
    rows = make_rows(6, d=9, m=40, r=1, penalty=PENALTIES["l1"])  # 2 and 3 are the same
    w = np.zeros(9)
    w[[2, 3, 5]] = [0.4, 0.4, 0.8]
    twin, other, alone = elimination_rounds._saliency(rows, w, np.array([2, 3, 5]))
    assert 0 <= twin < 1e-6 * alone
    assert 0 <= other < 1e-6 * alone


def test_rows_that_lose_nothing_keep_their_solution(digits: dict[str, Path], tmp_path: Path) -> None:
    """The rounds' shortcut: a solution without the removed features is what solving again would give."""
    sparsify(digits["states"], tmp_path / "run", _options("dag"), engine="serial")
    folder = RunFolder(tmp_path / "run")
    plan = plan_of(folder)
    with open_states(digits["states"]) as states:
        write_inputs(folder, states)
    for name in plan.grams:  # the Gram matrices went with the work folder
        size = plan.grams[name].size
        w = folder.map_array("design")[plan.grams[name]].astype(np.float64)
        with folder.new_array(gram_array(plan, name), (size, size), np.float64) as gram:
            gram[:] = w @ w.T
    weight = np.ones(plan.n + plan.q)
    kept = np.ones(plan.n + plan.p, dtype=bool)
    for shard in plan.shards:
        piece = elimination_rounds._Piece(folder, plan, shard)
        before = piece.rank(kept, weight)
        fewer = kept & ~(
            (before.loss == 0) & (np.arange(kept.size) >= plan.n) & (np.arange(kept.size) < kept.size - 1)
        )
        warm = piece.rank(fewer, weight)
        fresh = elimination_rounds._Piece(folder, plan, shard).rank(fewer, weight)
        np.testing.assert_allclose(warm.loss, fresh.loss, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(warm.squares, fresh.squares, rtol=1e-6)
        rows = row_set(folder, shard, fewer)
        assert certify(rows, native.solve(rows, 1e-6), 1e-6).certified.all()


# --- options and printing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eliminate": "some"}, "--eliminate must be one of none, safe, heuristic"),
        ({"eliminate": "heuristic"}, "needs --features F"),
        ({"features": 10}, "--features 10 belongs to --eliminate heuristic, got --eliminate none"),
        ({"eliminate": "safe", "features": 10}, "got --eliminate safe"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(**options)


@pytest.mark.parametrize("features", [0, -3, 10**6])
def test_impossible_counts_are_refused(digits: dict[str, Path], tmp_path: Path, features: int) -> None:
    options = _options("layered", eliminate="heuristic", features=features)
    with pytest.raises(OptionError, match=rf"--features must lie in \[1, \d+\].*got {features}"):
        sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert not (tmp_path / "run").exists()


def test_command_and_inspect_show_it(digits: dict[str, Path], tmp_path: Path) -> None:
    run = CliRunner().invoke(
        main,
        [
            *("sparsify", str(digits["states"]), "--objective", "l1", "--beta", "4", "--engine", "serial"),
            *("--eliminate", "heuristic", "--features", "40", "-o", str(tmp_path / "run")),
        ],
    )
    assert run.exit_code == 0, run.output
    assert "features eliminated" in run.output
    shown = inspect(tmp_path / "run")["elimination"]
    assert shown["mode"] == "heuristic"
    assert shown["rounds"][-1]["features"] == 40
    text = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert text.exit_code == 0
    assert "elimination.eliminated features" in text.output
    refused = CliRunner().invoke(
        main, ["sparsify", str(digits["states"]), "--features", "4", "-o", str(tmp_path / "no"), "--json"]
    )
    assert refused.exit_code == 1
    assert "--eliminate heuristic" in json.loads(refused.stdout)["error"]


# --- real parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_the_features_of_case_f_go_for_less_than_a_point(
    case_f: dict[str, Path], fashion: str, tmp_path: Path
) -> None:
    """The OOD report's Figure 9: 448 of 896 features, on real data, evaluated on the test split."""
    from simtool.report import evaluate
    from simtool.stages.extract import extract

    states = tmp_path / "states.h5"
    extract(str(case_f["onnx"]), fashion, samples=2000, output=states)
    accuracy = {}
    for name, more in {"all": {}, "half": {"eliminate": "heuristic", "features": 448}}.items():
        options = SparsifyOptions(objective="l1", beta=3.0, **cast(Any, more))
        result = sparsify(states, tmp_path / name, options, engine="serial")
        assert result["certified"] == result["rows"] == 122
        accuracy[name] = evaluate(tmp_path / name, fashion, output=tmp_path / f"{name}-report")["accuracy"]
    assert accuracy["all"] > 0.84
    assert accuracy["all"] - accuracy["half"] < 0.01


@pytest.mark.slow
def test_a_gap_of_a_percent_already_eliminates_most_of_case_f(
    case_f: dict[str, Path], fashion: str, tmp_path: Path
) -> None:
    """How much a rough row proves, by kappa: nearly all where the ball is small, a third where it hardly binds."""
    from simtool.design import Design
    from simtool.penalty import Penalty
    from simtool.problem import Objective, RowSet
    from simtool.screening import inactive
    from simtool.stages.extract import extract

    extract(str(case_f["onnx"]), fashion, samples=2000, output=tmp_path / "states.h5")
    with open_states(tmp_path / "states.h5") as states:
        design = Design(np.concatenate([states.X[:], states.U[:]]))
        targets = np.asarray(states.Z[:])
    alive = ~design.dead
    _ = design.gram
    n, d = targets.shape[0], design.d
    own = np.arange(d) != np.arange(n)[:, None]
    for kappa, least in {0.1: 0.97, 0.99: 0.75, 3.0: 0.2}.items():
        rows = RowSet(design, targets, Objective(0.5, Penalty(), kappa), np.ones(d, dtype=bool), allowed=own)
        best = native.solve(rows, 1e-9)
        low, high = np.zeros(n), np.ones(n)
        for _ in range(14):  # shrink each row until its gap is a percent
            middle = 0.5 * (low + high)
            fine = certify(rows, best * (1.0 - middle)[:, None], 1e-9).relative_gap <= 1e-2
            low, high = np.where(fine, middle, low), np.where(fine, high, middle)
        rough = inactive(rows, best * (1.0 - low)[:, None]).inactive
        assert not np.any(rough & (best != 0.0))
        assert rough[:, alive].mean() >= least
        proven = inactive(rows, best).inactive
        assert np.mean(proven[:, alive] == (best[:, alive] == 0.0)) > 0.999


@pytest.mark.slow
def test_the_example_draws_its_curve(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = Path(__file__).parents[1] / "examples" / "feature_elimination.py"
    command = [sys.executable, str(script), "--case", "diabetes", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    (case,) = json.loads((tmp_path / "curves.json").read_text()).values()
    points = case["points"]
    assert points[0]["features"] == case["features"] == 58
    assert all(point["certified"] == point["rows"] for point in points)
    assert points[0]["mse"] < 1.1 * case["baseline_mse"] < points[-1]["mse"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
