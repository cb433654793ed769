"""The benchmark: it poses the product's problems, certifies everyone, keeps failures, and counts honestly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from simtool.bench import arrays, cases, compare, lasso_search, measure, peers, table, thesis
from simtool.bench.arrays import Arrays, Source
from simtool.bench.rows import BenchOptions, bench_rows
from simtool.bench.run_case import Settings
from simtool.certificate import certify
from simtool.cli import main
from simtool.design import Design
from simtool.errors import InputError, OptionError, OutputError
from simtool.model import load_model
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.solvers import get
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify


@pytest.fixture(scope="module")
def states(digits: dict[str, Path]) -> Arrays:
    return arrays.read(digits["states"]).first(200)


def _lasso(seed: int, d: int = 15, m: int = 40, kappa: float | None = 0.7, lam1: float = 0.0) -> RowSet:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, m))
    z = rng.standard_normal((2, d)) @ w + rng.standard_normal((2, m))
    return RowSet(Design(w), z, Objective(0.5, Penalty(lam1=lam1), kappa), np.ones(d, dtype=bool))


# --- the problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        SparsifyOptions(structure="layered"),
        SparsifyOptions(objective="l1", beta=2.0, structure="dag"),
        SparsifyOptions(objective="perspective", alpha=0.5, kappa=0.9, structure="free"),
    ],
    ids=lambda options: options.structure,
)
def test_rows_are_those_of_the_product(
    digits: dict[str, Path], tmp_path: Path, options: SparsifyOptions
) -> None:
    sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    model = load_model(tmp_path / "run")
    held = arrays.read(digits["states"])
    plan = arrays.plan_of(held, options)
    groups = [group for group in plan.groups if group.features.size]
    for group, task in zip(groups, arrays.tasks(held, plan), strict=True):
        if task.forms_gram:
            assert task.rows.design.gram.shape == (group.features.size,) * 2
        w = get("native")(task.rows, 1e-6)
        stored = np.zeros((w.shape[0], plan.n + plan.p))
        for k, i in enumerate(range(*group.rows)):
            indices, values = model.row(i)
            stored[k, indices] = values
        np.testing.assert_allclose(w, stored[:, group.features], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", ["layered", "dag", "free"])
def test_the_reference_is_the_products_of_the_model(states: Arrays, structure: str) -> None:
    options = SparsifyOptions(objective="l1", beta=2.0, structure=structure)
    work = arrays.workload(states, options)
    assert work.rows == states.targets.shape[0]
    assert sum(product.targets.shape[0] for product in work.products) == work.rows
    grams = {product.w.shape[0] for product in work.products if product.gram}
    fresh = work.fresh()
    if structure == "layered":
        assert grams == {task.rows.design.d for task in fresh if task.forms_gram}
    else:
        assert grams == {states.design.shape[0]}
        assert sum(product.gram for product in work.products) == 1
    assert arrays.reference(work.products) > 0


def test_every_repetition_pays_for_its_own_gram(states: Arrays) -> None:
    work = arrays.workload(states, cases.LASSO)
    assert not any(task.rows.design.has_gram for task in work.fresh())
    measured = measure.paired(work, 1e-6, seconds=0.2)
    assert measured.last.certified == measured.last.rows == work.rows
    assert measured.last.largest_gap <= 1e-6
    assert measured.ratio is not None
    assert measured.ratio > 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 30))
def test_rows_are_spread_over_all_groups(sizes: list[int], count: int) -> None:
    design = Design(np.eye(3))
    tasks = [
        arrays.Task(
            RowSet(design, np.ones((size, 3)), Objective(0.5, Penalty(), 1.0), np.ones(3, dtype=bool)), True
        )
        for size in sizes
    ]
    parts = measure.spread(tasks, count)
    assert sum(part.count for part in parts) == min(count, sum(sizes))


# --- the peers ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(0.01, 3.0), st.booleans())
def test_the_search_proves_its_gap(seed: int, kappa: float, secant: bool) -> None:
    """With an exact lasso solver inside, the search ends at a row that the certificate proves."""
    rows = _lasso(seed, kappa=kappa)
    for i, row in enumerate(lasso_search.lasso_rows(rows)):
        gram = row.x.T @ row.x

        def exact(t: float, start: np.ndarray, gap: float, row: lasso_search.LassoRow = row) -> np.ndarray:
            del start, gap
            alone = RowSet(
                Design(row.x.T), row.y[None], Objective(0.5, Penalty(lam1=t), None), np.ones(15, dtype=bool)
            )
            return get("native")(alone, 1e-10)[0]

        assert gram.shape == (15, 15)
        w = lasso_search.search(row, exact, 1e-6, secant)
        proof = certify(rows.subset(np.array([i])), w[None], 1.001e-6)
        assert proof.certified.all(), proof.relative_gap


@given(st.integers(0, 2**31), st.floats(0.0, 2.0))
def test_its_bound_is_that_of_the_certificate(seed: int, lam1: float) -> None:
    rows = _lasso(seed, lam1=lam1)
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((2, 15)) * 0.05
    w *= np.minimum(1.0, 0.7 / np.abs(w).sum(axis=1, keepdims=True))
    proof = certify(rows, w, 1e-6)
    for i, row in enumerate(lasso_search.lasso_rows(rows)):
        primal, dual = lasso_search.bounds(row, w[i], row.slope, row.kappa)
        assert primal == pytest.approx(proof.primal[i], rel=1e-9)
        assert dual == pytest.approx(proof.dual[i], rel=1e-9, abs=1e-9 * primal)


@pytest.mark.parametrize("name", ["NATIVE", "THESIS", "SKLEARN", "SKLEARN_GRAM", "CELER", "SKGLM"])
@pytest.mark.parametrize("kappa", [0.7, None], ids=["kappa", "l1"])
def test_peers_reach_the_certified_gap(name: str, kappa: float | None) -> None:
    if name in ("CELER", "SKGLM"):
        pytest.importorskip(name.lower())
    rows = _lasso(1, kappa=kappa, lam1=0.0 if kappa else 5.0)
    w, seconds = getattr(peers, name).run(rows, 1e-6)
    assert seconds > 0
    assert certify(rows, w, 1e-6).certified.all()


def test_cone_solvers_reach_it_too() -> None:
    rows = _lasso(2, d=6, m=12)
    for peer in (peers.CLARABEL, peers.SCS):
        w, seconds = peer.run(rows, 1e-6)
        assert seconds > 0
        assert certify(rows, w, 1e-6).certified.all()


class _Broken:
    """Peers as they fail in life."""

    package = None

    def __init__(self, name: str, error: Exception | None) -> None:
        self.name, self._error = name, error

    def run(self, rows: RowSet, tolerance: float) -> tuple[np.ndarray, float]:
        if self._error is not None:
            raise self._error
        return np.zeros((rows.count, rows.design.d)), 1e-3  # feasible, and not optimal


def test_failures_stay_in_the_table(states: Arrays) -> None:
    work = arrays.workload(states, cases.LASSO)
    measured = measure.paired(work, 1e-6, seconds=0.2)
    found = compare.compare(
        work,
        measured,
        [
            _Broken("absent", peers.Unavailable("not installed")),
            _Broken("raises", ValueError("no")),
            _Broken("lazy", None),
            peers.NATIVE,
        ],
        1e-6,
        3,
        5.0,
    )
    absent, raises, lazy, ours = found
    assert absent.reason == "not installed"
    assert raises.reason == "ValueError: no"
    assert lazy.reason is not None
    assert "not certified at 1e-06: 3 of 3 rows" in lazy.reason
    assert lazy.gap is not None
    assert lazy.gap > 1e-6
    assert lazy.to_ours is not None
    assert ours.reason is None
    assert ours.to_ours is not None
    text = table.aligned(table.peer_rows(found))
    assert len(text.splitlines()) == 5


def test_a_lasso_solver_says_what_it_cannot_pose() -> None:
    rows = _lasso(0)
    part = RowSet(rows.design, rows.targets, rows.objective, np.arange(15) < 4)
    bent = RowSet(rows.design, rows.targets, Objective(0.5, Penalty(lam0=1, lam2=1), None), rows.constrained)
    for problem in (part, bent):
        with pytest.raises(peers.Unavailable):
            peers.SKLEARN.run(problem, 1e-6)


def test_an_absent_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "celer", None)
    peers._warm.cache_clear()
    with pytest.raises(peers.Unavailable, match="not installed"):
        peers.CELER.run(_lasso(0), 1e-6)
    peers._warm.cache_clear()


# --- the table ---------------------------------------------------------------------------------------------------------


def test_lines_judge_themselves() -> None:
    slow = table.Line("w", "x (G+B)", 4.0, 2.0, 5.0)
    good = table.Line("w", "x (G+B)", 4.0, 2.0, 3.0)
    best = table.Line("w", "x (G+B)", 4.0, 2.0, 2.0)
    assert [line.verdict for line in (slow, good, best)] == ["no", "yes", "aim"]
    faster = table.Line("w", "x faster", 50.0, None, 60.0, against="celer")
    assert faster.verdict == "yes"
    absent = table.Line("w", "x faster", 50.0, None, None, note="celer is not installed", against="celer")
    assert absent.verdict == "-"
    page = table.markdown([slow, absent], "a machine")
    assert page.splitlines()[0] == "| work | at least | aim | reached | met | largest gap |"
    assert "celer is not installed" in page
    assert "not measured" in page


def test_case_names_are_known() -> None:
    assert cases.chosen(()) == cases.NAMES
    assert cases.chosen(("conv", "path")) == ("conv-l1", "conv-kappa", "path")
    for case in cases.CASES:
        for name in case.peers:
            assert hasattr(peers, name)


# --- the thesis --------------------------------------------------------------------------------------------------------


def test_halvings_are_counted_as_in_the_thesis(states: Arrays) -> None:
    few = thesis.bisected(states, np.full(states.n, 0.5), 4, warm=True)
    more = thesis.bisected(states, np.full(states.n, 0.5), 12, warm=True)
    cold = thesis.bisected(states, np.full(states.n, 0.5), 12, warm=False)
    assert {len(steps) for steps in few.steps} == {4}
    # What a longer bisection had after four halvings is where a shorter one ends.
    np.testing.assert_array_equal(few.matrices[3], more.matrices[3])
    assert {len(steps) for steps in more.steps} == {12}
    n = states.n
    norms = np.abs(more.matrices[-1][:n]).sum(axis=1)
    assert norms.max() <= 0.5 * (1 + 1e-12)
    # Where a row starts does not change where it ends.
    np.testing.assert_allclose(more.matrices[-1], cold.matrices[-1], atol=1e-4)
    assert sum(s.sweeps for row in more.steps for s in row) <= sum(
        s.sweeps for row in cold.steps for s in row
    )
    best = thesis.bisected(states, np.full(states.n, 0.5), 40, warm=True).matrices[-1]
    errors = [np.linalg.norm(found.matrices[-1][:n] - best[:n]) for found in (few, more)]
    assert errors[1] < errors[0]


def test_thesis_figures(tmp_path: Path) -> None:
    settings = Settings(Source(data="digits"), tmp_path, quick=True)
    numbers, pictures = thesis.reproduce(settings)
    assert set(pictures) == {"thesis-halvings", "thesis-warm-start"}
    for curve in numbers["curves"].values():
        assert len(curve["accuracy"]) == numbers["halvings"]
        assert all(0 <= value <= 1 for value in curve["accuracy"])
    # As the network's own rows are feasible at kappa 1, a model at .99 says what the network says.
    assert numbers["curves"]["0.99"]["accuracy"][-1] > numbers["curves"]["0.1"]["accuracy"][0]
    assert all(kinds["png"].startswith(b"\x89PNG") for kinds in pictures.values())


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_the_command_reports(tmp_path: Path) -> None:
    report = tmp_path / "report"
    asked = ["bench", "rows", "--quick", "--case", "mlp-1024-layered", "--case", "path", "--json", "--quiet"]
    result = CliRunner().invoke(main, [*asked, "-o", str(report)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [line["met"] in (True, False) for line in found["lines"]] == [True, True]
    assert found["uncertified"] == 0
    assert all(line["gap"] <= 1e-6 for line in found["lines"])
    assert found["machine"]["cpu"]
    assert json.loads((report / "bench.json").read_text())["lines"] == found["lines"]
    page = (report / "rows.md").read_text()
    assert "| work | at least | aim | reached | met | largest gap |" in page
    again = CliRunner().invoke(main, [*asked, "-o", str(report)])
    assert again.exit_code == 1
    assert "--overwrite" in again.output


@pytest.mark.slow
def test_every_case_runs(tmp_path: Path) -> None:
    options = BenchOptions(names=("all",), quick=True, rows=2, figures=("gap",))
    result = bench_rows(options, tmp_path / "report")
    assert [case["name"] for case in result["cases"]] == list(cases.NAMES)
    for line in result["lines"]:  # celer is an extra
        assert line["reached"] is not None or "not installed" in line["note"], result["text"]
    assert result["uncertified"] == 0
    assert (tmp_path / "report" / "gap.svg").exists()


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--case"):
        BenchOptions(names=("case-x",))
    with pytest.raises(OptionError, match="--rows"):
        BenchOptions(rows=0)
    with pytest.raises(OptionError, match="--tol"):
        BenchOptions(tol=0.5)
    with pytest.raises(InputError, match="does not exist"):
        BenchOptions(states=tmp_path / "no.h5")
    with pytest.raises(OptionError, match="-o REPORT"):
        bench_rows(BenchOptions(figures=("gap",)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(OutputError, match=r"no bench\.json"):
        bench_rows(BenchOptions(quick=True), tmp_path / "other", overwrite=True)
