"""States and outputs: substitution equals a plain loop, every fixed point is one, failures name what failed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model, random_inputs
from scipy import sparse

from simtool import activations, blocks
from simtool.blocks import Block
from simtool.errors import ConvergenceError, FormatError, InputError, OptionError
from simtool.model import FixedPoint, ImplicitModel


def residual(model: ImplicitModel, u: np.ndarray, options: FixedPoint) -> float:
    forward = model.forward(u, options)
    assert np.array_equal(forward.X, blocks.apply(model.blocks, forward.Z))
    z = model.A @ forward.X + model.B @ u
    return float(np.abs(z - forward.Z).max() / max(1.0, np.abs(forward.Z).max()))


def test_layered_model_equals_a_plain_loop_over_layers() -> None:
    model = layered_model(activation="silu")
    u = random_inputs(model, 9)
    forward = model.forward(u)
    values = {"input": u[:-1]}
    for name, parent in (("h1", "input"), ("h2", "h1"), ("h3", "h2")):
        block = next(b for b in model.blocks if b.name == name)
        matrix = model.B[:, : model.p - 1] if parent == "input" else model.A
        weights = matrix[block.rows].toarray()
        if parent != "input":
            weights = weights[:, next(b for b in model.blocks if b.name == parent).rows]
        values[name] = block.activation(weights @ values[parent] + model.B[block.rows].toarray()[:, -1:])
        assert np.allclose(forward.X[block.rows], values[name], atol=1e-13)
    y = model.C.toarray()[:, model.blocks[0].rows] @ values["h3"] + model.D.toarray()[:, -1:]
    assert np.allclose(forward.Y, y, atol=1e-13)
    assert forward.iterations.tolist() == [0] * 9
    assert forward.converged.all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.02, 0.3))
def test_any_graph_gives_the_picard_fixed_point(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    n = 24
    a = rng.normal(size=(n, n)) * (rng.random((n, n)) < density)
    a *= 0.9 / np.maximum(np.abs(a).sum(axis=1, keepdims=True), 0.9)
    half = Block("a", activations.make("tanh"), 0, 12, (12,), ())
    other = Block("b", activations.make("relu"), 12, 12, (12,), ())
    model = ImplicitModel(
        A=a, B=rng.normal(size=(n, 4)), C=np.eye(n), D=np.zeros((n, 4)), blocks=(half, other)
    )
    u = random_inputs(model, 3, seed)
    x = np.zeros((n, 3))
    for _ in range(400):
        x = blocks.apply(model.blocks, a @ x + model.B @ u)
    assert np.allclose(model.forward(u, FixedPoint(tolerance=1e-12)).X, x, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_states_permutes_the_answer(seed: int) -> None:
    model = free_model(seed=seed, density=0.1)
    order = np.random.default_rng(seed).permutation(model.n)
    moved = replace(model, A=model.A[order][:, order], B=model.B[order], C=model.C[:, order])
    u = random_inputs(model, 4, seed)
    options = FixedPoint(tolerance=1e-12)
    one, two = model.forward(u, options), moved.forward(u, options)
    assert np.allclose(one.X[order], two.X, atol=1e-9)
    assert np.allclose(one.Y, two.Y, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "picard", "averaged", "absorption"])
def test_every_method_finds_the_same_relu_fixed_point(method: str) -> None:
    model = free_model(norm=0.7, diagonal=-0.2)
    u = random_inputs(model, 6)
    reference = model.forward(u, FixedPoint("picard", 1e-13))
    found = model.forward(u, FixedPoint(method, 1e-11))
    assert np.allclose(found.X, reference.X, atol=1e-9)
    assert residual(model, u, FixedPoint(method, 1e-11)) < 1e-10
    assert (found.iterations > 0).all()


@pytest.mark.parametrize(("activation", "diagonal"), [("relu", -30.0), ("tanh", -30.0), ("identity", -5.0)])
def test_stiff_self_loops_are_solved_under_mu_inf(activation: str, diagonal: float) -> None:
    model = free_model(activation=activation, norm=0.9, diagonal=diagonal)
    assert model.well_posedness().by == "mu-inf"
    u = random_inputs(model, 5)
    assert residual(model, u, FixedPoint()) < 1e-8


def test_absorption_takes_a_self_loop_just_below_one() -> None:
    model = free_model(norm=0.01, diagonal=0.98)
    u = random_inputs(model, 5)
    absorbed = model.forward(u, FixedPoint("absorption"))
    picard = model.forward(u, FixedPoint("picard"))
    assert np.allclose(absorbed.X, picard.X, rtol=1e-7, atol=1e-7)
    assert absorbed.iterations.max() < 40 < picard.iterations.max()


def test_absorption_leaves_other_activations_alone() -> None:
    # relu states with stiff loops beside tanh states without one: absorption is exact, and chosen
    base = free_model(norm=0.8)
    a = base.A.toarray()
    np.fill_diagonal(a[:10, :10], -12.0)
    blocks_ = tuple(
        Block(name, activations.make(name), 10 * i, 10, (10,), ()) for i, name in enumerate(("relu", "tanh"))
    )
    model = replace(base, A=a, blocks=blocks_, output_parents=())
    assert model.well_posedness().by == "mu-inf"
    u = random_inputs(model, 5)
    auto, averaged = model.forward(u), model.forward(u, FixedPoint("averaged", 1e-11))
    assert np.allclose(auto.X, averaged.X, atol=1e-8)
    assert np.array_equal(auto.iterations, model.forward(u, FixedPoint("absorption")).iterations)
    assert auto.iterations.max() < averaged.iterations.max()


def test_a_slow_contraction_is_not_trusted_too_early() -> None:
    # rate .999: when the change falls below the tolerance, the error is still a thousand times as large
    a = np.array([[0.0, 0.999], [0.999, 0.0]])
    block = Block("h", activations.make("identity"), 0, 2, (2,), ())
    model = ImplicitModel(A=a, B=np.ones((2, 2)), C=np.eye(2), D=np.zeros((2, 2)), blocks=(block,))
    u = np.ones((2, 1))
    exact = np.linalg.solve(np.eye(2) - a, model.B @ u)
    found = model.forward(u, FixedPoint("picard", 1e-9, 100_000))
    assert np.abs(found.X - exact).max() <= 1e-8 * np.abs(exact).max()


def test_iterations_are_counted_per_column() -> None:
    model = free_model(activation="tanh", norm=0.95)
    u = random_inputs(model, 3)
    u[:-1, 0] = 0.0
    model = replace(model, B=model.B * np.r_[np.ones(model.p - 1), 0.0])
    iterations = model.forward(u).iterations
    assert iterations[0] == 1  # x = 0 is the fixed point where nothing enters
    assert (iterations[1:] > 3).all()


def test_divergence_is_an_error_that_names_residual_and_block() -> None:
    model = free_model(norm=3.0)
    model = replace(model, A=abs(model.A), B=abs(model.B))
    with pytest.raises(ConvergenceError, match=r"diverged .* blocks h: residual .* after \d+ iterations"):
        model.forward(np.abs(random_inputs(model, 4)))


def test_running_out_of_iterations_is_an_error() -> None:
    model = free_model(norm=0.99)
    with pytest.raises(ConvergenceError, match=r"did not converge .* after 3 iterations"):
        model.forward(random_inputs(model, 4), FixedPoint(max_iterations=3))


def test_overflow_without_a_cycle_is_an_error() -> None:
    model = layered_model()
    model = replace(model, A=model.A * 1e200)
    with pytest.raises(ConvergenceError, match="overflow"):
        model.forward(random_inputs(model, 2))


def test_absorption_is_refused_where_it_is_not_exact() -> None:
    model = free_model(activation="tanh", norm=0.5, diagonal=-0.2)
    with pytest.raises(OptionError, match="absorption"):
        model.forward(random_inputs(model, 2), FixedPoint("absorption"))


@pytest.mark.parametrize(
    "options", [{"method": "newton"}, {"tolerance": 0.0}, {"tolerance": float("nan")}, {"max_iterations": 0}]
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(OptionError):
        FixedPoint(**options)


def test_bad_inputs_are_refused() -> None:
    model = layered_model()
    u = random_inputs(model, 3)
    with pytest.raises(InputError, match="must have shape"):
        model.forward(u[:-1])
    broken = u.copy()
    broken[0, 2] = np.nan
    with pytest.raises(InputError, match="column 2"):
        model.forward(broken)
    broken = u.copy()
    broken[-1] = 0.0
    with pytest.raises(InputError, match="bias"):
        model.forward(broken)
    with pytest.raises(InputError, match="a sample has shape"):
        model.states_inputs(np.zeros((4, 5)))


def test_predict_applies_the_output_map_and_takes_any_shape_of_the_size() -> None:
    model = replace(layered_model(output_map="softmax"), input_shape=(2, 3))
    inputs = np.random.default_rng(0).normal(size=(4, 2, 3))
    probabilities = model.predict(inputs)
    assert probabilities.shape == (4, 3)
    assert np.allclose(probabilities.sum(axis=1), 1.0)
    assert np.array_equal(model.predict(inputs.reshape(4, 6)), probabilities)
    assert np.allclose(np.exp(replace(model, output_map="log_softmax").predict(inputs)), probabilities)


def test_no_samples_and_no_states_are_fine() -> None:
    model = layered_model()
    assert model.forward(np.ones((model.p, 0))).Y.shape == (3, 0)
    linear = ImplicitModel(
        A=np.zeros((0, 0)), B=np.zeros((0, 3)), C=np.zeros((2, 0)), D=np.ones((2, 3)), blocks=()
    )
    assert linear.forward(np.ones((3, 1))).Y.tolist() == [[3.0], [3.0]]
    assert linear.well_posedness().by == "acyclic"


def test_rows_of_m() -> None:
    model = layered_model()
    dense = np.block([[model.A.toarray(), model.B.toarray()], [model.C.toarray(), model.D.toarray()]])
    for i in (0, model.n - 1, model.n, model.n + model.q - 1):
        indices, values = model.row(i)
        row = np.zeros(model.n + model.p)
        row[indices] = values
        assert np.array_equal(row, dense[i])
    with pytest.raises(InputError, match="row must be in"):
        model.row(model.n + model.q)


def test_parts_that_do_not_fit_are_refused() -> None:
    model = layered_model()
    with pytest.raises(FormatError, match="B has shape"):
        replace(model, B=model.B[:, :-1])
    with pytest.raises(InputError, match="NaN"):
        replace(model, A=model.A * np.nan)
    with pytest.raises(FormatError, match="block 'h2' has offset"):
        replace(model, blocks=model.blocks[1:])
    with pytest.raises(FormatError, match="blocks cover"):
        replace(model, blocks=model.blocks[:-1])
    with pytest.raises(FormatError, match="input shape"):
        replace(model, input_shape=(7,))
    with pytest.raises(FormatError, match="positive"):
        replace(model, scale=np.zeros(model.n))


# --- the stopping rule: as accurate as asked in any units -----------------------------------------------------------


def in_units(model: ImplicitModel, s: np.ndarray) -> ImplicitModel:
    """The same function on states multiplied by ``s`` (n,)."""
    left, right = sparse.diags_array(s), sparse.diags_array(1.0 / s)
    return replace(model, A=left @ model.A @ right, B=left @ model.B, C=model.C @ right)


@pytest.mark.parametrize("unit", [1e-14, 1e-8, 1e-3, 1e9])
@pytest.mark.parametrize(("norm", "diagonal"), [(0.9, None), (1.1, None), (0.9, -20.0)])
def test_the_unit_of_the_states_does_not_matter(unit: float, norm: float, diagonal: float | None) -> None:
    # in turn: proven by the norm, unproven, proven by mu-inf
    model = free_model(n=30, norm=norm, diagonal=diagonal)
    u = random_inputs(model, 20)
    one, two = model.forward(u), in_units(model, np.full(30, unit)).forward(u)
    assert np.abs(two.Y - one.Y).max() <= 1e-12 * np.abs(one.Y).max()
    assert np.array_equal(one.iterations, two.iterations)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1.0, 8.0, 20.0]),
    norm=st.sampled_from([0.5, 0.99, 0.9999]),
    diagonal=st.sampled_from([None, -1.0, -300.0]),
    activation=st.sampled_from(["relu", "identity", "leaky_relu:0.1"]),
)
def test_states_of_very_different_sizes_are_all_accurate(
    seed: int, spread: float, norm: float, diagonal: float | None, activation: str
) -> None:
    model = free_model(n=12, norm=norm, diagonal=diagonal, activation=activation, seed=seed, density=0.2)
    s = np.exp(spread * np.random.default_rng(seed).uniform(-1, 1, model.n))
    scaled = in_units(model, s)
    assume(model.well_posedness().well_posed and scaled.well_posedness().well_posed)
    u = random_inputs(model, 3, seed)
    exact = model.forward(u, FixedPoint(tolerance=1e-14)).X
    assert np.abs(scaled.forward(u).X / s[:, None] - exact).max() <= 3e-9 * np.abs(exact).max()


@pytest.mark.parametrize("slow", [1e-2, 1e-4, 1e-6, 1e-8])
def test_a_slow_state_behind_a_fast_one_is_waited_for(slow: float) -> None:
    # the large first state settles within ten iterations; nothing it shows tells that the second needs 1 / slow
    a = np.array([[0.1, 1e-14], [1e-14, 1.0 - slow]])
    block = Block("h", activations.make("relu"), 0, 2, (2,), ())
    model = ImplicitModel(
        A=a, B=[[1.0], [1e-9]], C=np.eye(2), D=np.zeros((2, 1)), blocks=(block,), has_bias=False
    )
    assert model.well_posedness().by == "norm"
    exact = np.linalg.solve(np.eye(2) - a, [1.0, 1e-9])
    assert np.abs(model.forward(np.ones((1, 1))).X[:, 0] / exact - 1.0).max() < 1e-7


def test_a_badly_scaled_cycle_does_not_stop_at_the_first_iteration() -> None:
    a = np.zeros((3, 3))
    a[1, 0], a[2, 1], a[0, 2] = 0.05, 1e6, 1e-9
    block = Block("h", activations.make("relu"), 0, 3, (3,), ())
    model = ImplicitModel(
        A=a, B=[[1e-8], [0.0], [0.0]], C=np.eye(3), D=np.zeros((3, 1)), blocks=(block,), has_bias=False
    )
    assert model.well_posedness().by == "perron-frobenius"
    exact = np.linalg.solve(np.eye(3) - a, [1e-8, 0.0, 0.0])
    assert model.forward(np.ones((1, 1))).X[:, 0] == pytest.approx(exact, rel=1e-9, abs=0.0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_stiff_self_loop_does_not_loosen_the_tolerance(activation: str) -> None:
    model = free_model(n=6, norm=0.85, activation=activation, density=1.0)
    a = model.A.toarray()
    a[2, 2] = -1e3
    model = replace(model, A=a)
    assert model.well_posedness().by == "mu-inf"
    u = random_inputs(model, 8)
    for tolerance in (1e-6, 1e-12):
        found = model.forward(u, FixedPoint(tolerance=tolerance))
        sharp = model.forward(u, FixedPoint(tolerance=1e-15)).X
        assert np.abs(found.X - sharp).max() <= 10 * tolerance
        assert found.iterations.max() < 300  # averaging alone would need thousands for tanh


def test_a_component_too_large_to_factorise_is_bounded_in_one_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = free_model(n=40, norm=0.97)
    u = random_inputs(model, 6)
    sharp = model.forward(u, FixedPoint(tolerance=1e-14))
    monkeypatch.setattr("simtool.model.wellposed.DIRECT_STATES", 10)
    monkeypatch.setattr("simtool.model.forward.DIRECT_STATES", 10)
    units = np.exp(3 * np.random.default_rng(0).normal(size=40))
    for large, s in ((replace(model), np.ones(40)), (in_units(model, units), units)):
        found = large.forward(u)
        assert np.abs(found.X / s[:, None] - sharp.X).max() <= 1e-8 * np.abs(sharp.X).max()
        # where rounding keeps a column from the tolerance, it ends all the same
        ended = large.forward(u, FixedPoint(tolerance=1e-300))
        assert np.abs(ended.X / s[:, None] - sharp.X).max() <= 1e-12 * np.abs(sharp.X).max()
    a = np.array([[0.0, 1.0 - 1e-6], [1.0 - 1e-6, 0.0]])
    block = Block("h", activations.make("identity"), 0, 2, (2,), ())
    lazy = ImplicitModel(A=a, B=np.ones((2, 2)), C=np.eye(2), D=np.zeros((2, 2)), blocks=(block,))
    monkeypatch.setattr("simtool.model.wellposed.DIRECT_STATES", 1)
    monkeypatch.setattr("simtool.model.forward.DIRECT_STATES", 1)
    with pytest.raises(ConvergenceError, match=r"did not converge .* residual .* well-posed by norm"):
        lazy.forward(np.ones((2, 1)))


def test_a_tolerance_below_rounding_ends() -> None:
    for norm, diagonal, activation in ((0.9, None, "relu"), (0.9, -20.0, "tanh"), (1.1, None, "relu")):
        model = free_model(norm=norm, diagonal=diagonal, activation=activation)
        u = random_inputs(model, 5)
        assert residual(model, u, FixedPoint(tolerance=1e-300)) < 1e-13


def test_no_samples_in_a_cyclic_model() -> None:
    model = free_model()
    assert model.forward(np.ones((model.p, 0))).Y.shape == (model.q, 0)
