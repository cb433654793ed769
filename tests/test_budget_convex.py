"""Supports by convex paths: lasso, perspective, reweighted l1; and how a search chooses among all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from simtool.budget import convex, elimination
from simtool.budget.search import KINDS, Search, find
from simtool.cli import main
from simtool.errors import InputError, OptionError
from simtool.model import load_model
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(convex.KINDS)


def problem(seed: int, d: int = 20, m: int = 60, r: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A design (d, m) with correlated features of different sizes, and targets (r, m) that are sparse in it plus noise."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, m)) + rng.standard_normal((d, 4)) @ rng.standard_normal((4, m))
    w *= np.exp(rng.standard_normal((d, 1)))
    truth = rng.standard_normal((r, d)) * (rng.random((r, d)) < 0.4)
    return w, truth @ w + 0.3 * rng.standard_normal((r, m))


def gram_of(w: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return w @ w.T, z @ w.T, np.sum(np.square(z), axis=1)


def loss_on(w: np.ndarray, z: np.ndarray, support: np.ndarray) -> float:
    solution = np.linalg.lstsq(w[support].T, z, rcond=1e-10)[0]
    return float(np.sum(np.square(z - w[support].T @ solution)))


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=seeds, kind=kinds, d=st.integers(1, 40), start=st.one_of(st.none(), st.integers(1, 45)))
def test_supports_are_nested_and_losses_exact(seed: int, kind: str, d: int, start: int | None) -> None:
    w, z = problem(seed, d=d)
    found = convex.paths(*gram_of(w, z), kind, start)
    k0 = d if start is None else min(start, d)
    assert found.order.shape == (3, k0)
    assert found.losses.shape == (3, k0 + 1)
    for i in range(3):
        assert len(set(found.order[i].tolist())) == k0
        assert (np.diff(found.losses[i]) <= 0).all()
        for k in {0, 1, k0 // 2, k0}:
            exact = loss_on(w, z[i], found.support(i, k))
            assert found.losses[i, k] == pytest.approx(exact, rel=1e-8, abs=1e-10 * found.losses[i, 0])


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=seeds, kind=st.sampled_from([convex.LASSO, convex.PERSPECTIVE]))
def test_the_first_to_enter_is_the_most_correlated(seed: int, kind: str) -> None:
    w, z = problem(seed)
    gram, b, squares = gram_of(w, z)
    found = convex.paths(gram, b, squares, kind)
    assert found.order[:, -1].tolist() == np.argmax(np.abs(b) / np.sqrt(np.diag(gram)), axis=1).tolist()


def test_the_lasso_enters_in_the_order_of_its_exact_path() -> None:
    from sklearn.linear_model import lars_path

    agree = total = 0
    for seed in range(20):
        w, z = problem(seed, d=12, m=200, r=1)
        unit = w / np.linalg.norm(w, axis=1, keepdims=True)
        _, _, coefficients = lars_path(unit.T, z[0], method="lasso")
        first = [np.flatnonzero(row).min(initial=10**6) for row in coefficients]
        exact = [j for j in np.argsort(first, kind="stable") if first[j] < 10**6][:6]
        found = convex.paths(*gram_of(w, z), convex.LASSO).order[0][::-1][:6]
        agree += len(set(exact) & set(found.tolist()))
        total += 6
    # Those that enter within one step of the penalty may change places.
    assert agree >= 0.95 * total


def test_without_correlations_every_path_keeps_the_largest() -> None:
    rng = np.random.default_rng(0)
    w = np.linalg.qr(rng.standard_normal((80, 30)))[0].T
    b = rng.choice([-1.0, 1.0], 30) * rng.permutation(np.geomspace(1.0, 0.01, 30))
    for kind in convex.KINDS:
        found = convex.paths(*gram_of(w, (b @ w)[None]), kind)
        assert found.order[0].tolist() == np.argsort(np.abs(b)).tolist(), kind


def test_reweighting_beats_the_lasso_and_comes_near_elimination() -> None:
    """On correlated features the lasso keeps what stands in for others: of one size its supports explain less."""
    losses = dict.fromkeys(("lasso", "reweighted", "elimination"), 0.0)
    for seed in range(20):
        w, z = problem(seed, d=60, m=300, r=1)
        arrays = gram_of(w, z)
        for kind in losses:
            path = elimination.paths(*arrays) if kind == "elimination" else convex.paths(*arrays, kind)
            losses[kind] += path.losses[0, 15] / arrays[2][0]
    assert losses["reweighted"] < 0.9 * losses["lasso"]
    assert losses["reweighted"] < 1.3 * losses["elimination"]


@hypothesis_settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, start=st.one_of(st.none(), st.integers(1, 45)))
def test_a_row_does_not_depend_on_its_company(seed: int, kind: str, start: int | None) -> None:
    gram, b, squares = gram_of(*problem(seed, d=40, r=5))
    together = convex.paths(gram, b, squares, kind, start)
    for i in (0, 3):
        alone = convex.paths(gram, b[i : i + 1], squares[i : i + 1], kind, start)
        assert alone.order[0].tobytes() == together.order[i].tobytes()
        assert alone.losses[0].tobytes() == together.losses[i].tobytes()


@hypothesis_settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, power=st.integers(-120, 120))
def test_units_change_nothing(seed: int, kind: str, power: int) -> None:
    w, z = problem(seed, d=25)
    rng = np.random.default_rng(seed)
    found = convex.paths(*gram_of(w, z), kind)
    units = np.ldexp(1.0, rng.integers(-60, 60, 25))
    other = convex.paths(*gram_of(w * units[:, None], np.ldexp(z, power)), kind)
    assert (other.order == found.order).all()
    np.testing.assert_allclose(other.losses, np.ldexp(found.losses, 2 * power), rtol=1e-12)


@pytest.mark.parametrize("kind", convex.KINDS)
def test_dead_equal_and_unneeded_features(kind: str) -> None:
    w, z = problem(3, d=10)
    w[[2, 7]] = 0.0
    w[5] = w[4]
    z[1] = 0.0
    z[2] = 2.0 * w[0]
    found = convex.paths(*gram_of(w, z), kind)
    assert found.order.shape == (3, 8)
    assert not np.isin(found.order, [2, 7]).any()
    assert np.isfinite(found.losses).all()
    assert (found.losses[1] == 0).all()
    assert found.order[2, -1] == 0
    dead = convex.paths(np.zeros((4, 4)), np.zeros((2, 4)), np.array([1.0, 0.0]), kind)
    assert dead.order.shape == (2, 0)
    assert dead.losses.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("kind", convex.KINDS)
def test_more_features_than_samples(kind: str) -> None:
    w, z = problem(5, d=50, m=20)
    found = convex.paths(*gram_of(w, z), kind)
    assert found.order.shape == (3, 50)
    assert (found.losses[:, -1] <= 1e-9 * found.losses[:, 0]).all()


def test_wrong_options_are_refused() -> None:
    arrays = gram_of(*problem(0, d=4))
    with pytest.raises(OptionError, match="got 'ridge'"):
        convex.paths(*arrays, "ridge")
    with pytest.raises(OptionError, match="at least 1 feature, got 0"):
        convex.paths(*arrays, convex.LASSO, 0)
    with pytest.raises(InputError, match="finite"):
        convex.paths(arrays[0], arrays[1] * np.nan, arrays[2], convex.LASSO)
    with pytest.raises(OptionError, match="got 'ridge'"):
        Search("ridge")
    with pytest.raises(OptionError, match="needs paths by elimination, got lasso"):
        Search("lasso", pattern=(2, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_is_the_path_that_it_names(kind: str) -> None:
    arrays = gram_of(*problem(1, d=30))
    done: list[int] = []
    orders, losses = find(Search(kind), *arrays, np.zeros(30, dtype=bool), done.append)
    found = elimination.paths(*arrays) if kind == "elimination" else convex.paths(*arrays, kind)
    assert [order.tolist() for order in orders] == found.order.tolist()
    assert [row.tolist() for row in losses] == found.losses.tolist()
    assert done == [1, 2, 3]


def test_a_search_begins_at_a_multiple_of_what_rows_keep() -> None:
    arrays = gram_of(*problem(1, d=300, m=400, r=1))
    nothing = np.zeros(300, dtype=bool)
    for kind, sizes in (("elimination", (300, 128, 175)), ("lasso", (300, 256, 256))):
        for kept, size in zip((np.inf, 1.0, 70.0), sizes, strict=True):
            orders, _ = find(Search(kind, kept), *arrays, nothing)
            assert orders[0].size == size
        # what was settled on other states must be there, however many live here
        for least, size in ((257, 257), (299, 299), (300, 300), (1000, 300)):
            orders, _ = find(Search(kind, 1.0, least=least), *arrays, nothing)
            assert orders[0].size == size


# --- through the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_paths_through_the_command_line(digits: dict[str, Path], tmp_path: Path, kind: str) -> None:
    common = [str(digits["states"]), "--target-sparsity", "0.9", "--paths", kind, "--json"]
    runs = {}
    for engine in ("serial", "process"):
        workers = ["--workers", "2"] if engine == "process" else []
        asked = ["sparsify", *common, "-o", str(tmp_path / engine), "--engine", engine, *workers]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 0, result.output
        runs[engine] = json.loads(result.stdout)
    found = runs["serial"]
    assert found["nnz"] == int(np.floor(0.1 * found["baseline_nnz"] + 1e-9))
    assert found["certified"] == found["rows"]
    assert (tmp_path / "serial" / "model.h5").read_bytes() == (tmp_path / "process" / "model.h5").read_bytes()
    certificates = load_model(tmp_path / "serial").certificates
    assert certificates is not None
    assert set(certificates.kind.tolist()) == {2}  # fixed-support


def test_free_rows_on_convex_paths_never_use_their_own_state(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(structure="free", target_nnz=900, paths="lasso")
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    model = load_model(tmp_path / "run")
    assert not model.A.diagonal().any()
    assert result["nnz"] <= 900


def test_paths_belong_to_a_budget() -> None:
    with pytest.raises(OptionError, match="--paths belongs to a budget"):
        SparsifyOptions(paths="lasso")
    with pytest.raises(OptionError, match="must be one of elimination, lasso"):
        SparsifyOptions(paths="ridge", target_nnz=3)
    with pytest.raises(OptionError, match="--pattern needs --paths elimination, got lasso"):
        SparsifyOptions(paths="lasso", pattern="2:4")
