"""Gradients through the fixed point against finite differences and torch's autograd; bounds against samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model, random_inputs
from scipy import sparse

from simtool import activations
from simtool.blocks import Block, lipschitz
from simtool.errors import ConvergenceError, InputError
from simtool.model import (
    FixedPoint,
    ImplicitModel,
    input_gradient,
    output_sensitivity,
    rho,
    sensitivity_norm,
    state_sensitivity,
)
from simtool.model.forward import Forward, slopes

EXACT = FixedPoint(tolerance=1e-13, max_iterations=100_000)


def finite_differences(
    model: ImplicitModel, u: np.ndarray, weights: np.ndarray, h: float = 1e-5
) -> np.ndarray:
    rows = model.p - int(model.has_bias)
    result = np.zeros((rows, u.shape[1]))
    for i in range(rows):
        step = np.zeros_like(u)
        step[i] = h
        difference = model.forward(u + step, EXACT).Y - model.forward(u - step, EXACT).Y
        result[i] = (difference * weights).sum(axis=0) / (2 * h)
    return result


@pytest.mark.parametrize(
    "model",
    [
        layered_model(activation="tanh"),
        layered_model(activation="gelu"),
        free_model(activation="tanh", norm=0.95),
        free_model(activation="silu", norm=0.9),
        free_model(activation="softplus:2.0", norm=0.8, density=0.08),
        free_model(activation="tanh", norm=0.9, diagonal=-8.0),
        free_model(activation="silu", norm=0.95),
        free_model(activation="tanh", norm=1.3),
    ],
    ids=["layered", "layered-gelu", "norm", "silu", "sparse", "mu-inf", "unproven-silu", "unproven"],
)
def test_input_gradient_equals_finite_differences(model: ImplicitModel) -> None:
    u = random_inputs(model, 4)
    weights = np.random.default_rng(1).normal(size=(model.q, 4))
    gradient = input_gradient(model, u, model.forward(u, EXACT), weights, EXACT)
    assert gradient.shape == u.shape
    expected = finite_differences(model, u, weights)
    assert np.allclose(gradient[: len(expected)], expected, rtol=1e-5, atol=1e-6)


def test_input_gradient_equals_autograd() -> None:
    torch = pytest.importorskip("torch")
    model = layered_model(activation="relu", inputs=10, hidden=(12, 8))
    u = random_inputs(model, 6)
    weights = np.random.default_rng(1).normal(size=(model.q, 6))
    gradient = input_gradient(model, u, model.forward(u), weights)
    h2, h1 = model.blocks[0].rows, model.blocks[1].rows
    a, b, c, d = (torch.from_numpy(getattr(model, name).toarray()) for name in "ABCD")
    v = torch.from_numpy(u).requires_grad_()
    x1 = torch.relu(b[h1] @ v)
    x2 = torch.relu(a[h2, h1] @ x1 + b[h2] @ v)
    y = c[:, h2] @ x2 + d @ v
    (y * torch.from_numpy(weights)).sum().backward()
    assert np.allclose(gradient, v.grad.numpy(), rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.02, 0.3))
def test_state_sensitivity_equals_a_dense_solve(seed: int, density: float) -> None:
    model = free_model(n=10, activation="tanh", norm=0.9, density=density, seed=seed)
    u = random_inputs(model, 3, seed)
    z = model.forward(u, EXACT).Z
    expected = np.zeros(model.n)
    for j in range(3):
        slope = np.diag(model.blocks[0].activation.slope(z[:, j]))
        # dx = S (A dx + dz)  =>  dy/dz = C (I - S A)^-1 S
        jacobian = model.C @ np.linalg.solve(np.eye(model.n) - slope @ model.A.toarray(), slope)
        expected += np.square(jacobian).sum(axis=0) / 3
    assert np.allclose(state_sensitivity(model, u), expected, rtol=1e-6, atol=1e-9)


def test_output_sensitivity_of_a_layered_model() -> None:
    model = layered_model(activation="tanh")
    u = random_inputs(model, 2)
    forward = model.forward(u)
    last = model.blocks[0]
    found = output_sensitivity(model, forward, 1)
    slope = last.activation.slope(forward.Z[last.rows])
    assert np.allclose(found[last.rows], slope * model.C.toarray()[1, last.rows][:, None])
    with pytest.raises(InputError, match="output must be in"):
        output_sensitivity(model, forward, 3)
    with pytest.raises(InputError, match="no columns"):
        state_sensitivity(model, u[:, :0])


def test_shapes_are_checked() -> None:
    model = layered_model()
    u = random_inputs(model, 2)
    with pytest.raises(InputError, match="dL/dY has shape"):
        input_gradient(model, u, model.forward(u), np.zeros((2, 2)))


def dense_sensitivity(model: ImplicitModel) -> float:
    weight = np.diag(lipschitz(model.blocks))
    a, b, c, d = (abs(getattr(model, name)).toarray() for name in "ABCD")
    s = c @ np.linalg.solve(np.eye(model.n) - weight @ a, weight @ b[:, :-1]) + d[:, :-1]
    return float(s.sum(axis=1).max())


@pytest.mark.parametrize(
    "model",
    [
        layered_model(),
        layered_model(activation="silu", weight=3.0),
        free_model(norm=0.9),
        free_model(norm=0.85, activation="gelu"),
        free_model(norm=0.9, activation="sigmoid"),
    ],
    ids=["layered", "layered-silu", "free", "free-gelu", "free-sigmoid"],
)
def test_bounds_hold_and_are_ordered(model: ImplicitModel) -> None:
    norm = sensitivity_norm(model)
    assert norm == pytest.approx(dense_sensitivity(model))
    bound = rho(model)
    if bound is not None:
        assert bound >= norm * (1 - 1e-12)
    u = random_inputs(model, 50)
    v = u.copy()
    v[:-1] += 0.1 * np.sign(np.random.default_rng(2).normal(size=v[:-1].shape))
    moved = np.abs(model.forward(v, EXACT).Y - model.forward(u, EXACT).Y).max()
    assert moved <= 0.1 * norm


def test_rho_is_the_paper_s_display() -> None:
    model = free_model(norm=0.5, activation="tanh")
    a, b, c, d = (abs(getattr(model, name)).toarray() for name in "ABCD")
    rows = [matrix.sum(axis=1).max() for matrix in (a, b[:, :-1], c, d[:, :-1])]
    assert rho(model) == pytest.approx(rows[1] * rows[2] / (1 - rows[0]) + rows[3])


def test_the_bias_never_counts() -> None:
    model = free_model(norm=0.5)
    heavy = sparse.csr_array(np.outer(np.ones(model.n), np.eye(model.p)[-1] * 1e6))
    louder = replace(model, B=model.B + heavy)
    assert rho(louder) == rho(model)
    assert sensitivity_norm(louder) == sensitivity_norm(model)


def test_bounds_are_none_where_undefined() -> None:
    assert sensitivity_norm(free_model(norm=1.2)) is None
    assert rho(free_model(norm=1.2)) is None
    silu = layered_model(activation="silu", weight=4.0)
    assert rho(silu) is None  # no rescaling, and ||L A|| above one
    assert sensitivity_norm(silu) is not None


def dense_gradient(model: ImplicitModel, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """dL/dU by one dense solve a sample."""
    a, b, c, d = (getattr(model, name).toarray() for name in "ABCD")
    result = np.empty((model.p, z.shape[1]))
    for j in range(z.shape[1]):
        slope = slopes(model.blocks, z[:, j : j + 1])[:, 0]
        adjoint = np.linalg.solve(np.eye(model.n) - a.T * slope, c.T @ weights[:, j])
        result[:, j] = b.T @ (slope * adjoint) + d.T @ weights[:, j]
    return result


def test_a_badly_scaled_cycle_has_its_gradient() -> None:
    # the adjoint passes from state to state in sizes so far apart that its first change looks like rounding
    a = np.zeros((3, 3))
    a[0, 1], a[1, 2], a[2, 0] = 1e-10, 1e12, 1e-4
    block = Block("h", activations.make("identity"), 0, 3, (3,), ())
    model = ImplicitModel(
        A=a, B=np.eye(3)[:, 2:], C=np.eye(3)[:1], D=np.zeros((1, 1)), blocks=(block,), has_bias=False
    )
    assert model.well_posedness().by == "perron-frobenius"
    u = np.ones((1, 1))
    exact = 1e2 / (1.0 - 1e-2)
    assert input_gradient(model, u, model.forward(u), np.ones((1, 1)))[0, 0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("loop", [-1e3, -1e7])
def test_a_stiff_self_loop_has_its_gradient(activation: str, loop: float) -> None:
    model = free_model(n=6, norm=0.85, activation=activation, density=1.0)
    a = model.A.toarray()
    a[2, 2] = loop
    model = replace(model, A=a)
    assert model.well_posedness().by == "mu-inf"
    u = random_inputs(model, 8)
    forward = model.forward(u)
    weights = np.random.default_rng(1).normal(size=(model.q, 8))
    found = input_gradient(model, u, forward, weights, FixedPoint(max_iterations=200))
    assert np.allclose(found, dense_gradient(model, forward.Z, weights), rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 8.0, 20.0]),
    norm=st.sampled_from([0.5, 0.99, 0.9999]),
    diagonal=st.sampled_from([None, -300.0]),
)
def test_the_units_of_the_states_do_not_change_a_gradient(
    seed: int, spread: float, norm: float, diagonal: float | None
) -> None:
    model = free_model(n=12, norm=norm, diagonal=diagonal, seed=seed, density=0.2)
    u = random_inputs(model, 3, seed)
    forward = model.forward(u, EXACT)
    weights = np.random.default_rng(seed).normal(size=(model.q, 3))
    expected = dense_gradient(model, forward.Z, weights)
    s = np.exp(spread * np.random.default_rng(seed).uniform(-1, 1, model.n))
    left, right = sparse.diags_array(s), sparse.diags_array(1.0 / s)
    scaled = replace(model, A=left @ model.A @ right, B=left @ model.B, C=model.C @ right)
    moved = replace(forward, Z=s[:, None] * forward.Z)
    found = input_gradient(scaled, u, moved, weights)
    assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()


def test_a_slow_cycle_is_solved_directly_and_a_large_one_by_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = free_model(n=12, norm=1.0 - 1e-7, activation="identity", density=1.0)
    model = replace(model, A=abs(model.A))
    assert model.well_posedness().by == "norm"
    u = random_inputs(model, 3)
    weights = np.random.default_rng(0).normal(size=(model.q, 3))
    forward = model.forward(u)
    expected = dense_gradient(model, forward.Z, weights)
    found = input_gradient(model, u, forward, weights, FixedPoint(max_iterations=100))
    assert np.abs(found - expected).max() <= 1e-7 * np.abs(expected).max()
    for name in ("wellposed", "adjoint"):
        monkeypatch.setattr(f"simtool.model.{name}.DIRECT_STATES", 10)
    with pytest.raises(ConvergenceError, match="adjoint fixed point did not converge"):
        input_gradient(replace(model), u, forward, weights, FixedPoint(max_iterations=100))
    easy = free_model(n=12, norm=0.9)
    forward = easy.forward(u)
    found = input_gradient(easy, u, forward, weights)
    assert np.allclose(found, dense_gradient(easy, forward.Z, weights), rtol=1e-7, atol=1e-8)
    assert input_gradient(easy, u[:, :0], easy.forward(u[:, :0]), weights[:, :0]).shape == (easy.p, 0)


def test_a_singular_adjoint_is_an_error_that_names_the_sample() -> None:
    block = Block("h", activations.make("relu"), 0, 1, (1,), ())
    model = ImplicitModel(A=[[1.0]], B=[[1.0]], C=[[1.0]], D=[[0.0]], blocks=(block,), has_bias=False)
    at = Forward(*(np.array([[-1.0, 1.0]]),) * 3, np.ones(2, dtype=np.int64), np.ones(2, dtype=bool))
    with pytest.raises(ConvergenceError, match="does not exist at sample 1"):
        input_gradient(model, np.ones((1, 2)), at, np.ones((1, 2)))
