"""The native solver's ways to the same answer: each of its shortcuts switched off must not change what is certified."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from row_problems import PENALTIES, make_rows, row_sets

from simtool.certificate import certify
from simtool.design import Design, FeatureTiles
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.row_space import ApartSpace, GramSpace, SingularSpace, TriangularSpace, row_space
from simtool.solvers import guessing, native, regime, working_set
from simtool.solvers.elimination import Elimination, SharedGram, solve_rows
from simtool.solvers.face import solve_reduced
from simtool.solvers.pursuit import pursue


def _on_gram(rows: RowSet) -> np.ndarray:
    return solve_rows(rows, 1e-6, lambda row, goal: solve_reduced(row, goal)[0])


def _cold(rows: RowSet) -> np.ndarray:
    """Working sets that always start again from zero."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            working_set, "solve_reduced", lambda row, goal, start: solve_reduced(row, goal, 0.0 * start)
        )
        return working_set.solve(rows, 1e-6)


def _everything_at_once(rows: RowSet) -> np.ndarray:
    """Working sets that take in every feature that pays: no selection."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_WANTED", "_POOL"):
            patch.setattr(working_set, name, 10**6)
        return working_set.solve(rows, 1e-6)


def _guessed(rows: RowSet) -> np.ndarray:
    """Working sets that begin with a sample of the samples, however few there are; one feature at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simtool.design._SAMPLE_STEP", 2)
        patch.setattr("simtool.design._SAMPLE_LEAST", 1)
        for module in (working_set, guessing):
            patch.setattr(module, "_WANTED", 1)
            patch.setattr(module, "_POOL", 3)
        return working_set.solve(rows, 1e-6)


def _by_singular_values(rows: RowSet) -> np.ndarray:
    """Smooth features eliminated without their Gram matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simtool.problem.row_space", lambda w, ridge, gram: SingularSpace(w, ridge))
        return _on_gram(rows)


def _in_tiles(patch: pytest.MonkeyPatch) -> None:
    """Hold nothing: features and vectors are read a few samples at a time, however small they are."""
    patch.setattr("simtool.design._MOST_HELD", 0)
    patch.setattr("simtool.design._MOST_TILE", 64)
    patch.setattr("simtool.row_space.vectors._MOST_KEPT", 0)


def _read_in_tiles(rows: RowSet) -> np.ndarray:
    """What does not fit in memory, on the Gram matrix."""
    with pytest.MonkeyPatch.context() as patch:
        _in_tiles(patch)
        return _on_gram(rows)


def _without_the_gram_alone(rows: RowSet) -> np.ndarray:
    """No feature's Gram matrix after an elimination is taken from the Gram matrix before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simtool.row_space.gram._SURE", 0.0)
        return _on_gram(rows)


WAYS: dict[str, Callable[[RowSet], np.ndarray]] = {
    "on the Gram matrix": _on_gram,
    "on working sets": lambda rows: working_set.solve(rows, 1e-6),
    "cold working sets": _cold,
    "working sets without screening": lambda rows: working_set.solve(rows, 1e-6, screening=False),
    "working sets guessed on half of the samples": _guessed,
    "no selection": _everything_at_once,
    "by singular values": _by_singular_values,
    "read in tiles": _read_in_tiles,
    "eliminated on W": _without_the_gram_alone,
}


def _fresh(rows: RowSet) -> RowSet:
    """The same problem with nothing computed yet."""
    design = Design(rows.design._w)
    design.root_weight = rows.design.root_weight
    return RowSet(
        design, rows.targets, rows.objective, rows.constrained, rows.allowed, rows.lower, rows.upper
    )


def _agree(rows: RowSet) -> None:
    proofs = {name: certify(_fresh(rows), way(_fresh(rows)), 1e-6) for name, way in WAYS.items()}
    reference = proofs["on the Gram matrix"]
    denominator = np.maximum(reference.primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
    for name, proof in proofs.items():
        assert proof.certified.all(), (name, proof)
        assert np.all(np.abs(proof.primal - reference.primal) <= 1e-6 * denominator), name


@settings(deadline=None, max_examples=60)
@given(row_sets())
def test_every_way_gives_the_same_certified_answer(rows: RowSet) -> None:
    _agree(rows)


@pytest.mark.stress
@settings(deadline=None, max_examples=1000)
@given(row_sets())
def test_every_way_gives_the_same_certified_answer_on_many(rows: RowSet) -> None:
    _agree(rows)


@pytest.mark.parametrize("name", sorted(PENALTIES))
@pytest.mark.parametrize("kappa", [None, 0.7])
def test_many_more_features_than_samples(name: str, kappa: float | None) -> None:
    rows = make_rows(21, d=400, m=40, r=3, penalty=PENALTIES[name], kappa=kappa)
    _agree(rows)


@pytest.mark.parametrize("weights", ["none", "some", "sampled ones vanish"])
@pytest.mark.parametrize("kappa", [None, 0.9])
def test_a_sample_of_the_samples_only_guesses(kappa: float | None, weights: str) -> None:
    """Neighbouring features that resemble each other, as the positions of a convolution do."""
    rng = np.random.default_rng(5)
    m, d = 1100, 700
    smooth = np.cumsum(rng.standard_normal((d, m)), axis=0)
    smooth -= 0.9 * np.roll(smooth, 3, axis=0)
    w = np.maximum(smooth, 0.0).astype(np.float32)
    z = (0.3 * w[rng.integers(0, d, (4, 3))].sum(axis=1) + rng.standard_normal((4, m))).astype(np.float32)
    weight = None if weights == "none" else rng.random(m)
    if weights == "sampled ones vanish":
        weight[::8] = 0.0
    penalty = Penalty(lam1=0.0 if kappa else 200.0)
    design = Design(w, sample_weight=weight)
    assert design.sample is not None
    rows = RowSet(design, z, Objective(0.5, penalty, kappa), np.ones(d, dtype=bool))
    _agree(rows)


@pytest.mark.parametrize("way", ["mask", "sign"])
def test_what_a_row_may_not_use_does_not_stop_it(way: str) -> None:
    """Without a slope the first threshold is a part of the largest gradient: of those that may enter."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((300, 60)).astype(np.float32)
    w[0] *= 50.0
    z = (w[0] + 0.2 * w[1])[None]
    if way == "mask":
        allowed = np.zeros((1, 300), dtype=bool)
        allowed[:, 1:40] = True
        rows = RowSet(Design(w), z, Objective(0.5, Penalty(), 0.5), np.ones(300, dtype=bool), allowed)
    else:
        upper = np.zeros(300)
        upper[1:] = np.inf
        rows = RowSet(
            Design(w), z, Objective(0.5, Penalty(), 0.5), np.ones(300, dtype=bool), None, None, upper
        )
    _agree(rows)


@pytest.mark.parametrize("unit", [1e-90, 1e-30, 1e20, 1e90])
@pytest.mark.parametrize("kappa", [None, 0.7])
def test_working_sets_know_no_units(unit: float, kappa: float | None) -> None:
    rng = np.random.default_rng(8)
    kind = np.float32 if 1e-31 < unit < 1e21 else np.float64
    w, z = rng.standard_normal((60, 30)), rng.standard_normal((2, 30))
    penalty = Penalty(lam1=0.0 if kappa else 2.0 * unit**2)
    rows = RowSet(
        Design((unit * w).astype(kind)),
        (unit * z).astype(kind),
        Objective(0.5, penalty, kappa),
        np.ones(60, bool),
    )
    for solved in (working_set.solve(rows, 1e-6), _on_gram(rows)):
        assert certify(rows, solved, 1e-6).certified.all()


def test_a_coefficient_on_the_knee_does_not_flip_for_ever() -> None:
    """Duplicate features, whole numbers: steps of rounding put a coefficient on the knee on either side of it."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        w = rng.integers(-1, 2, (24, 6)).astype(np.float32)
        w[12:] = w[:12]
        z = (w[:3].sum(axis=0) + w[3])[None]
        penalty = Penalty(lam0=0.1, lam2=0.1)
        kappas = [0.5, 1.0, 2.0, 4.0, 8.0]
        rows = RowSet(Design(w), z, Objective(1.0, penalty, 1.0), np.ones(24, dtype=bool))
        for kappa, found in zip(kappas, native.solve_path(rows, kappas, 1e-6), strict=True):
            assert certify(rows.with_kappa(kappa), found, 1e-6).certified.all(), (seed, kappa)
        assert certify(rows, working_set.solve(rows, 1e-6), 1e-6).certified.all(), seed


def test_bounded_features_outside_the_ball_are_solved_to_rounding() -> None:
    """Neither a slope nor the ball absorbs their violation: the certificate wants it at 1e-9."""
    rng = np.random.default_rng(9)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((20, 50)).astype(np.float32)
        w[10:] *= 0.05
        z = rng.standard_normal((3, 50)).astype(np.float32)
        inside = np.arange(20) < 10
        rows = RowSet(Design(w), z, Objective(0.5, Penalty(), 0.01), inside, None, np.zeros(20), None)
        for solved in (working_set.solve(rows, 1e-6), _on_gram(rows)):
            assert certify(rows, solved, 1e-6).certified.all(), seed


def test_equal_kappas_have_equal_rows() -> None:
    rows = make_rows(25, penalty=PENALTIES["none"], kappa=1.0)
    first, _, again = native.solve_path(rows, [0.4, 0.1, 0.4], 1e-6)
    np.testing.assert_array_equal(first, again)


def test_few_samples_are_not_sampled() -> None:
    w = np.ones((3, 2000), dtype=np.float32)
    assert Design(w[:, :1023]).sample is None
    for m in (1024, 1500, 2000):
        part, step = Design(w[:, :m]).sample
        assert part.shape == (3, -(-m // step))
    many = Design(np.ones((2, 100_000), dtype=np.float32)).sample
    assert many is not None
    assert many[0].shape[1] <= 512


def test_pursuit_does_not_take_a_copy_next() -> None:
    rng = np.random.default_rng(6)
    features = rng.standard_normal((5, 50))
    features[3], features[4] = features[0], -features[1]
    gradient = features @ (3.0 * features[0] - features[1])
    first, second = pursue(features @ features.T, gradient.copy(), np.full(5, 1e-3), 2)
    assert first in (0, 3)
    assert second in (1, 4)  # not the copy of the first, which pays as much before that is taken
    blocked = pursue(features @ features.T, gradient.copy(), np.array([np.inf, 1e-3, 1e-3, np.inf, 1e-3]), 5)
    assert not {0, 3} & set(blocked)
    assert pursue(features @ features.T, gradient.copy(), np.full(5, np.inf), 5).size == 0


def test_working_sets_start_from_float64_states_too() -> None:
    rows = make_rows(22, d=300, m=50, penalty=PENALTIES["l1"], kappa=0.9)
    wide = RowSet(
        Design(rows.design.dense(np.arange(300))),
        rows.targets.astype(np.float64),
        rows.objective,
        rows.constrained,
    )
    assert certify(wide, working_set.solve(wide, 1e-9), 1e-9).certified.all()


def test_correlations_too_close_to_call_in_single_precision_are_asked_again() -> None:
    """Two copies of a feature that differ in the last bits of float32: the threshold lies between them."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((1, 500))
    w = np.concatenate(
        [np.repeat(base, 400, axis=0) * (1.0 + 1e-6 * rng.random((400, 1))), rng.standard_normal((50, 500))]
    )
    z = base + 0.1 * rng.standard_normal((1, 500))
    rows = RowSet(
        Design(w.astype(np.float32)),
        z.astype(np.float32),
        Objective(0.5, Penalty(lam1=0.05), 0.9),
        np.ones(450, dtype=bool),
    )
    for solved in (working_set.solve(rows, 1e-9), _on_gram(rows)):
        assert certify(rows, solved, 1e-9).certified.all()


def test_a_row_far_above_memory_takes_working_sets() -> None:
    assert not regime.gram_pays(26_000, 2_000, 10_000)
    assert not regime.gram_pays(8_000, 2_000, 1)
    assert regime.gram_pays(897, 2_000, 122)
    assert regime.gram_pays(897, 60_000, 122)
    assert regime.gram_pays(2_833, 10_000, 2_058)
    assert regime.gram_pays(785, 2_000, 64)
    # Few rows, few samples, many features: G is a small product there, and still dearer than a few working sets.
    assert not regime.gram_pays(4_608, 60, 8)
    assert regime.gram_pays(4_608, 60, 64)
    assert not regime.gram_pays(12_000, 2_000, 64)


def test_native_chooses_by_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = working_set.solve
    monkeypatch.setattr(
        working_set, "solve", lambda rows, goal: taken.append(rows.design.d) or original(rows, goal)
    )
    for d in (30, 20_000):
        rng = np.random.default_rng(0)
        rows = RowSet(
            Design(rng.standard_normal((d, 20)).astype(np.float32)),
            rng.standard_normal((1, 20)).astype(np.float32),
            Objective(0.5, Penalty(lam1=1.0)),
            np.ones(d, dtype=bool),
        )
        assert certify(rows, native.solve(rows, 1e-6), 1e-6).certified.all()
    assert taken == [20_000]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_both_row_spaces_do_the_same(ridge: float) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((12, 60)) * 10.0 ** rng.integers(-6, 6, (12, 1))
    if ridge:
        w = rng.standard_normal((12, 60))
    w[4] = 0.0
    vectors = rng.standard_normal((5, 60))
    one, two = row_space(w, ridge), SingularSpace(w, ridge)
    assert isinstance(one, GramSpace)
    np.testing.assert_allclose(one.shrink_out(vectors), two.shrink_out(vectors), atol=1e-12)
    size = np.abs(two.coefficients(vectors)).max(axis=0)
    np.testing.assert_allclose(
        one.coefficients(vectors) / (size + 1), two.coefficients(vectors) / (size + 1), atol=1e-11
    )
    members = np.arange(12) != 4
    np.testing.assert_allclose(
        one.restricted(members).coefficients(vectors), one.coefficients(vectors)[:, members], atol=1e-14
    )


def test_a_few_dependent_features_are_set_apart() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((30, 90))
    w[5] = w[0]
    w[6] = w[0] - 2.0 * w[1]
    w[7] = w[2] + 1e-7 * w[3]
    w[8] = w[2] + 1e-9 * rng.standard_normal(90)
    w[9] = 0.0
    vectors = rng.standard_normal((4, 90))
    one, two = row_space(w), SingularSpace(w)
    assert isinstance(one, ApartSpace)
    left_over = one.project_out(vectors)
    np.testing.assert_allclose(left_over, two.project_out(vectors), atol=1e-6)
    size = np.sqrt(np.square(w).sum(axis=1))
    unit = w / np.where(size > 0, size, 1.0)[:, None]
    assert np.abs(left_over @ unit.T).max() < 1e-11
    # Coefficients of 1e9 cancel here, so their own residual is known to 1e-7 only.
    assert np.abs((vectors - one.coefficients(vectors) @ w) @ unit.T).max() < 1e-6
    members = np.arange(30) != 9
    np.testing.assert_allclose(
        one.restricted(members).coefficients(vectors), one.coefficients(vectors)[:, members], atol=1e-14
    )


def test_many_dependent_features_are_left_to_singular_values() -> None:
    rng = np.random.default_rng(2)
    assert isinstance(row_space(rng.standard_normal((60, 4)) @ rng.standard_normal((4, 90))), SingularSpace)
    assert isinstance(row_space(rng.standard_normal((40, 6))), SingularSpace)


def test_eliminated_features_never_reach_the_row_solver() -> None:
    rows = make_rows(23, kappa=0.5, on_a=True)
    elimination = Elimination(rows)
    assert elimination.eliminates
    assert not np.intersect1d(np.flatnonzero(elimination.smooth), elimination.pivoted).size
    assert SharedGram(elimination).row(0).correlation.size == elimination.pivoted.size


@pytest.mark.parametrize("on_a", [False, True])
@pytest.mark.parametrize("name", ["none", "perspective", "elastic-net"])
def test_a_path_over_kappa_is_each_of_its_solves(name: str, on_a: bool) -> None:
    kappas = [0.7, 0.0, 0.05, 3.0, 0.2, 0.7]
    rows = make_rows(24, penalty=PENALTIES[name], kappa=1.0, on_a=on_a)
    for kappa, w in zip(kappas, native.solve_path(rows, kappas, 1e-6), strict=True):
        one = rows.with_kappa(kappa)
        path, alone = certify(one, w, 1e-6), certify(one, native.solve(one, 1e-6), 1e-6)
        assert path.certified.all()
        np.testing.assert_allclose(path.primal, alone.primal, rtol=1e-6)


@pytest.mark.parametrize("name", ["none", "ridge", "elastic-net"])
@pytest.mark.parametrize("on_a", [False, True])
def test_certificates_of_what_is_read_in_tiles_are_the_same(name: str, on_a: bool) -> None:
    rows = make_rows(26, m=90, penalty=PENALTIES[name], kappa=0.7 if on_a else None, on_a=on_a)
    w = _on_gram(rows)
    reference = certify(rows, w, 1e-6)
    with pytest.MonkeyPatch.context() as patch:
        _in_tiles(patch)
        proof = certify(_fresh(rows), w, 1e-6)
    assert proof.certified.all()
    np.testing.assert_allclose(proof.primal, reference.primal, rtol=1e-12)
    np.testing.assert_allclose(proof.dual, reference.dual, rtol=1e-9)
    assert proof.projection_error.max() < 1e-12


def _tiled(w: np.ndarray) -> FeatureTiles:
    return FeatureTiles(Design(w), np.arange(w.shape[0]))


def test_features_that_do_not_fit_have_the_same_row_space() -> None:
    """Independent ones; with exact copies, which the Gram matrix can do without; with nearly dependent ones, which need QR."""
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((4, 500))
    with pytest.MonkeyPatch.context() as patch:
        _in_tiles(patch)
        for kind, expected in (("independent", GramSpace), ("copies", GramSpace), ("near", TriangularSpace)):
            w = rng.standard_normal((20, 500)) * 10.0 ** rng.integers(-3, 3, (20, 1))
            w[7] = 0.0
            if kind == "copies":
                w[3], w[9] = w[0], w[1] - w[2]
            if kind == "near":
                w[3] = w[0] + 1e-7 * np.abs(w[0]).max() * rng.standard_normal(500)
            for ridge in (0.0, 0.3):
                if ridge and kind != "independent":
                    continue
                one, two = row_space(_tiled(w), ridge), SingularSpace(w, ridge)
                assert type(one) is expected
                left_over = one.shrink_out(vectors)
                np.testing.assert_allclose(left_over, two.shrink_out(vectors), atol=1e-8)
                fitted, reference = (space.coefficients(vectors) @ w for space in (one, two))
                np.testing.assert_allclose(fitted, reference, atol=1e-7)
                if not ridge:
                    unit = w / np.maximum(np.linalg.norm(w, axis=1), 1e-300)[:, None]
                    assert np.abs(left_over @ unit.T).max() < 1e-11


def test_features_chosen_from_a_larger_array_are_those_of_a_copy() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((50, 300)).astype(np.float32)
    weight = rng.random(300)
    for chosen in (np.r_[0:20, 49], np.arange(0, 50, 3)):
        one, two = Design(w, None, weight, chosen), Design(w[chosen], None, weight)
        at = np.array([2, 3, 4, 10])
        np.testing.assert_array_equal(one.dense(at), two.dense(at))
        for samples in (slice(0, 300), slice(17, 90)):
            np.testing.assert_array_equal(one.features(at, samples), two.features(at, samples))
            np.testing.assert_array_equal(
                one.features(slice(5, None), samples), two.features(slice(5, None), samples)
            )
        np.testing.assert_array_equal(one.gram, two.gram)
        np.testing.assert_array_equal(one.dead, two.dead)
        np.testing.assert_array_equal(one.rough_correlation(w[:2]), two.rough_correlation(w[:2]))


def test_dead_features_of_a_large_gram_matrix_stay_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving them out would take a copy of it."""
    monkeypatch.setattr("simtool.solvers.elimination._MOST_COPIED", 0)
    for name in sorted(PENALTIES):
        for kappa in (None, 0.0, 0.7):
            rows = make_rows(27, penalty=PENALTIES[name], kappa=kappa)
            w = _on_gram(rows)
            assert not w[:, rows.design.dead].any()
            assert certify(rows, w, 1e-6).certified.all()


# --- features that nearly depend on each other ---------------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_direction_that_is_nearly_hidden_certifies_nothing(
    size: float, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a feature but for the last bit of one sample: least squares gains there, with a coefficient of 1e12.

    A dual point that is not projected off that direction would certify the row without it, 8 % away.
    """
    from simtool.row_space import vectors

    if tiled:
        monkeypatch.setattr("simtool.design._MOST_HELD", 50)
        monkeypatch.setattr(vectors, "_MOST_KEPT", 40)
    rng = np.random.default_rng(1)
    w = rng.standard_normal((4, 40)).astype(np.float32)
    w[2, 7] = size
    w[3] = w[2]
    w[3, 7] = np.nextafter(w[2, 7], np.float32(10))
    z = rng.standard_normal(40).astype(np.float32)
    z[7] = 2.0
    rows = RowSet(Design(w), z[None], Objective(0.5, Penalty(), None), np.zeros(4, dtype=bool))
    proof = certify(rows, Elimination(rows).complete(np.zeros((1, 4))), 1e-6)
    # Without sample 7 and the copy, what is left is the least squares of the other three features.
    others, target = np.delete(w[:3].astype(float), 7, axis=1), np.delete(z.astype(float), 7)
    left = target - others.T @ np.linalg.lstsq(others.T, target, rcond=None)[0]
    best = 0.5 * float(left @ left)
    gap = (proof.primal[0] - best) / max(proof.primal[0], 1e-2 * 0.5 * float(z @ z))
    assert not proof.certified[0] or gap <= 1e-5


def test_a_space_of_nothing_and_one_seen_by_some_of_its_features() -> None:
    from simtool.row_space import SingularSpace, TriangularSpace, row_space
    from simtool.row_space.vectors import Held

    vectors = np.random.default_rng(0).standard_normal((3, 50))
    empty = row_space(np.zeros((4, 50)))
    assert isinstance(empty, SingularSpace)
    np.testing.assert_array_equal(empty.shrink_out(vectors), vectors)
    np.testing.assert_array_equal(empty.coefficients(vectors), np.zeros((3, 4)))
    w = np.random.default_rng(1).standard_normal((4, 50))
    w[1] = 0.0
    space = TriangularSpace(Held(w), 0.0)
    members = np.array([True, False, True, True])
    seen = space.restricted(members)
    np.testing.assert_allclose(seen.shrink_out(vectors), space.shrink_out(vectors), atol=1e-13)
    np.testing.assert_allclose(
        seen.coefficients(vectors), space.coefficients(vectors)[:, members], atol=1e-13
    )


def test_a_certificate_does_not_believe_the_gram_matrix() -> None:
    rng = np.random.default_rng(0)
    w, z = rng.standard_normal((5, 40)), rng.standard_normal((1, 40))
    rows = RowSet(
        Design(w, gram=1e30 * np.eye(5)), z, Objective(0.5, Penalty(), None), np.zeros(5, dtype=bool)
    )
    assert not certify(rows, np.zeros((1, 5)), 1e-6).certified[0]
