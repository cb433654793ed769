"""A = L R^T + S: the fixed point in rank dimensions is that of the full product, and the distance to A is bounded."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model, random_inputs
from scipy import sparse

from simtool import activations
from simtool.blocks import Block
from simtool.errors import ConvergenceError, InputError, OptionError
from simtool.model import FixedPoint, ImplicitModel
from simtool.model.lowrank import LowRank, low_rank

PRECISE = FixedPoint(tolerance=1e-14)


def thin(n: int, k: int, activation: str, seed: int, entries: int = 0) -> ImplicitModel:
    """A = L R^T of rank k, with ``entries`` large entries besides, and the norm .8."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, k)) @ rng.normal(size=(k, n)) / n
    places = rng.choice(n * n, size=entries, replace=False)
    a.flat[places] += rng.choice([-3.0, 3.0], size=entries)
    a *= 0.8 / np.abs(a).sum(axis=1).max()
    return replace(free_model(n=n, p=5, q=3, activation=activation, seed=seed), A=a)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["relu", "tanh", "leaky_relu:0.2", "sigmoid", "identity", "silu"]),
    st.integers(1, 6),
    st.booleans(),
)
def test_outputs_are_those_of_the_full_product(seed: int, activation: str, rank: int, rest: bool) -> None:
    model = free_model(n=24, p=5, q=3, activation=activation, norm=0.35, seed=seed)
    small = low_rank(model, rank, sparse_entries=30 if rest else 0)
    u = random_inputs(model, 6, seed)
    found = small.outputs(u)
    full = small.assembled().forward(u, PRECISE)
    np.testing.assert_allclose(found, full.Y, rtol=1e-10, atol=1e-10)
    x, iterations = small.states(u)
    np.testing.assert_allclose(x, full.X, rtol=1e-10, atol=1e-10)
    assert (iterations >= 1).all()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_matrix_of_that_rank_is_found_exactly(activation: str) -> None:
    model = thin(60, 3, activation, seed=1)
    small = low_rank(model, 3)
    assert small.errors().max() < 1e-14
    u = random_inputs(model, 20)
    np.testing.assert_allclose(small.outputs(u), model.forward(u, PRECISE).Y, rtol=0, atol=1e-10)
    assert small.a_parameters == 2 * 60 * 3 < model.A.nnz
    assert small.parameters == small.a_parameters + model.B.nnz + model.C.nnz + model.D.nnz
    assert small.error_bound(u).outputs.max() < 1e-12


def test_low_rank_plus_sparse_is_found() -> None:
    """40 large entries on a rank of 2: neither part alone comes near, both together do."""
    model = thin(60, 2, "relu", seed=3, entries=40)
    both = low_rank(model, 2, sparse_entries=40)
    norm = np.linalg.norm(model.A.toarray())
    errors = [
        float(np.linalg.norm(x.errors().toarray())) / norm
        for x in (both, low_rank(model, 2), low_rank(model, 0, sparse_entries=40), low_rank(model, 3))
    ]
    assert errors[0] < 1e-3
    assert min(errors[1:]) > 0.05
    assert both.rest.nnz == 40
    assert both.a_parameters == 2 * 60 * 2 + 40
    u = random_inputs(model, 10)
    bound = both.error_bound(u).outputs
    difference = np.abs(both.outputs(u) - model.forward(u, PRECISE).Y)
    assert (difference <= bound + 1e-12).all()
    assert bound.max() < 0.1


def test_the_truncation_is_the_closest_of_its_rank() -> None:
    """Eckart and Young: the error is the norm of the singular values left out; more rank or more entries never hurt."""
    model = free_model(n=30, seed=5)
    values = np.linalg.svd(model.A.toarray(), compute_uv=False)
    for rank in (0, 1, 7, 29, 30):
        error = np.linalg.norm(low_rank(model, rank).errors().toarray())
        np.testing.assert_allclose(error, np.sqrt((values[rank:] ** 2).sum()), rtol=1e-10, atol=1e-13)
    last = np.inf
    for entries in (0, 10, 100, 900):
        error = float(np.linalg.norm(low_rank(model, 4, sparse_entries=entries).errors().toarray()))
        assert error <= last
        last = error
    assert last < 1e-14


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["relu", "tanh", "sigmoid"]), st.integers(3, 16))
def test_the_error_bound_holds(seed: int, activation: str, rank: int) -> None:
    model = free_model(n=16, norm=0.25, activation=activation, seed=seed)
    small = low_rank(model, rank, sparse_entries=20)
    u = random_inputs(model, 5, seed)
    # the norms of A, .25, and of E stay below 1 together
    bound = small.error_bound(u)
    exact = model.forward(u, PRECISE)
    x, _ = small.states(u)
    assert (np.abs(x - exact.X) <= bound.states + 1e-11).all()
    assert (np.abs(small.outputs(u) - exact.Y) <= bound.outputs + 1e-10).all()


def test_the_layers_of_a_chain_stay_apart() -> None:
    """A layered A is nilpotent; so is its truncation, which ends after as many iterations as there are layers, and one to see it."""
    model = layered_model(inputs=8, hidden=(20, 16, 12), weight=3.0, certified=False)
    small = low_rank(model, 20)
    product = small.left @ small.right.T
    assert np.abs(np.linalg.matrix_power(product, 3)).max() < 1e-12
    u = random_inputs(model, 7)
    x, iterations = small.states(u)
    np.testing.assert_allclose(x, small.assembled().forward(u, PRECISE).X, rtol=1e-10, atol=1e-10)
    assert iterations.max() <= 5
    whole = low_rank(model, model.n)
    np.testing.assert_allclose(whole.outputs(u), model.forward(u).Y, rtol=1e-10, atol=1e-10)
    assert (np.abs(small.outputs(u) - model.forward(u).Y) <= small.error_bound(u).outputs + 1e-9).all()


def test_large_models_never_form_the_product() -> None:
    n, k = 2600, 4
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, n, k))
    right *= 0.5 / (np.abs(left) @ np.abs(right).sum(axis=0)).max()
    model = ImplicitModel(
        A=sparse.csr_array((n, n)),
        B=rng.normal(size=(n, 3)),
        C=rng.normal(size=(2, n)) / n,
        D=np.zeros((2, 3)),
        blocks=(Block("h", activations.parse("relu"), 0, n, (n,), ("h", "input")),),
        has_bias=False,
    )
    rest = sparse.random_array((n, n), density=1e-5, rng=rng, format="csr")
    small = LowRank(model, left, right, 0.1 * rest)
    u = rng.normal(size=(3, 4))
    tracemalloc.start()
    x, _ = small.states(u)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n  # the product would take 8 n^2 bytes
    again = np.maximum(left @ (right.T @ x) + 0.1 * (rest @ x) + model.B @ u, 0.0)
    np.testing.assert_allclose(again, x, rtol=0, atol=1e-12 * np.abs(x).max())


def test_large_sparse_matrices_are_decomposed_as_such() -> None:
    n = 1600
    rng = np.random.default_rng(1)
    columns = sparse.random_array((n, 3), density=0.05, rng=rng, format="csr")
    rows = sparse.random_array((3, n), density=0.05, rng=rng, format="csr")
    a = sparse.csr_array(columns @ rows)
    a = a * (0.5 / abs(a).sum(axis=1).max())
    model = replace(free_model(n=2, p=2), structure="free")
    model = ImplicitModel(
        A=a,
        B=np.ones((n, 2)),
        C=np.ones((1, n)),
        D=np.zeros((1, 2)),
        blocks=(replace(model.blocks[0], size=n, shape=(n,)),),
    )
    small = low_rank(model, 3)
    assert np.abs((small.left @ small.right.T) - a.toarray()).max() < 1e-13


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus:1.0"])
def test_slow_contractions_end_at_rounding(activation: str) -> None:
    """A factor of .99 asks for steps below rounding at a tolerance of 1e-13: the iteration ends all the same."""
    model = thin(80, 3, activation, seed=2)
    model = replace(
        model, A=np.abs(model.A.toarray()) * (0.99 / np.abs(model.A.toarray()).sum(axis=1, keepdims=True))
    )
    small = low_rank(model, 80)
    u = random_inputs(model, 4)
    x, _ = small.states(u, FixedPoint(tolerance=1e-13, max_iterations=20_000))
    residual = small.assembled().forward(u, PRECISE).X - x
    assert np.abs(residual).max() <= 1e-11 * np.abs(x).max()


def test_refusals() -> None:
    model = free_model(n=8, activation="tanh")
    for options in ({"rank": 9}, {"rank": -1}, {"rank": 1.5}):
        with pytest.raises(OptionError, match=r"rank must be a whole number in 0\.\.8"):
            low_rank(model, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="sparse_entries must be"):
        low_rank(model, 2, sparse_entries=65)
    wild = low_rank(replace(model, A=5.0 * model.A), 8)
    u = random_inputs(model, 2)
    with pytest.raises(InputError, match=r"run assembled\(\)"):
        wild.states(u)
    small = low_rank(model, 4)
    with pytest.raises(InputError, match="U must have shape"):
        small.states(u[:2])
    with pytest.raises(ConvergenceError, match="in 2 iterations"):
        low_rank(model, 8).states(u, FixedPoint(max_iterations=2))
    with pytest.raises(InputError, match="as many columns"):
        LowRank(model, np.ones((8, 2)), np.ones((8, 3)), sparse.csr_array((8, 8)))
    with pytest.raises(InputError, match="8 rows"):
        LowRank(model, np.ones((7, 2)), np.ones((8, 2)), sparse.csr_array((8, 8)))
