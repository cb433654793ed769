"""Native against Clarabel over the family, and the compiled kernel against its plain-Python twin."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES, make_rows, row_sets

from simtool import solvers
from simtool.certificate import certify
from simtool.errors import OptionError
from simtool.penalty import Penalty
from simtool.problem import RowSet
from simtool.solvers import cholesky, conic, native


def _agree(rows: RowSet) -> None:
    ours, referee = (
        certify(rows, native.solve(rows, 1e-6), 1e-6),
        certify(rows, conic.solve(rows, 1e-6), 1e-6),
    )
    denominator = np.maximum(ours.primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
    difference = np.abs(ours.primal - referee.primal)
    assert ours.certified.all(), ours
    # Clarabel gives up on some rows in extreme units (and logs it); the certificate above has judged those already.
    judged = referee.certified | (0.1 < np.abs(rows.targets).max() < 100.0)
    assert np.all((difference <= 1e-6 * denominator)[judged]), (ours.primal, referee.primal)


@settings(deadline=None, max_examples=40)
@given(row_sets())
def test_native_agrees_with_clarabel(rows: RowSet) -> None:
    _agree(rows)


@pytest.mark.stress
@settings(deadline=None, max_examples=2000)
@given(row_sets())
def test_native_agrees_with_clarabel_on_many(rows: RowSet) -> None:
    _agree(rows)


@pytest.mark.parametrize("name", sorted(PENALTIES))
@pytest.mark.parametrize("kappa", [None, 0.6])
def test_clarabel_rows_are_certified_with_exact_zeros(name: str, kappa: float | None) -> None:
    rows = make_rows(7, d=20, m=80, penalty=PENALTIES[name], kappa=kappa)
    ours, referee = native.solve(rows, 1e-6), conic.solve(rows, 1e-6)
    assert certify(rows, referee, 1e-6).certified.all()
    if PENALTIES[name].slope > 0 or kappa is not None:
        # Duplicated columns may share a coefficient or not; every other zero is a zero in both.
        lone = np.setdiff1d(np.arange(20), [2, 3])
        assert np.array_equal(ours[:, lone] != 0, referee[:, lone] != 0)


@pytest.mark.parametrize("name", sorted(PENALTIES))
@pytest.mark.parametrize("kappa", [None, 0.6])
def test_scs_rows_are_certified(name: str, kappa: float | None) -> None:
    rows = make_rows(7, d=12, m=60, r=2, penalty=PENALTIES[name], kappa=kappa)
    assert certify(rows, conic.solve_scs(rows, 1e-6), 1e-6).certified.all()


@pytest.mark.parametrize(
    ("penalty", "kappa"),
    [(Penalty(), 80.0), (Penalty(lam1=0.01), None), (Penalty(lam0=0.01, lam2=0.01), 60.0)],
    ids=["lasso", "l1", "perspective"],
)
def test_dense_rows_are_certified(penalty: Penalty, kappa: float | None) -> None:
    """Over a hundred non-zeros: a weak penalty on more samples than features."""
    rows = make_rows(8, d=150, m=400, penalty=penalty, kappa=kappa, oddities=False)
    w = native.solve(rows, 1e-6)
    assert certify(rows, w, 1e-6).certified.all()
    assert (w != 0).sum(axis=1).max() > 100


def test_exact_fit_with_slack_kappa() -> None:
    """The optimum is zero and not unique: stop, certify, keep the support at most m plus the ball."""
    rng = np.random.default_rng(9)
    base = make_rows(9, d=40, m=15, kappa=1e4, oddities=False)
    targets = (rng.standard_normal((2, 40)) @ base.design.dense(np.arange(40))).astype(np.float32)
    rows = RowSet(base.design, targets, base.objective, base.constrained)
    w = native.solve(rows, 1e-6)
    assert certify(rows, w, 1e-6).certified.all()
    assert (w != 0).sum(axis=1).max() <= 16


def test_a_row_with_nothing_left_to_use_is_zero() -> None:
    """Its only feature is its own state."""
    rows = make_rows(0, d=1, m=5, r=1, penalty=PENALTIES["elastic-net"], exclude=True)
    for solver in (native, conic):
        w = solver.solve(rows, 1e-6)
        assert not w.any()
        assert certify(rows, w, 1e-6).certified.all()


def test_kappa_zero_gives_the_zero_row() -> None:
    rows = make_rows(10, kappa=0.0)
    assert not native.solve(rows, 1e-6).any()


def test_unknown_solver_is_named() -> None:
    with pytest.raises(OptionError, match="known are native, bisection, clarabel, scs"):
        solvers.get("simplex")


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_cholesky_grows_and_shrinks_exactly(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((size + 3, size))
    h = a.T @ a + np.eye(size)
    factor = np.zeros((size, size))
    kept: list[int] = []
    for j in range(size):
        cholesky.append(factor, len(kept), h[kept, j].copy() if kept else np.zeros(1), h[j, j])
        kept.append(j)
        if len(kept) > 2 and rng.random() < 0.5:
            position = int(rng.integers(len(kept)))
            cholesky.delete(factor, len(kept), position)
            del kept[position]
    k = len(kept)
    upper = np.triu(factor[:k, :k])
    np.testing.assert_allclose(upper.T @ upper, h[np.ix_(kept, kept)], rtol=1e-9, atol=1e-9)
    out = np.zeros(k)
    right = rng.standard_normal(k)
    cholesky.solve(factor, k, right, out)
    np.testing.assert_allclose(h[np.ix_(kept, kept)] @ out, right, rtol=1e-7, atol=1e-8)


_TWIN = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from row_problems import PENALTIES, make_rows
from simtool.solvers import native
out = [native.solve(make_rows(11, penalty=PENALTIES[n], kappa=k, oddities=False), 1e-6)
       for n in sorted(PENALTIES) for k in (None, 0.6)]
sys.stdout.write(np.array(out).tobytes().hex())
"""


def test_kernel_equals_its_plain_python_twin() -> None:
    """The same code without compilation gives the same rows (to rounding: the compiler may fuse)."""
    code = _TWIN.format(tests=os.path.dirname(__file__))
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    plain = np.frombuffer(bytes.fromhex(run.stdout))
    compiled = np.array(
        [
            native.solve(make_rows(11, penalty=PENALTIES[n], kappa=k, oddities=False), 1e-6)
            for n in sorted(PENALTIES)
            for k in (None, 0.6)
        ]
    ).ravel()
    np.testing.assert_allclose(compiled, plain, atol=1e-10)
