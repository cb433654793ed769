"""Column norms: the outer loop over row solves finds what a cone solver finds, never goes up, and proves it."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool.errors import OptionError
from simtool.solvers.column_groups import CoupledRows, certify, refit, solve


def random_rows(seed: int, masks: bool = True, samples: int | None = None) -> CoupledRows:
    """A few features explain the rows; some features are alike, some have no penalty, some are zero."""
    rng = np.random.default_rng(seed)
    d, r = int(rng.integers(3, 12)), int(rng.integers(1, 7))
    m = samples or int(rng.integers(d, 40))
    design = rng.normal(size=(d, m)) * 10.0 ** rng.uniform(-1, 1, (d, 1))
    design[d // 2] = design[0] + 0.05 * rng.normal(size=m)
    design[-1] = 1.0
    if seed % 5 == 0:
        design[1] = 0.0
    truth = rng.normal(size=(r, d)) * (rng.random(d) < 0.4)
    targets = truth @ design + 0.3 * rng.normal(size=(r, m))
    grouped = np.ones(d, dtype=bool)
    grouped[-1] = False
    grouped[d - 2] = seed % 2 == 0
    allowed = None
    if masks:
        allowed = np.repeat(rng.random((2, d)) < 0.8, [r // 2, r - r // 2], axis=0)
    return CoupledRows(design, targets, grouped, float(rng.choice([0.1, 0.5, 1.0])), allowed)


def by_clarabel(problem: CoupledRows, weight: float) -> float:
    r, d = len(problem.targets), len(problem.design)
    v = cp.Variable((r, d))
    loss = problem.loss_weight * cp.sum_squares(problem.targets - v @ problem.design)
    norms = cp.sum([cp.norm(v[:, j]) for j in np.flatnonzero(problem.grouped)])
    outside = [] if problem.allowed is None else [cp.multiply(v, ~problem.allowed) == 0]
    unit = problem.loss_weight * float((problem.targets**2).sum())
    found = cp.Problem(cp.Minimize((loss + weight * norms) / unit), outside)
    found.solve(solver=cp.CLARABEL)
    return unit * float(found.value)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.9, 0.3, 0.05, 0.003]))
def test_the_optimum_of_a_cone_solver(seed: int, masks: bool, share: float) -> None:
    problem = random_rows(seed, masks)
    weight = share * problem.largest_weight
    if weight == 0.0:  # no grouped feature is allowed anywhere
        return
    ours = solve(problem, weight, 1e-9)
    value = by_clarabel(problem, weight)
    scale = max(value, 1e-2 * problem.loss_weight * float((problem.targets**2).sum()))
    assert ours.certificate.certified
    assert abs(ours.certificate.primal - value) <= 1e-6 * scale
    assert ours.certificate.dual <= value + 1e-6 * scale
    assert ours.certificate.projection_error < 1e-9
    assert (np.diff(ours.history) <= 1e-11 * ours.history[0]).all()
    assert ours.history[-1] == pytest.approx(ours.certificate.primal, rel=1e-6, abs=1e-6 * scale)
    if problem.allowed is not None:
        assert not ours.coefficients[~problem.allowed].any()


@given(st.integers(0, 10**6))
def test_above_the_largest_weight_all_grouped_columns_are_zero(seed: int) -> None:
    problem = random_rows(seed)
    if problem.largest_weight == 0.0:
        return
    none = solve(problem, 1.0001 * problem.largest_weight)
    assert not none.norms[problem.grouped].any()
    assert none.certificate.certified
    some = solve(problem, 0.9 * problem.largest_weight)
    assert some.norms[problem.grouped].any()


@given(st.integers(0, 10**6))
def test_the_certificate_is_a_bound_for_any_coefficients(seed: int) -> None:
    """Wrong coefficients get a gap, and their dual value is never above the optimum."""
    problem = random_rows(seed)
    if problem.largest_weight == 0.0:
        return
    weight = 0.1 * problem.largest_weight
    best = solve(problem, weight, 1e-8)
    rng = np.random.default_rng(seed)
    wrong = best.coefficients + 0.3 * rng.normal(size=best.coefficients.shape) * np.abs(best.coefficients)
    found = certify(problem, weight, wrong)
    scale = max(best.certificate.primal, 1.0)
    assert found.dual <= best.certificate.primal + 1e-8 * scale
    assert found.primal >= best.certificate.dual - 1e-8 * scale
    if found.relative_gap > 1e-6:
        assert not found.certified


@pytest.mark.parametrize("samples", [5, 400])
def test_the_true_columns_are_found(samples: int) -> None:
    """Three of 40 features matter to 12 rows; with fewer samples than features it is still certified."""
    rng = np.random.default_rng(2)
    design = np.vstack([rng.normal(size=(40, samples)), np.ones((1, samples))])
    truth = np.zeros((12, 41))
    truth[:, [3, 8, 20]] = rng.normal(size=(12, 3)) + 2.0
    truth[:, -1] = 1.0
    targets = truth @ design + 0.01 * rng.normal(size=(12, samples))
    problem = CoupledRows(design, targets, np.arange(41) < 40)
    found = solve(problem, 0.1 * problem.largest_weight)
    assert found.certificate.certified
    if samples > 40:
        assert np.flatnonzero(found.norms).tolist() == [3, 8, 20, 40]
        again = refit(problem, found.coefficients)
        np.testing.assert_allclose(again, truth, atol=5e-3)
        assert np.abs(found.coefficients - truth).max() > 0.05  # what the norms shrank


def test_one_row_is_a_lasso() -> None:
    """With one row a column norm is a modulus: the same problem as l1 with the weight on every coefficient."""
    from simtool.design import Design
    from simtool.penalty import Penalty
    from simtool.problem import Objective, RowSet
    from simtool.solvers import native

    rng = np.random.default_rng(4)
    design, target = rng.normal(size=(20, 60)), rng.normal(size=(1, 60))
    problem = CoupledRows(design, target, np.ones(20, dtype=bool))
    weight = 0.2 * problem.largest_weight
    rows = RowSet(Design(design), target, Objective(0.5, Penalty(lam1=weight)), np.zeros(20, dtype=bool))
    np.testing.assert_allclose(
        solve(problem, weight, 1e-10).coefficients, native.solve(rows, 1e-10), atol=1e-6
    )


def test_features_that_are_the_same_share_a_column_norm() -> None:
    """Two equal features: the solution is not unique, its value is."""
    rng = np.random.default_rng(5)
    one = rng.normal(size=(4, 30))
    design = np.vstack([one, one[:1]])
    targets = rng.normal(size=(3, 4)) @ one + 0.1 * rng.normal(size=(3, 30))
    twice = CoupledRows(design, targets, np.ones(5, dtype=bool))
    once = CoupledRows(one, targets, np.ones(4, dtype=bool))
    weight = 0.05 * once.largest_weight
    values = [solve(problem, weight, 1e-9).certificate for problem in (twice, once)]
    assert values[0].certified
    assert values[0].primal == pytest.approx(values[1].primal, rel=1e-8)


def test_refusals() -> None:
    design, targets, grouped = np.ones((3, 5)), np.ones((2, 5)), np.ones(3, dtype=bool)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"targets": np.ones((2, 4))}, "same samples"),
        ({"design": np.full((3, 5), np.nan)}, "must be finite"),
        ({"grouped": np.ones(2, dtype=bool)}, "3 booleans"),
        ({"grouped": np.ones(3)}, "3 booleans, got float64"),
        ({"allowed": np.ones((2, 2), dtype=bool)}, r"shape \(2, 3\)"),
        ({"loss_weight": 0.0}, "above 0"),
    ]
    for changes, pattern in cases:
        with pytest.raises(OptionError, match=pattern):
            CoupledRows(**({"design": design, "targets": targets, "grouped": grouped} | changes))
    problem = CoupledRows(design, targets, grouped, allowed=np.array([[True, True, False]] * 2))
    for weight in (0.0, -1.0, np.nan):
        with pytest.raises(OptionError, match="above 0"):
            solve(problem, weight)
    with pytest.raises(OptionError, match="tolerance"):
        solve(problem, 1.0, 0.0)
    with pytest.raises(OptionError, match="may not use"):
        certify(problem, 1.0, np.ones((2, 3)))
