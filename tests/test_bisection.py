"""The thesis's bisection: the same answers as the native solver, and what its warm start saves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES, make_rows

from simtool.certificate import certify
from simtool.solvers import bisection, native
from simtool.solvers.elimination import ReducedRow, solve_rows


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(sorted(PENALTIES)),
    st.sampled_from([None, 0.05, 0.7, 2.0]),
    st.booleans(),
)
def test_bisection_agrees_with_the_native_solver(
    seed: int, name: str, kappa: float | None, on_a: bool
) -> None:
    rows = make_rows(seed, d=10, m=60, penalty=PENALTIES[name], kappa=kappa, on_a=on_a)
    ours, theirs = (certify(rows, solver.solve(rows, 1e-6), 1e-6) for solver in (native, bisection))
    assert theirs.certified.all(), theirs
    denominator = np.maximum(ours.primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
    assert np.all(np.abs(ours.primal - theirs.primal) <= 1e-6 * denominator)


def test_a_ball_on_a_whose_features_pull_more_once_the_others_fit() -> None:
    """||W z||_inf does not close the ball here: the free part of the row uncovers a stronger pull."""
    rows = make_rows(535071, d=10, m=60, penalty=PENALTIES["all"], kappa=0.05, on_a=True)
    assert certify(rows, bisection.solve(rows, 1e-6), 1e-6).certified.all()


def _trace(warm: bool) -> tuple[np.ndarray, list[bisection.Step]]:
    rows = make_rows(3, d=60, m=300, r=1, kappa=1.5, oddities=False)
    seen: list[tuple[np.ndarray, list[bisection.Step]]] = []

    def solver(row: ReducedRow, tolerance: float) -> np.ndarray:
        seen.append(bisection.bisect_row(row, tolerance, warm=warm, width=1e-2))
        return seen[-1][0]

    w = solve_rows(rows, 1e-6, solver)
    return w, seen[0][1]


def test_a_warm_start_saves_sweeps_and_changes_nothing() -> None:
    """Thesis Table 3.3: the same path with and without warm starts, in fewer sweeps with them."""
    (warm_w, warm), (cold_w, cold) = _trace(True), _trace(False)
    np.testing.assert_allclose(warm_w, cold_w, atol=1e-6)
    assert [s.multiplier for s in warm] == [s.multiplier for s in cold]
    assert sum(s.sweeps for s in warm) < sum(s.sweeps for s in cold)


def test_the_norm_falls_as_the_multiplier_grows() -> None:
    _, steps = _trace(True)
    ordered = sorted(steps, key=lambda s: s.multiplier)
    norms = [s.norm for s in ordered]
    assert norms == sorted(norms, reverse=True)
    assert len(steps) > 5


@pytest.mark.parametrize("kappa", [0.0, 1e4])
def test_a_closed_and_a_slack_ball(kappa: float) -> None:
    rows = make_rows(5, d=8, m=50, kappa=kappa, oddities=False)
    w = bisection.solve(rows, 1e-6)
    assert certify(rows, w, 1e-6).certified.all()
    assert w.any() == (kappa > 0)
