"""Budgets of non-zeros: elimination against plain numpy, allocation against dynamic programming."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool.budget import dense, forward, pivoting
from simtool.budget.allocation import allocate
from simtool.budget.curves import lower_hull
from simtool.budget.elimination import Paths, paths, patterned, start_size
from simtool.budget.warm import warm
from simtool.errors import InputError, OptionError

seeds = st.integers(0, 2**32 - 1)


def problem(
    seed: int, d: int = 20, m: int = 60, r: int = 3, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """A design (d, m) with correlated features, and targets (r, m) that are sparse in it plus noise."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, m)) + rng.standard_normal((d, 4)) @ rng.standard_normal((4, m))
    truth = rng.standard_normal((r, d)) * (rng.random((r, d)) < 0.4)
    return w, truth @ w + noise * rng.standard_normal((r, m))


def gram_of(w: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return w @ w.T, z @ w.T, np.sum(np.square(z), axis=1)


def loss_on(w: np.ndarray, z: np.ndarray, support: np.ndarray) -> float:
    """min ||z - W^T w||^2 on a support, from W itself by its singular values."""
    solution = np.linalg.lstsq(w[support].T, z, rcond=1e-10)[0]
    return float(np.sum(np.square(z - w[support].T @ solution)))


def brute_force(w: np.ndarray, z: np.ndarray, group: np.ndarray, least: np.ndarray) -> list[int]:
    """The order of removal when every candidate's least-squares loss is computed from scratch."""
    left = list(range(w.shape[0]))
    order = []
    while left:
        count = np.bincount(group[left], minlength=least.size)
        may = [j for j in left if count[group[j]] > least[group[j]]] or left
        losses = [loss_on(w, z, np.array([i for i in left if i != j], dtype=int)) for j in may]
        order.append(may[int(np.argmin(losses))])
        left.remove(order[-1])
    return order


@settings(max_examples=25, deadline=None)
@given(seed=seeds, d=st.integers(1, 14))
def test_elimination_removes_what_costs_least(seed: int, d: int) -> None:
    w, z = problem(seed, d=d, m=30, r=2)
    found = paths(*gram_of(w, z))
    nothing = np.zeros(d, dtype=int)
    for i in range(2):
        assert found.order[i].tolist() == brute_force(w, z[i], nothing, np.zeros(1, dtype=int))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, d=st.integers(1, 90))
def test_losses_are_exact_and_monotone(seed: int, d: int) -> None:
    # 90 features take several blocks of removals, and a start anew on the way.
    w, z = problem(seed, d=d, m=120)
    found = paths(*gram_of(w, z))
    assert found.losses.shape == (3, d + 1)
    for i in range(3):
        assert sorted(found.order[i]) == list(range(d))
        assert (np.diff(found.losses[i]) <= 0).all()
        for k in {0, 1, d // 3, d // 2, d}:
            exact = loss_on(w, z[i], found.support(i, k))
            assert found.losses[i, k] == pytest.approx(exact, rel=1e-9, abs=1e-10 * found.losses[i, 0])


def test_long_paths_do_not_drift() -> None:
    # Cosines of nearly the same frequency: the Gram matrix has a condition number above 1e8.
    t = np.linspace(0.0, 1.0, 700)
    w = np.cos(np.pi * np.outer(np.linspace(1.0, 145.0, 150), t)) + 0.3
    rng = np.random.default_rng(1)
    z = rng.standard_normal((1, 150)) @ w + 0.1 * rng.standard_normal((1, 700))
    gram, b, squares = gram_of(w, z)
    assert np.linalg.cond(gram) > 1e8
    found = paths(gram, b, squares)
    # The order is that of inverses computed anew before every removal.
    left, agree = list(range(150)), 0
    for removed in found.order[0]:
        h = gram[np.ix_(left, left)]
        inverse = np.linalg.inv(h + 1e-10 * np.diag(np.diag(h)))
        cost = np.square(inverse @ b[0, left]) / np.diag(inverse)
        assert cost[left.index(removed)] <= cost.min() * (1 + 1e-3) + 1e-9 * squares[0]
        agree += left[int(np.argmin(cost))] == removed
        left.remove(removed)
    assert agree >= 145
    for k in (10, 40, 80):
        assert found.losses[0, k] == pytest.approx(loss_on(w, z[0], found.support(0, k)), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, start=st.one_of(st.none(), st.integers(1, 45)))
def test_a_row_does_not_depend_on_its_company(seed: int, start: int | None) -> None:
    w, z = problem(seed, d=40, r=5)
    gram, b, squares = gram_of(w, z)
    together = paths(gram, b, squares, start=start)
    for i in (0, 3):
        alone = paths(gram, b[i : i + 1], squares[i : i + 1], start=start)
        assert alone.order[0].tobytes() == together.order[i].tobytes()
        assert alone.losses[0].tobytes() == together.losses[i].tobytes()


def test_threads_change_no_bit() -> None:
    code = (
        "import hashlib, numpy as np; from simtool.budget.elimination import paths; rng = np.random.default_rng(0);"
        "w = rng.integers(-9, 9, (300, 400)).astype(float); z = rng.integers(-9, 9, (2, 400)).astype(float);"
        "p = paths(w @ w.T, z @ w.T, (z * z).sum(axis=1));"
        "print(hashlib.sha256(p.order.tobytes() + p.losses.tobytes()).hexdigest())"
    )
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        found.add(run.stdout.strip())
    assert len(found) == 1


def test_dead_features_never_start() -> None:
    w, z = problem(3, d=10)
    w[[2, 7]] = 0.0
    found = paths(*gram_of(w, z))
    assert found.order.shape == (3, 8)
    assert not np.isin(found.order, [2, 7]).any()
    dead = paths(np.zeros((4, 4)), np.zeros((2, 4)), np.array([1.0, 0.0]))
    assert dead.order.shape == (2, 0)
    assert dead.losses.tolist() == [[1.0], [0.0]]


@settings(max_examples=20, deadline=None)
@given(seed=seeds, copies=st.integers(1, 5))
def test_features_that_depend_on_each_other(seed: int, copies: int) -> None:
    w, z = problem(seed, d=8, m=40)
    w = np.vstack([w, w[:copies], w[:1] + w[1:2]])
    found = paths(*gram_of(w, z))
    assert np.isfinite(found.losses).all()
    for i in range(3):
        # All that depends goes before anything that costs something.
        assert found.losses[i, 8] == pytest.approx(found.losses[i, -1], rel=1e-6)
        assert np.linalg.matrix_rank(w[found.support(i, 8)]) == 8
        for k in range(9 + copies):
            assert found.losses[i, k] == pytest.approx(
                loss_on(w, z[i], found.support(i, k)), rel=1e-6, abs=1e-9 * found.losses[i, 0]
            )


def test_more_features_than_samples() -> None:
    w, z = problem(5, d=50, m=20)
    found = paths(*gram_of(w, z))
    assert (found.losses[:, 20:] <= 1e-9 * found.losses[:, :1]).all()
    assert found.losses[0, 5] == pytest.approx(loss_on(w, z[0], found.support(0, 5)), rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, power=st.integers(-120, 120))
def test_units_change_nothing(seed: int, power: int) -> None:
    w, z = problem(seed, d=25)
    rng = np.random.default_rng(seed)
    found = paths(*gram_of(w, z))
    # Powers of two: not one bit of the order may change.
    units = np.ldexp(1.0, rng.integers(-60, 60, 25))
    other = paths(*gram_of(w * units[:, None], np.ldexp(z, power)))
    assert (other.order == found.order).all()
    np.testing.assert_allclose(other.losses, np.ldexp(found.losses, 2 * power), rtol=1e-12)


def test_a_row_that_needs_nothing() -> None:
    w, _ = problem(1, d=12)
    found = paths(*gram_of(w, np.zeros((1, 60))))
    assert (found.losses == 0).all()
    assert found.order[0].tolist() == list(range(12))  # equal costs go in order


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_exempt_features_stay_to_the_last(seed: int) -> None:
    w, z = problem(seed, d=9, m=30, r=2)
    exempt = np.zeros(9, dtype=bool)
    exempt[[0, 8]] = True
    found = paths(*gram_of(w, z), exempt=exempt)
    assert (found.free == 7).all()
    for i in range(2):
        assert set(found.order[i, 7:]) == {0, 8}
        assert found.order[i].tolist() == brute_force(w, z[i], exempt.astype(int), np.array([0, 9]))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, pattern=st.sampled_from([(1, 2), (2, 4), (1, 3), (4, 8)]))
def test_patterns(seed: int, pattern: tuple[int, int]) -> None:
    keep, of = pattern
    w, z = problem(seed, d=14, m=40, r=2)
    bias = np.zeros(14, dtype=bool)
    bias[13] = True
    found = patterned(*gram_of(w, z), keep, of, exempt=bias)
    group = np.where(bias, 14 // of + 1, np.arange(14) // of)
    least = np.full(14 // of + 2, keep)
    least[-1] = 14
    for i in range(2):
        assert found.order[i].tolist() == brute_force(w, z[i], group, least)
        support = found.support(i, 14 - int(found.free[i]))
        assert 13 in support
        counts = np.bincount(support[support != 13] // of, minlength=-(-14 // of))
        assert counts.tolist() == [min(keep, size) for size in np.bincount(np.arange(13) // of)]


@settings(max_examples=15, deadline=None)
@given(seed=seeds, start=st.integers(1, 40))
def test_a_start_by_forward_selection(seed: int, start: int) -> None:
    w, z = problem(seed, d=40, m=90)
    w[5] = 0.0
    found = paths(*gram_of(w, z), start=start)
    assert found.order.shape == (3, min(start, 39))
    for i in range(3):
        order = found.order[i].tolist()
        assert len(set(order)) == len(order)
        assert 5 not in order
        for k in {0, 1, len(order) // 2, len(order)}:
            assert found.losses[i, k] == pytest.approx(
                loss_on(w, z[i], found.support(i, k)), rel=1e-8, abs=1e-10 * found.losses[i, 0]
            )


@pytest.mark.parametrize("start", [3, 4, 6])
def test_exempt_features_are_in_every_start(start: int) -> None:
    w, z = problem(2, d=30)
    w[4] = w[3]
    exempt = np.zeros(30, dtype=bool)
    exempt[[3, 4, 29]] = True
    found = paths(*gram_of(w, z), start=start, exempt=exempt)
    assert (found.free == start - 3).all()
    assert all(set(order[start - 3 :]) == {3, 4, 29} for order in found.order)


def test_a_start_finds_what_explains_the_target() -> None:
    rng = np.random.default_rng(7)
    w = rng.standard_normal((300, 500)) + rng.standard_normal((1, 500))
    truth = np.zeros(300)
    used = rng.choice(300, 12, replace=False)
    truth[used] = rng.choice([-1.0, 1.0], 12) * (1 + rng.random(12))
    z = (truth @ w)[None] + 0.1 * rng.standard_normal((1, 500))
    found = paths(*gram_of(w, z), start=40)
    assert found.support(0, 12).tolist() == sorted(used)


def test_starts_are_all_features_where_they_are_few() -> None:
    assert start_size(256, 1) is None
    assert start_size(785, 10) == 128
    assert start_size(785, 157) == 393
    assert start_size(785, 200) is None  # more than half of them: all
    assert start_size(4096, 300) == 750


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, b, s: (g[:2], b, s), "shapes"),
        (lambda g, b, s: (g, b[:, :2], s), "shapes"),
        (lambda g, b, s: (g, b * np.nan, s), "correlations .* finite"),
        (lambda g, b, s: (g, b, -s), "negative"),
    ],
)
def test_wrong_arrays_are_refused(change, message) -> None:  # type: ignore[no-untyped-def]
    arrays = change(*gram_of(*problem(0, d=4)))
    with pytest.raises(InputError, match=message):
        paths(*arrays)


def test_wrong_options_are_refused() -> None:
    arrays = gram_of(*problem(0, d=4))
    with pytest.raises(OptionError, match="at least 1 feature, got 0"):
        paths(*arrays, start=0)
    with pytest.raises(OptionError, match="got 5:4"):
        patterned(*arrays, 5, 4)
    with pytest.raises(InputError, match="exempt"):
        paths(*arrays, exempt=np.zeros(3, dtype=bool))
    with pytest.raises(OptionError, match="sizes are 0 to 4"):
        paths(*arrays).support(0, 5)


def test_rows_are_reported_as_they_are_done() -> None:
    done: list[int] = []
    paths(*gram_of(*problem(0, d=4)), between=done.append)
    assert done == [1, 2, 3]


# --- curves and allocation -------------------------------------------------------------------------------


def least_total(curves: list[np.ndarray], scale: np.ndarray, total: int, least: np.ndarray) -> float:
    """The optimum by dynamic programming."""
    best = np.full(total + 1, np.inf)
    best[0] = 0.0
    for curve, weight, first in zip(curves, scale, least, strict=True):
        new = np.full(total + 1, np.inf)
        for k in range(first, min(curve.size, total + 1)):
            new[k:] = np.minimum(new[k:], best[: total + 1 - k] + weight * curve[k])
        best = new
    return float(best[total])


def random_curves(rng: np.random.Generator, convex: bool) -> list[np.ndarray]:
    curves = []
    for _ in range(rng.integers(1, 6)):
        falls = rng.random(rng.integers(0, 9)) * (rng.random() < 0.9)
        falls = np.sort(falls) if convex else falls * rng.integers(0, 2, falls.size)
        curves.append(np.concatenate((np.cumsum(falls)[::-1], [0.0])))
    return curves


@settings(max_examples=200, deadline=None)
@given(seed=seeds, convex=st.booleans(), bounded=st.booleans())
def test_allocation_against_dynamic_programming(seed: int, convex: bool, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    curves = random_curves(rng, convex)
    scale = rng.random(len(curves)) * 10.0 ** rng.integers(-3, 3, len(curves))
    largest = np.array([c.size - 1 for c in curves])
    least = rng.integers(0, largest + 1) if bounded else np.zeros(largest.size, dtype=int)
    total = int(rng.integers(least.sum(), largest.sum() + 3))
    sizes = allocate(curves, scale, total, least if bounded else None)
    exact = min(total, int(largest.sum()))
    assert sizes.sum() == exact
    assert (sizes >= least).all()
    assert (sizes <= largest).all()
    reached = sum(w * c[k] for w, c, k in zip(scale, curves, sizes, strict=True))
    optimum = least_total(curves, scale, exact, least)
    slack = 1e-12 * sum(w * c[0] for w, c in zip(scale, curves, strict=True))
    if convex:
        assert reached <= optimum + slack
    else:
        # One piece of a hull at most is spent otherwise than the bound would.
        pieces = [0.0]
        for w, c, first in zip(scale, curves, least, strict=True):
            pieces += (-w * np.diff(c[lower_hull(c, int(first))])).tolist()
        assert reached <= optimum + max(pieces) + slack


def test_a_budget_ends_inside_a_piece() -> None:
    # Row 0 pays only as a whole; with 2 non-zeros row 1 is the better place for both.
    curves = [np.array([10.0, 10.0, 10.0, 0.0]), np.array([4.0, 3.0, 2.0])]
    assert allocate(curves, np.ones(2), 2).tolist() == [0, 2]
    assert allocate(curves, np.ones(2), 3).tolist() == [3, 0]
    assert allocate(curves, np.ones(2), 4).tolist() == [3, 1]
    assert allocate(curves, np.ones(2), 9).tolist() == [3, 2]


def test_equal_gains_go_to_the_first_rows() -> None:
    curves = [np.arange(4.0)[::-1]] * 5
    assert allocate(curves, np.ones(5), 7).tolist() == [3, 3, 1, 0, 0]
    assert allocate(curves, np.zeros(5), 2).tolist() == [2, 0, 0, 0, 0]


def test_weights_decide_between_rows() -> None:
    curves = [np.array([1.0, 0.0]), np.array([1.0, 0.0])]
    assert allocate(curves, np.array([1.0, 1.5]), 1).tolist() == [0, 1]


def test_allocation_of_many_rows() -> None:
    rng = np.random.default_rng(0)
    curves = [np.cumsum(falls)[::-1] for falls in rng.random((100_000, 33))]
    sizes = allocate(curves, rng.random(100_000), 1_234_567)
    assert sizes.sum() == 1_234_567


@pytest.mark.parametrize(
    ("curves", "scale", "total", "least", "error", "message"),
    [
        ([[1.0, 0.0]], [1.0], 0, [1], OptionError, "budget of 0 .* less than the 1"),
        ([[1.0, 0.0]], [1.0], -1, None, OptionError, "budget of -1"),
        ([[1.0, 0.0]], [-1.0], 1, None, InputError, "smallest -1"),
        ([[1.0, 0.0]], [1.0, 2.0], 1, None, InputError, "2 numbers"),
        ([[1.0, np.nan]], [1.0], 1, None, InputError, "row 0 is nan at size 1"),
        ([[1.0], []], [1.0, 1.0], 1, None, InputError, "row 1 is empty"),
        ([[1.0, 0.0]], [1.0], 1, [-1], InputError, "smallest -1"),
    ],
)
def test_wrong_budgets_are_refused(curves, scale, total, least, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        allocate(
            [np.array(c) for c in curves], np.array(scale), total, None if least is None else np.array(least)
        )


@settings(max_examples=50, deadline=None)
@given(seed=seeds, first=st.integers(0, 5))
def test_hull_is_convex_and_below(seed: int, first: int) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.random(rng.integers(first + 1, 30))
    vertices = lower_hull(losses, first)
    assert vertices[0] == first
    assert vertices[-1] == losses.size - 1
    slopes = np.diff(losses[vertices]) / np.diff(vertices)
    assert (np.diff(slopes) > 0).all()
    line = np.interp(np.arange(first, losses.size), vertices, losses[vertices])
    assert (losses[first:] >= line - 1e-12).all()


def test_paths_are_plain() -> None:
    found = paths(*gram_of(*problem(0, d=6)))
    assert isinstance(found, Paths)
    assert found.order.dtype == np.int32
    assert found.largest == 6


def test_warming_compiles_all_that_rows_need() -> None:
    kernels = (
        pivoting.eliminate,
        pivoting.exact_losses,
        pivoting.ridged,
        forward.choose,
        dense.solve,
        dense.invert,
    )
    warm()
    before = [kernel.signatures for kernel in kernels]
    assert all(before)
    w, z = problem(0)
    arrays = gram_of(w, z)
    for array in arrays:
        array.flags.writeable = False
    paths(*arrays)
    paths(*arrays, start=3, exempt=np.arange(20) == 19)
    patterned(*arrays, 2, 4)
    assert [kernel.signatures for kernel in kernels] == before
