"""Exact matching: the equality certificate on its own, and the rows that the cone solver makes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES
from scipy.optimize import linprog

from simtool.certificate import EQUALITY
from simtool.cli import main
from simtool.design import Design
from simtool.equality import MATCH_TOLERANCE, certify_equality, mismatch
from simtool.errors import OptionError
from simtool.model import load_model
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.row_status import STATUSES, RowStatus
from simtool.solvers import exact
from simtool.solvers.backends import CLARABEL, SCS
from simtool.stages.sparsify.answer import Task, answer
from simtool.stages.sparsify.options import SparsifyOptions, objective_of, resolve
from simtool.stages.sparsify.stage import sparsify


def make_exact(
    seed: int,
    d: int = 20,
    m: int = 9,
    r: int = 2,
    penalty: Penalty = PENALTIES["l1"],
    kappa: float | None = None,
    on_a: bool = False,
    box: bool = False,
    masked: bool = False,
    weighted: bool = False,
    scale: float = 1.0,
) -> tuple[RowSet, np.ndarray]:
    """Rows whose targets are the states of sparse rows, in float32, and those rows; ``kappa`` times the norm they need."""
    rng = np.random.default_rng(seed)
    w = scale * rng.standard_normal((d, m))
    if d > 6:
        w[1], w[3], w[5] = 0.0, w[2], w[4] + w[6]
    truth = rng.standard_normal((r, d)) * (rng.random((r, d)) < 0.4)
    allowed = rng.random((r, d)) < 0.8 if masked else None
    if allowed is not None:
        truth = np.where(allowed, truth, 0.0)
    lower, upper = np.full(d, -0.7), np.full(d, 1.2)
    if box:
        truth = np.clip(truth, lower, upper)
    bounded = np.arange(d) < (d // 2 if on_a else d)
    limit = None if kappa is None else kappa * float(np.abs(truth[:, bounded]).sum(axis=1).max())
    rows = RowSet(
        Design(w.astype(np.float32), sample_weight=rng.integers(0, 3, m).astype(float) if weighted else None),
        (truth @ w.astype(np.float32).astype(float)).astype(np.float32),
        Objective(1.0, penalty, limit),
        bounded,
        allowed,
        lower if box else None,
        upper if box else None,
    )
    return rows, truth


def _solve(rows: RowSet, tolerance: float = 1e-6) -> tuple[exact.Matched, Any]:
    found = exact.solve(rows, CLARABEL, tolerance)
    return found, certify_equality(rows, found.w, found.nu, tolerance)


def _null_space(rows: RowSet, i: int) -> np.ndarray:
    """(d, k), directions that change no state of row ``i``'s allowed features."""
    allowed = np.ones(rows.design.d, dtype=bool) if rows.allowed is None else rows.allowed[i]
    inside = scipy.linalg.null_space(rows.design.dense(np.flatnonzero(allowed)).T)
    full = np.zeros((rows.design.d, inside.shape[1]))
    full[allowed] = inside
    return full


# --- the certificate ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**31),
    st.sampled_from(sorted(PENALTIES)),
    st.sampled_from([None, 1.5, 4.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_bound_holds_for_any_hint_and_any_row_of_the_same_states(
    seed: int, name: str, kappa: float | None, on_a: bool, box: bool, masked: bool, scale: float
) -> None:
    masked = masked and (PENALTIES[name].slope > 0 or (kappa is not None and not on_a) or box)
    rows, truth = make_exact(
        seed, r=1, penalty=PENALTIES[name], kappa=kappa, on_a=on_a, box=box, masked=masked, scale=scale
    )
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-2, 2) / scale
    nu = size * rng.standard_normal((1, rows.design.m))
    dual = certify_equality(rows, truth, nu, 1e-6).dual[0]
    basis = _null_space(rows, 0)
    for step in (0.0, 1e-3, 1e-2, 0.1, 1.0):
        v = truth[0] + step * basis @ rng.standard_normal(basis.shape[1])
        if rows.objective.kappa is not None and np.abs(v[rows.bounded]).sum() > rows.objective.kappa:
            continue
        if box and not ((v >= rows.lower) & (v <= rows.upper)).all():
            continue
        value = rows.objective.penalty.value(v).sum()
        assert dual <= value + 1e-9 * (abs(dual) + value)


def test_bound_is_the_optimum_on_a_line() -> None:
    """Two features, one sample: the rows of equal states are a line, scanned here."""
    for name, penalty in PENALTIES.items():
        if penalty.free:
            continue
        for kappa in (None, 1.1):
            w = np.array([[2.0], [-0.5]])
            rows = RowSet(
                Design(w), np.array([[1.8]]), Objective(1.0, penalty, kappa), np.ones(2, dtype=bool)
            )
            t = np.linspace(-4, 4, 80_001)
            line = np.array([0.9, 0.0]) + t[:, None] * np.array([0.5, 2.0])
            if kappa is not None:
                line = line[np.abs(line).sum(axis=1) <= kappa]
            best = penalty.value(line).sum(axis=1).min()
            found, proof = _solve(rows)
            assert proof.certified.all(), (name, kappa)
            assert proof.primal[0] == pytest.approx(best, abs=1e-6)
            assert proof.dual[0] <= best + 1e-9
            del found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(["l1", "perspective", "ridge", "all"]))
def test_a_worse_row_of_the_same_states_is_never_certified(seed: int, name: str) -> None:
    rows, _ = make_exact(seed, r=1, penalty=PENALTIES[name])
    found, proof = _solve(rows)
    assert proof.certified.all()
    basis = _null_space(rows, 0)
    worse = found.w + 0.05 * (basis @ np.random.default_rng(seed).standard_normal(basis.shape[1]))
    again = certify_equality(rows, worse, found.nu, 1e-6)
    assert mismatch(rows, worse)[0] <= MATCH_TOLERANCE
    assume(again.primal[0] > proof.primal[0] * (1 + 1e-4))
    assert not again.certified.any()
    assert again.relative_gap[0] > 1e-5


def test_a_row_that_misses_its_target_is_never_certified() -> None:
    rows, _ = make_exact(3)
    found, proof = _solve(rows)
    assert proof.certified.all()
    assert (proof.kind == EQUALITY).all()
    off = found.w.copy()
    off[0] *= 1.0 + 3e-6
    assert certify_equality(rows, off, found.nu, 1e-6).certified.tolist() == [False, True]


def test_what_breaks_kappa_box_or_mask_or_is_no_number_is_never_certified() -> None:
    rows, _ = make_exact(4, r=1, kappa=1.2, box=True, masked=True)
    found, proof = _solve(rows)
    assert proof.certified.all()
    assert rows.allowed is not None
    blocked = int(np.flatnonzero(~rows.allowed[0])[0])
    for at, value in ((blocked, 1e-300), (0, np.nan), (0, 5.0)):
        bad = found.w.copy()
        bad[0, at] = value
        assert not certify_equality(rows, bad, found.nu, 1e-6).certified.any()
    tighter = replace(rows, objective=replace(rows.objective, kappa=0.9 * float(np.abs(found.w).sum())))
    assert not certify_equality(tighter, found.w, found.nu, 1e-6).certified.any()
    for hint in (np.nan, np.inf, 1e300):
        proof = certify_equality(rows, found.w, np.full_like(found.nu, hint), 1e-6)
        assert not proof.certified.any()
        assert np.isfinite(proof.dual).all()


def test_an_ill_conditioned_hint_cannot_prove_what_rounding_made() -> None:
    """Two nearly equal features: nu has to be huge, so the bound it gives must not be believed."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 5))
    w[1] = w[0] + 1e-15 * rng.standard_normal(5)
    rows = RowSet(
        Design(w), np.array([[1.0, -1.0]]) @ w, Objective(1.0, Penalty(lam1=1.0)), np.ones(2, dtype=bool)
    )
    stored = np.array([[3.0, -3.0]])
    nu = np.linalg.lstsq(w, np.array([1.0, -1.0]), rcond=1e-18)[0][None]
    assert not certify_equality(rows, stored, nu, 1e-6).certified.any()


# --- the solver --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("kappa", [None, 1.0001])
@pytest.mark.parametrize(("d", "m"), [(20, 45), (30, 12)])
@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_rows_match_and_are_certified(name: str, d: int, m: int, kappa: float | None, box: bool) -> None:
    for on_a in (False, True):
        rows, truth = make_exact(11, d=d, m=m, penalty=PENALTIES[name], kappa=kappa, on_a=on_a, box=box)
        found, proof = _solve(rows)
        assert proof.certified.all(), proof
        assert found.trouble == (None, None)
        assert np.all(proof.primal <= PENALTIES[name].value(truth).sum(axis=1) * (1 + 1e-6))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_least_l1_agrees_with_a_simplex_method_and_has_exact_zeros(masked: bool, weighted: bool) -> None:
    rows, _ = make_exact(5, d=40, m=15, r=3, masked=masked, weighted=weighted)
    found, proof = _solve(rows)
    assert proof.certified.all()
    for i in range(3):
        allowed = np.arange(40) if rows.allowed is None else np.flatnonzero(rows.allowed[i])
        w = rows.design.dense(allowed)
        answer = linprog(np.ones(2 * allowed.size), A_eq=np.hstack([w.T, -w.T]), b_eq=rows.target()[i])
        assert proof.primal[i] == pytest.approx(0.8 * answer.fun, rel=1e-6)
        # A vertex has at most as many non-zeros as equations; a duplicated column may share one.
        assert (found.w[i] != 0).sum() <= 16


def test_ridge_is_the_least_norm_row() -> None:
    rows, _ = make_exact(6, d=30, m=10, penalty=PENALTIES["ridge"])
    found, _ = _solve(rows)
    least = np.linalg.lstsq(rows.design.dense(np.arange(30)).T, rows.target().T, rcond=1e-12)[0].T
    np.testing.assert_allclose(found.w, least, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_units_of_the_states_do_not_matter(scale: float) -> None:
    for name in ("l1", "perspective"):
        rows, _ = make_exact(7, penalty=PENALTIES[name], scale=scale)
        assert _solve(rows)[1].certified.all()


def test_scs_finds_the_same_rows() -> None:
    rows, _ = make_exact(8, d=12, m=5)
    found = exact.solve(rows, SCS, 1e-6)
    np.testing.assert_allclose(found.w, _solve(rows)[0].w, atol=1e-5)


def test_a_zero_target_has_the_zero_row() -> None:
    rows, _ = make_exact(9)
    rows = replace(rows, targets=np.zeros_like(rows.targets))
    found, proof = _solve(rows)
    assert not found.w.any()
    assert proof.certified.all()


def test_states_dependent_up_to_float32_rounding_are_matched() -> None:
    """A feature that is a combination of others but for its rounding must not blow coefficients up."""
    rng = np.random.default_rng(10)
    w = rng.standard_normal((8, 60)).astype(np.float32)
    w[7] = (w[:7].astype(float).T @ rng.standard_normal(7)).astype(np.float32)
    truth = np.array([[1.0, 0.0, -2.0, 0.0, 0.0, 0.5, 0.0, 0.0]])
    z = (truth @ w).astype(np.float32)
    rows = RowSet(Design(w), z, Objective(1.0, Penalty(lam1=1.0)), np.ones(8, dtype=bool))
    found, proof = _solve(rows)
    assert proof.certified.all()
    # The true row is one of those that match; the smallest of them needs no more.
    assert np.abs(found.w).sum() <= np.abs(truth).sum() * (1 + 1e-6)


# --- what cannot be matched --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "l1", "perspective"])
def test_more_samples_than_features_are_infeasible_and_said_so(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows, _ = make_exact(12, d=8, m=40, penalty=PENALTIES[name])
    noisy = rows.targets + 0.3 * np.random.default_rng(1).standard_normal(rows.targets.shape)
    rows = replace(rows, targets=noisy.astype(np.float32))
    with caplog.at_level(logging.DEBUG, logger="simtool"):
        found, proof = _solve(rows)
    assert found.trouble == (RowStatus.INFEASIBLE, RowStatus.INFEASIBLE)
    assert not proof.certified.any()
    w = rows.design.dense(np.arange(8))
    residual = rows.target() - np.linalg.lstsq(w.T, rows.target().T, rcond=None)[0].T @ w
    least = np.linalg.norm(residual, axis=1) / np.linalg.norm(rows.target(), axis=1)
    np.testing.assert_allclose(proof.projection_error, least, rtol=1e-9)
    assert (
        f"row 0 of its shard is infeasible: its least residual is {least[0]:.3g} of its target" in caplog.text
    )


@pytest.mark.parametrize("name", ["none", "l1", "perspective"])
def test_a_kappa_that_is_too_small_is_infeasible(name: str) -> None:
    rows, _ = make_exact(13, d=20, m=45, penalty=PENALTIES[name], kappa=0.5)
    found, proof = _solve(rows)
    # The kappa of both rows is half of what the larger needs.
    largest = int(np.argmax(proof.projection_error))
    assert found.trouble[largest] is RowStatus.INFEASIBLE
    assert not proof.certified[largest]
    assert proof.kappa_slack[largest] >= -1e-12
    task = Task("lasso", None, "exact", "clarabel", 1e-6, 10)
    status = [STATUSES[code] for code in answer(rows, task).status]
    assert status[largest] is RowStatus.INFEASIBLE


# --- options and the whole stage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda1": 1.0}, "--lambda1 weighs the loss, but --match exact has none"),
        ({"lambda2": 1.0}, "--lambda2 weighs the loss"),
        ({"mean_loss": True}, "--mean-loss weighs the loss"),
        ({"solver": "native"}, "--solver must be one of clarabel, scs, mosek, got 'native'"),
        ({"solver": "bisection"}, "Leave it out for clarabel"),
        ({"eliminate": "safe"}, "--eliminate safe belongs to the losses"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(match="exact", **options)


def test_unknown_match_is_named() -> None:
    with pytest.raises(OptionError, match="--match must be one of relaxed, exact, got 'strict'"):
        SparsifyOptions(match="strict")


def test_defaults_are_those_of_the_paper() -> None:
    """SIM (8): the A-part is bounded, if a kappa is given."""
    resolved = resolve(SparsifyOptions(match="exact"), 1.0)
    assert (resolved.solver, resolved.kappa, resolved.kappa_on) == ("clarabel", None, "a")
    assert resolve(resolved, 1.0) == resolved
    assert objective_of(resolved, False, 10).penalty.free
    assert resolve(SparsifyOptions(), 1.0).solver == "native"


def test_exact_rows_of_a_network(digits: dict[str, Path], tmp_path: Path) -> None:
    """More samples than inputs: the teacher's own rows are the only ones, and are found again."""
    result = sparsify(
        digits["states"],
        tmp_path / "run",
        SparsifyOptions(objective="l1", match="exact"),
        engine="serial",
    )
    assert result["statuses"] == {"certified": result["rows"]}
    model = load_model(tmp_path / "run")
    assert model.certificates is not None
    assert (model.certificates.kind == EQUALITY).all()
    assert model.certificates.projection_error.max() <= MATCH_TOLERANCE


def test_the_command_says_what_is_infeasible_and_what_to_do(digits: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["sparsify", str(digits["states"]), "--match", "exact", "--kappa", "0.1", "--kappa-on", "ab"]
    done = CliRunner().invoke(main, [*command, "--engine", "serial", "--json", "-o", str(run)])
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert result["statuses"]["infeasible"] == result["rows"] - result["certified"] > 0
    assert "infeasible: No row meets all constraints" in done.stderr
    shown = CliRunner().invoke(main, ["inspect", str(run), "--row", "0"])
    assert "certificate.status" in shown.output
    assert "--match relaxed" in shown.output
