"""The certificate: a valid bound at any point, tight at the optimum, blind to who solved the row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES, make_rows, row_sets

from simtool.certificate import DUALITY_GAP, NORMAL_EQUATIONS, certify
from simtool.design import Design
from simtool.dual_bound import DualBound
from simtool.problem import Objective, RowSet, primal_values
from simtool.solvers import native
from simtool.solvers.feasible import restore_feasibility


def _feasible(rows: RowSet, seed: int, size: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = (
        size
        * rng.standard_normal((rows.count, rows.design.d))
        * (rng.random((rows.count, rows.design.d)) < 0.6)
    )
    if rows.allowed is not None:
        w[~rows.allowed] = 0.0
    w = np.clip(
        w, -np.inf if rows.lower is None else rows.lower, np.inf if rows.upper is None else rows.upper
    )
    return restore_feasibility(rows, w)


@settings(deadline=None, max_examples=150)
@given(row_sets(), st.integers(0, 2**31), st.sampled_from([0.01, 0.3, 3.0]))
def test_bound_holds_at_any_feasible_point(rows: RowSet, seed: int, size: float) -> None:
    """The dual value of one feasible point never exceeds the primal value of another."""
    first, second = _feasible(rows, seed, size), _feasible(rows, seed + 1, 0.1)
    dual = certify(rows, first, 1e-6).dual
    w = np.array([[*row] for row in second])
    residual = rows.target() - w @ rows.design.dense(np.arange(rows.design.d))
    primal = primal_values(rows, w, np.square(residual).sum(axis=1))
    scale = rows.objective.loss_weight * rows.target_norms + np.abs(primal)
    assert np.all(dual <= primal + 1e-9 * scale)


@settings(deadline=None, max_examples=150)
@given(row_sets())
def test_solved_rows_are_certified(rows: RowSet) -> None:
    w = native.solve(rows, 1e-6)
    proof = certify(rows, w, 1e-6)
    assert proof.certified.all(), proof
    assert np.all(proof.kappa_slack >= -1e-12 * (rows.objective.kappa or 1.0)) or rows.objective.kappa is None


@settings(deadline=None, max_examples=60)
@given(row_sets(), st.integers(0, 1000))
def test_a_worse_row_is_not_certified(rows: RowSet, seed: int) -> None:
    """Moving a certified row far enough to lose a percent of its objective loses the certificate."""
    w = native.solve(rows, 1e-6)
    worse = restore_feasibility(rows, w + _feasible(rows, seed, 0.5))
    before, after = certify(rows, w, 1e-6), certify(rows, worse, 1e-6)
    lost = after.primal - before.primal > 1e-2 * np.maximum(
        after.primal, rows.objective.loss_weight * rows.target_norms
    )
    assert not np.any(after.certified & lost)


def test_an_infeasible_row_is_never_certified() -> None:
    rows = make_rows(0, kappa=0.5)
    w = native.solve(rows, 1e-6)
    assert certify(rows, w, 1e-6).certified.all()
    w[0] *= 1.0 + 1e-9
    proof = certify(rows, w, 1e-6)
    assert not proof.certified[0]
    assert proof.certified[1:].all()


def test_a_row_that_uses_its_own_state_is_never_certified() -> None:
    rows = make_rows(1, kappa=0.5, exclude=True)
    w = native.solve(rows, 1e-6)
    w[0, 0] = 1e-300
    assert not certify(rows, w, 1e-6).certified[0]


@pytest.mark.parametrize("kappa", [None, 0.5])
@pytest.mark.parametrize("name", ["none", "l1", "ridge", "perspective"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200, 1e300])
def test_what_is_no_number_is_never_certified(bad: float, name: str, kappa: float | None) -> None:
    rows = make_rows(2, penalty=PENALTIES[name], kappa=kappa)
    w = native.solve(rows, 1e-6)
    w[1, 0] = bad
    proof = certify(rows, w, 1e-6)
    assert proof.certified.tolist() == [True, False, True]
    assert proof.relative_gap[1] > 1e-6


def test_a_target_or_design_with_nan_is_never_certified() -> None:
    rows = make_rows(2, penalty=PENALTIES["l1"])
    w = native.solve(rows, 1e-6)
    targets = rows.targets.copy()
    targets[0, 3] = np.nan
    bad = RowSet(rows.design, targets, rows.objective, rows.constrained, rows.allowed)
    assert certify(bad, w, 1e-6).certified.tolist() == [False, True, True]
    features = rows.design.dense(np.arange(rows.design.d))
    features[0, 0] = np.inf
    worse = RowSet(Design(features), rows.targets, rows.objective, rows.constrained, rows.allowed)
    assert not certify(worse, w, 1e-6).certified.any()


@pytest.mark.parametrize("small", [1e-6, 1e-10, 1e-14, 1e-18])
def test_penalty_free_features_in_any_units(small: float) -> None:
    """A feature in tiny units matters as much as any: the row is solved, and a row without it is not certified."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal(200)
    w = np.vstack([rng.standard_normal((3, 200)), small * v])
    z = (v + 0.5 * w[0])[None]
    rows = RowSet(Design(w), z, Objective(0.5, PENALTIES["none"]), np.ones(4, dtype=bool))
    solved = native.solve(rows, 1e-6)
    proof = certify(rows, solved, 1e-6)
    assert proof.certified.all()
    assert proof.primal[0] < 1e-20
    solved[0, 3] = 0.0
    assert not certify(rows, solved, 1e-6).certified.any()


def test_zero_target_and_zero_row_have_gap_zero() -> None:
    rows = make_rows(3, kappa=0.5)
    rows = RowSet(rows.design, np.zeros_like(rows.targets), rows.objective, rows.constrained, rows.allowed)
    proof = certify(rows, np.zeros((rows.count, rows.design.d)), 1e-6)
    assert proof.certified.all()
    assert np.all(proof.relative_gap == 0.0)
    assert np.all(proof.primal == 0.0)


@pytest.mark.parametrize(("kappa", "kind"), [(None, NORMAL_EQUATIONS), (0.5, DUALITY_GAP)])
def test_kind_names_the_proof(kappa: float | None, kind: int) -> None:
    rows = make_rows(4, kappa=kappa)
    proof = certify(rows, native.solve(rows, 1e-6), 1e-6)
    assert np.all(proof.kind == kind)
    assert np.all(proof.projection_error < 1e-12)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([name for name, pen in PENALTIES.items() if pen.lam2 > 0]),
    st.integers(0, 2**31),
    st.floats(0.0, 3.0),
)
def test_best_multiplier_is_the_maximum_on_a_grid(name: str, seed: int, kappa: float) -> None:
    rng = np.random.default_rng(seed)
    correlation = np.abs(rng.standard_normal((1, 9))) * 3
    bounded = np.arange(9) < 6
    bound = DualBound(np.ones(1), np.ones(1), correlation, bounded, PENALTIES[name], kappa)
    mu = bound._best_multiplier(np.ones(1))

    def value(multiplier: np.ndarray) -> np.ndarray:
        inside = PENALTIES[name].conjugate(correlation[:, bounded], multiplier[:, None]).sum(axis=1)
        return -kappa * multiplier - inside

    grid = value(np.linspace(0.0, 12.0, 24_001))
    assert value(mu)[0] >= grid.max() - 1e-9


def test_permuting_rows_features_or_samples_permutes_the_answer() -> None:
    rng = np.random.default_rng(5)
    base = make_rows(6, penalty=PENALTIES["l1"], kappa=0.8, oddities=False)
    w = base.design.dense(np.arange(base.design.d)).astype(np.float32)
    a, b, c = rng.permutation(base.count), rng.permutation(base.design.d), rng.permutation(base.design.m)
    permuted = RowSet(
        Design(np.ascontiguousarray(w[b][:, c])),
        np.ascontiguousarray(base.targets[a][:, c]),
        Objective(base.objective.loss_weight, base.objective.penalty, base.objective.kappa),
        base.constrained[b],
    )
    one, two = native.solve(base, 1e-6), native.solve(permuted, 1e-6)
    np.testing.assert_allclose(two, one[a][:, b], atol=1e-9)
