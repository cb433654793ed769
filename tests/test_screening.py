"""Screening: never wrong, from any feasible row; and the laws its formula obeys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES, make_rows, row_sets

from simtool.certificate import certify
from simtool.design import Design
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.screening import inactive, screen
from simtool.solvers import conic, native
from simtool.solvers.feasible import restore_feasibility


def _feasible(rows: RowSet, w: np.ndarray) -> np.ndarray:
    """``w`` brought into the row's bounds, mask and ball."""
    if rows.lower is not None and rows.upper is not None:
        w = np.clip(w, rows.lower, rows.upper)
    if rows.allowed is not None:
        w = np.where(rows.allowed, w, 0.0)
    return restore_feasibility(rows, w)


def _near(rows: RowSet, optimum: np.ndarray, seed: int, size: float) -> np.ndarray:
    """A feasible point, ``size`` away from ``optimum`` relative to its largest entry."""
    noise = np.random.default_rng(seed).standard_normal(optimum.shape)
    scale = size * (np.abs(optimum).max(initial=0.0) or 1.0)
    return _feasible(rows, optimum + scale * noise * (np.abs(noise) > 0.7))


def _usable(rows: RowSet) -> np.ndarray:
    return np.ones((rows.count, rows.design.d), dtype=bool) if rows.allowed is None else rows.allowed


def _check_never_wrong(rows: RowSet, seed: int, size: float) -> None:
    best = native.solve(rows, 1e-12)
    for w in (best, _near(rows, best, seed, size)):
        found = inactive(rows, w)
        assert not np.any(found.inactive & (best != 0.0)), (found, best)
        assert np.all(found.inactive | _usable(rows))


@settings(deadline=None, max_examples=150)
@given(row_sets(), st.integers(0, 2**31), st.sampled_from([1e-12, 1e-6, 1e-3, 0.1, 1.0]))
def test_never_drops_what_an_optimal_row_uses(rows: RowSet, seed: int, size: float) -> None:
    _check_never_wrong(rows, seed, size)


@pytest.mark.stress
@settings(deadline=None, max_examples=3000)
@given(row_sets(), st.integers(0, 2**31), st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0]))
def test_never_drops_on_many(rows: RowSet, seed: int, size: float) -> None:
    _check_never_wrong(rows, seed, size)


@settings(deadline=None, max_examples=25)
@given(row_sets(), st.integers(0, 2**31), st.sampled_from([1e-6, 1e-2, 0.3]))
def test_clarabel_does_as_well_without_the_dropped_features(rows: RowSet, seed: int, size: float) -> None:
    """The referee solves the rows with and without them: the optimal value is the same."""
    referee = conic.solve(rows, 1e-9)
    whole = certify(rows, referee, 1e-6)
    left = ~inactive(rows, _near(rows, referee, seed, size)).inactive
    reduced = replace(rows, allowed=left)
    part = certify(rows, conic.solve(reduced, 1e-9), 1e-6)
    if whole.certified.all():
        scale = np.maximum(whole.primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
        assert np.all(part.primal <= whole.primal + 2e-6 * scale), (part, whole)


@pytest.mark.parametrize("name", sorted(PENALTIES))
@pytest.mark.parametrize("kappa", [None, 0.6])
def test_drops_exactly_the_zeros_at_the_optimum(name: str, kappa: float | None) -> None:
    """Without ties, strict complementarity holds, and a tight gap proves every zero."""
    rows = make_rows(5, d=20, m=80, penalty=PENALTIES[name], kappa=kappa, oddities=False)
    w = native.solve(rows, 1e-12)
    found = inactive(rows, w)
    np.testing.assert_array_equal(found.inactive, w == 0.0)
    if PENALTIES[name].slope > 0 or kappa is not None:
        assert found.inactive.any()


def test_duplicated_columns_in_use_are_both_kept() -> None:
    """Features 2 and 3 are the same: an optimal row may use either, so neither is ever proven inactive."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((8, 40))
    w[3] = w[2]
    z = (1.3 * w[2] - 0.8 * w[5] + 0.05 * rng.standard_normal(40))[None]
    for penalty, kappa in [(Penalty(), 1.0), (Penalty(lam1=2.0), None), (Penalty(lam0=1.0, lam2=1.0), 0.9)]:
        rows = RowSet(Design(w), z, Objective(0.5, penalty, kappa), np.ones(8, bool))
        best = native.solve(rows, 1e-12)
        swapped = best.copy()
        swapped[:, [2, 3]] = best[:, [3, 2]]
        assert best[0, 2] + best[0, 3] > 0.1
        for point in (best, swapped, 0.5 * (best + swapped)):
            assert not inactive(rows, point).inactive[0, [2, 3, 5]].any()
            assert inactive(rows, point).inactive.any()


@settings(deadline=None, max_examples=100)
@given(row_sets(), st.integers(0, 2**31), st.sampled_from([1e-9, 1e-3, 0.3]))
def test_the_ball_holds_the_optimal_dual_point(rows: RowSet, seed: int, size: float) -> None:
    """||nu - nu*|| <= rho for the residual of any feasible row."""
    best = native.solve(rows, 1e-12)
    if not certify(rows, best, 1e-9).certified.all():
        return
    w = _near(rows, best, seed, size)
    everything = rows.design.dense(np.arange(rows.design.d))
    apart = 2.0 * rows.objective.loss_weight * (w - best) @ everything
    if rows.penalty_free.any():
        apart = rows.free_basis.project_out(apart)
    slack = inactive(rows, best).radius  # where the solver itself stopped
    assert np.all(np.sqrt(np.square(apart).sum(axis=1)) <= inactive(rows, w).radius + slack)


def test_the_constant_of_the_ball_is_the_least_possible() -> None:
    """One feature whose coefficient is just above zero: with a radius 3 % smaller the rule would drop it."""
    loss, slope = 0.5, 1.0
    z = (1.0 + 1e-6) * slope / (2.0 * loss)  # W = [1], so w* = z - slope / (2 loss) > 0
    nu = 0.5 * slope  # dual feasible, far from nu* = slope
    primal = loss * (slope / (2 * loss)) ** 2 + slope * (z - slope / (2 * loss))
    gap = np.array([primal - (nu * z - nu**2 / (4 * loss))])

    def dropped(gap: np.ndarray) -> bool:
        found = screen(np.array([[nu]]), np.ones(1), gap, Penalty(lam1=slope), None, np.zeros(1, bool), loss)
        return bool(found[0, 0])

    assert not dropped(gap)
    assert dropped(gap * 0.97**2)


def _arguments(rows: RowSet, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    d = rows.design.d
    return {
        "correlation": rng.standard_normal((rows.count, d)) * rng.choice([0.1, 1.0, 10.0]),
        "norms": np.sqrt(rows.design.squares),
        "gap": rng.random(rows.count) * rng.choice([1e-9, 1e-3, 1.0]),
        "bounded": rows.bounded,
    }


@settings(deadline=None, max_examples=150)
@given(row_sets(), st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_a_smaller_gap_drops_no_less(rows: RowSet, seed: int, factor: float) -> None:
    objective, given_ = rows.objective, _arguments(rows, seed)

    def at(gap: np.ndarray) -> np.ndarray:
        return screen(
            **{**given_, "gap": gap},
            penalty=objective.penalty,
            kappa=objective.kappa,
            loss_weight=objective.loss_weight,
            allowed=rows.allowed,
            lower=rows.lower,
            upper=rows.upper,
        )

    wide, narrow = at(given_["gap"]), at(factor * given_["gap"])
    assert np.all(narrow | ~wide)


@settings(deadline=None, max_examples=100)
@given(row_sets(), st.integers(0, 2**31))
def test_order_of_rows_and_features_does_not_matter(rows: RowSet, seed: int) -> None:
    objective, given_ = rows.objective, _arguments(rows, seed)
    rng = np.random.default_rng(seed)
    i, j = rng.permutation(rows.count), rng.permutation(rows.design.d)
    common = {
        "penalty": objective.penalty,
        "kappa": objective.kappa,
        "loss_weight": objective.loss_weight,
    }
    whole = screen(**given_, **common, allowed=rows.allowed, lower=rows.lower, upper=rows.upper)
    part = screen(
        given_["correlation"][np.ix_(i, j)],
        given_["norms"][j],
        given_["gap"][i],
        bounded=rows.bounded[j],
        **common,
        allowed=None if rows.allowed is None else rows.allowed[np.ix_(i, j)],
        lower=None if rows.lower is None else rows.lower[j],
        upper=None if rows.upper is None else rows.upper[j],
    )
    np.testing.assert_array_equal(part, whole[np.ix_(i, j)])


@settings(deadline=None, max_examples=100)
@given(row_sets(), st.integers(0, 2**31), st.integers(-12, 12), st.integers(-12, 12))
def test_units_do_not_matter(rows: RowSet, seed: int, a: int, b: int) -> None:
    """W in units of 2^a and z in units of 2^b, the weights following: the same features go."""
    objective, given_ = rows.objective, _arguments(rows, seed)
    feature, target = 2.0**a, 2.0**b
    pen, unit = objective.penalty, target / feature  # of a coefficient
    whole = screen(
        **given_, penalty=pen, kappa=objective.kappa, loss_weight=objective.loss_weight, allowed=rows.allowed
    )
    scaled = screen(
        given_["correlation"] * feature * target,
        given_["norms"] * feature,
        given_["gap"] * target**2,
        Penalty(lam0=pen.lam0 * target**2, lam1=pen.lam1 * target * feature, lam2=pen.lam2 * feature**2),
        None if objective.kappa is None else objective.kappa * unit,
        rows.bounded,
        objective.loss_weight,
        allowed=rows.allowed,
    )
    np.testing.assert_array_equal(scaled, whole)


def test_nothing_is_proven_from_what_is_no_feasible_row() -> None:
    rows = make_rows(2, penalty=PENALTIES["l1"], kappa=0.5)
    best = native.solve(rows, 1e-9)
    assert inactive(rows, best).inactive.any()
    outside = 3.0 * (best + 0.1)
    missing = np.where(np.arange(rows.design.d) == 2, np.nan, best)
    for w in (outside, missing, best * 1e200):
        found = inactive(rows, w)
        assert not found.inactive[:, ~rows.design.dead].any()
        assert np.isinf(found.radius).all()


def test_kappa_zero_drops_all_of_s() -> None:
    rows = make_rows(2, kappa=0.0, on_a=True, penalty=PENALTIES["ridge"])
    found = inactive(rows, native.solve(rows, 1e-9)).inactive
    assert found[:, rows.bounded].all()


def test_bounds_hold_a_coefficient_at_zero() -> None:
    """w >= 0 and a clearly negative correlation: inactive, though nothing else makes zeros."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 50))
    z = (w[0] - w[1])[None]
    rows = RowSet(
        Design(w),
        z,
        Objective(0.5, Penalty(), None),
        np.zeros(3, bool),
        lower=np.zeros(3),
        upper=np.full(3, np.inf),
    )
    best = native.solve(rows, 1e-9)
    found = inactive(rows, best).inactive[0]
    assert found[1]
    assert not found[0]
    free = replace(rows, lower=None, upper=None)
    assert not inactive(free, native.solve(free, 1e-9)).inactive.any()


def test_screening_from_a_known_proof_is_the_same() -> None:
    rows = make_rows(4, d=18, m=60, penalty=PENALTIES["elastic-net"], kappa=0.7, exclude=True)
    w = native.solve(rows, 1e-3)
    first, second = inactive(rows, w), inactive(rows, w, certify(rows, w, 1e-6))
    np.testing.assert_array_equal(first.inactive, second.inactive)
    np.testing.assert_array_equal(first.radius, second.radius)
