"""The penalty family: value, conjugate and prox agree with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtool.errors import OptionError
from simtool.penalty import Penalty

weights = st.floats(0.01, 5.0)
penalties = st.one_of(
    st.builds(lambda a: Penalty(lam1=a), weights),
    st.builds(lambda a, b: Penalty(lam1=a, lam2=b), weights, weights),
    st.builds(lambda a, b, c: Penalty(a, b, c), weights, weights, weights),
    st.builds(lambda a: Penalty(lam0=a, lam2=a), weights),
)
numbers = st.floats(-20, 20)


@given(penalties, numbers)
def test_value_is_the_minimum_over_t(penalty: Penalty, w: float) -> None:
    """pen(w) = lam1 |w| + min over t of lam0 t + lam2 w^2 / t, on a fine grid of t."""
    t = np.linspace(1e-6, 1.0, 200_001)
    grid = penalty.lam1 * abs(w) + (penalty.lam0 * t + penalty.lam2 * w * w / t).min()
    value = float(penalty.value(np.array(w)))
    if penalty.lam2 == 0:
        assert value == pytest.approx(penalty.lam1 * abs(w))
    else:
        assert value <= grid + 1e-12
        assert value == pytest.approx(grid, rel=1e-4, abs=1e-4)


@given(penalties, numbers, st.floats(0, 3))
def test_conjugate_is_the_supremum(penalty: Penalty, v: float, multiplier: float) -> None:
    """pen*(v) = sup over w of v w - pen(w) - multiplier |w|, on a grid."""
    w = np.linspace(-2000, 2000, 400_001)
    grid = float((v * w - penalty.value(w) - multiplier * np.abs(w)).max())
    value = float(penalty.conjugate(np.array(v), multiplier))
    if np.isinf(value):
        assert grid > 0
        return
    assert value >= grid - 1e-9
    assert value == pytest.approx(grid, rel=1e-3, abs=1e-2)


@given(penalties, numbers, numbers)
def test_fenchel_young(penalty: Penalty, w: float, v: float) -> None:
    """pen(w) + pen*(v) >= w v, with equality at a subgradient."""
    left = float(penalty.value(np.array(w)) + penalty.conjugate(np.array(v)))
    assert left >= w * v - 1e-9 * max(1.0, abs(w * v))
    subgradient = np.sign(w) * (penalty.slope + 2 * penalty.lam2 * max(abs(w) - penalty.knee, 0.0))
    if w != 0 and penalty.lam2 > 0:
        tight = float(penalty.value(np.array(w)) + penalty.conjugate(np.array(subgradient)))
        assert tight == pytest.approx(w * subgradient, rel=1e-9, abs=1e-9)


@given(penalties, numbers, numbers, st.floats(0.01, 10))
def test_prox_minimises_and_is_non_expansive(penalty: Penalty, v: float, u: float, step: float) -> None:
    w = np.linspace(-25, 25, 100_001)
    objective = penalty.value(w) + (w - v) ** 2 / (2 * step)
    p = penalty.prox(np.array([v, u]), step)
    at_p = float(penalty.value(p[:1])[0] + (p[0] - v) ** 2 / (2 * step))
    assert at_p <= objective.min() + 1e-9
    assert abs(p[0] - p[1]) <= abs(v - u) * (1 + 1e-12) + 1e-12


def test_perspective_is_the_reverse_huber() -> None:
    w = np.array([0.0, 0.3, -1.0, 2.5])
    alpha = 1e-3
    expected = alpha * np.where(np.abs(w) <= 1, 2 * np.abs(w), w * w + 1)
    np.testing.assert_allclose(Penalty(lam0=alpha, lam2=alpha).value(w), expected, rtol=1e-15)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_non_negative(bad: float) -> None:
    with pytest.raises(OptionError, match="lam1"):
        Penalty(lam1=bad)


def test_lam0_alone_is_refused() -> None:
    with pytest.raises(OptionError, match="no effect without lam2"):
        Penalty(lam0=1.0)


def test_the_command_line_reaches_all_three_weights() -> None:
    from simtool.stages.sparsify.options import SparsifyOptions, penalty_of, resolve

    def chosen(**options: float) -> Penalty:
        return penalty_of(resolve(SparsifyOptions(objective="perspective", **options), 1.0))

    assert chosen() == Penalty(lam0=1e-3, lam2=1e-3)
    assert chosen(alpha=0.5, beta=0.25) == Penalty(lam0=0.5, lam1=0.25, lam2=0.5)
    assert chosen(alpha=0.5, beta=0.25, gamma=3.0) == Penalty(lam0=0.5, lam1=0.25, lam2=1.5)
