"""Verdicts: each theorem on a model that only it proves, and Lipschitz constants above one."""

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
from simtool.model import FixedPoint, ImplicitModel
from simtool.model.levels import order
from simtool.model.scaling import norm_inf
from simtool.model.wellposed import Majorant, collatz_wielandt


def test_layered_is_acyclic_whatever_the_values() -> None:
    verdict = layered_model(weight=100.0, activation="silu").well_posedness()
    assert (verdict.well_posed, verdict.by, verdict.components) == (True, "acyclic", ())


def test_norm_first() -> None:
    verdict = free_model(norm=0.99).well_posedness()
    assert verdict.by == "norm"
    assert verdict.components[0].norm == pytest.approx(0.99)
    assert verdict.components[0].blocks == ("h",)


def test_perron_frobenius_where_the_norm_is_too_large() -> None:
    model = free_model(norm=0.9)
    s = np.exp(np.random.default_rng(0).normal(size=model.n))
    stretched = replace(model, A=sparse.diags_array(s) @ model.A @ sparse.diags_array(1 / s))
    verdict = stretched.well_posedness()
    assert verdict.by == "perron-frobenius"
    assert verdict.components[0].norm > 1
    assert verdict.components[0].pf == pytest.approx(0.9, rel=1e-3)


def test_mu_inf_needs_slopes_in_the_unit_interval() -> None:
    assert free_model(norm=0.9, diagonal=-20.0).well_posedness().by == "mu-inf"
    assert free_model(norm=0.9, diagonal=-20.0, activation="sigmoid").well_posedness().by == "mu-inf"
    refused = free_model(norm=0.9, diagonal=-20.0, activation="gelu").well_posedness()
    assert not refused.well_posed
    assert refused.components[0].mu is None


def test_a_biased_silu_model_with_norm_below_one_is_refused() -> None:
    model = free_model(norm=0.95, activation="silu")
    assert model.has_bias
    assert model.norm_a_inf_raw < 1
    verdict = model.well_posedness()
    assert not verdict.well_posed
    assert verdict.by is None
    assert "states in h" in verdict.explanation
    assert "1.04" in verdict.explanation
    assert free_model(norm=0.9, activation="silu").well_posedness().by == "norm"


def test_norm_below_one_does_prove_nothing_for_gelu() -> None:
    # x = gelu(.99 x + .04) has three solutions: what the Lipschitz constant guards against
    block = Block("h", activations.make("gelu"), 0, 1, (1,), ())
    phi = activations.make("gelu")
    x = np.linspace(-1, 10, 200_001)
    crossings = np.flatnonzero(np.diff(np.sign(phi(0.99 * x + 0.04) - x)))
    assert len(crossings) == 3
    two = ImplicitModel(
        A=[[0.99]], B=[[1.0, 0.04]], C=[[1.0]], D=[[0.0, 0.0]], blocks=(block,), input_shape=(1,)
    )
    assert not two.well_posedness().well_posed


def test_the_widest_theorem_is_reported_and_one_bad_component_spoils_all() -> None:
    parts = [free_model(n=6, norm=0.5), free_model(n=6, norm=0.9, diagonal=-9.0), free_model(n=6, norm=2.0)]
    a = sparse.block_diag([part.A for part in parts], format="csr")
    block = Block("h", activations.make("relu"), 0, 18, (18,), ())
    two = ImplicitModel(
        A=a[:12, :12], B=np.ones((12, 2)), C=np.ones((1, 12)), D=np.zeros((1, 2)),
        blocks=(replace(block, size=12, shape=(12,)),),
    )  # fmt: skip
    assert two.well_posedness().by == "mu-inf"
    assert sorted(str(c.by) for c in two.well_posedness().components) == ["mu-inf", "norm"]
    three = ImplicitModel(A=a, B=np.ones((18, 2)), C=np.ones((1, 18)), D=np.zeros((1, 2)), blocks=(block,))
    assert three.well_posedness().by is None
    assert "1 of 3 cyclic components" in three.well_posedness().explanation


def test_a_norm_of_exactly_one_is_not_a_proof() -> None:
    model = free_model(n=2, norm=1.0)
    assert not model.well_posedness().well_posed


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), target=st.floats(0.2, 1.5), n=st.integers(1, 15))
def test_the_eigenvalue_bound_is_an_upper_bound_and_tight_below_one(seed: int, target: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.random((n, n)) * (rng.random((n, n)) < 0.4)
    dense[np.arange(n), (np.arange(n) + 1) % n] += 0.05
    dense *= target / np.abs(np.linalg.eigvals(dense)).max()
    bound, vector = collatz_wielandt(sparse.csr_array(dense))
    assert (vector > 0).all()
    assert (dense @ vector <= bound * vector).all()
    assert bound >= target * (1 - 1e-9)
    if target < 0.999:
        assert bound < 1.0
    if target > 1.001:
        assert bound >= 1.0


def test_a_periodic_component_is_judged() -> None:
    cycle = np.roll(np.eye(7), 1, axis=1) * np.array([8, 0.1, 1, 2, 0.3, 1, 0.9])[:, None]
    exact = np.prod([8, 0.1, 1, 2, 0.3, 1, 0.9]) ** (1 / 7)
    assert exact < collatz_wielandt(sparse.csr_array(cycle))[0] < 1


def test_levels_follow_the_longest_path() -> None:
    a = np.zeros((5, 5))
    a[1, 0] = a[2, 1] = a[2, 0] = 1.0  # 0 -> 1 -> 2
    a[3, 4] = a[4, 3] = a[3, 2] = 1.0  # 2 -> {3, 4}
    components = order(sparse.csr_array(a))
    assert [(c.level, c.rows.tolist(), c.cyclic) for c in components] == [
        (0, [0], False),
        (1, [1], False),
        (2, [2], False),
        (3, [3, 4], True),
    ]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    norm=st.floats(0.1, 0.97),
    activation=st.sampled_from(["relu", "leaky_relu:0.1", "leaky_relu:-0.5", "identity"]),
)
def test_rescaling_keeps_outputs_and_brings_the_norm_below_one(
    seed: int, norm: float, activation: str
) -> None:
    model = free_model(n=8, norm=norm, activation=activation, seed=seed)
    s = np.exp(np.random.default_rng(seed).normal(size=model.n))
    model = replace(
        model,
        A=sparse.diags_array(s) @ model.A @ sparse.diags_array(1 / s),
        B=sparse.diags_array(s) @ model.B,
    )
    rescaled = model.rescaled()
    assert rescaled is not None
    assert rescaled.norm_a_inf_raw < 1
    assert model.norm_a_inf == pytest.approx(rescaled.norm_a_inf_raw)
    u = random_inputs(model, 3, seed)
    options = FixedPoint(tolerance=1e-13, max_iterations=100_000)
    one, two = model.forward(u, options), rescaled.forward(u, options)
    assert np.allclose(one.Y, two.Y, rtol=1e-8, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.floats(0.1, 30.0))
def test_rescaling_of_a_layered_model(seed: int, weight: float) -> None:
    model = layered_model(weight=weight, seed=seed)
    rescaled = model.rescaled()
    assert rescaled is not None
    assert rescaled.norm_a_inf_raw < 0.5 + 1e-12
    assert rescaled.structure == "layered"
    u = random_inputs(model, 3, seed)
    y = model.forward(u).Y
    assert np.allclose(rescaled.forward(u).Y, y, rtol=1e-9, atol=1e-9 * np.abs(y).max())
    assert np.allclose(rescaled.scaling, model.rescaling())


def test_a_leaky_slope_above_one_is_scaled_with_its_constant() -> None:
    model = free_model(norm=0.4, activation="leaky_relu:2.0")
    rescaled = model.rescaled()
    assert rescaled is not None
    assert norm_inf(sparse.diags_array(lipschitz(rescaled.blocks)) @ abs(rescaled.A)) < 1
    assert free_model(norm=0.6, activation="leaky_relu:2.0").rescaling() is None


def test_no_rescaling_without_homogeneity_or_contraction() -> None:
    assert free_model(activation="tanh").rescaling() is None
    assert free_model(norm=1.2).rescaling() is None
    model = free_model(norm=1.2)
    assert model.norm_a_inf == model.norm_a_inf_raw == pytest.approx(1.2)
    deep = layered_model(hidden=(3,) * 400, weight=30.0)
    assert deep.rescaling() is None  # 1/t does not fit into double precision
    assert deep.well_posedness().well_posed


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    activation=st.sampled_from(["relu", "tanh", "silu", "leaky_relu:-0.5"]),
    diagonal=st.sampled_from([None, -40.0, 0.05]),
    spread=st.sampled_from([0.0, 5.0]),
)
def test_the_majorant_bounds_the_distance_from_any_state_to_the_solution(
    seed: int, activation: str, diagonal: float | None, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    s = np.exp(spread * rng.uniform(-1, 1, 10))
    base = free_model(n=10, norm=0.8, activation=activation, diagonal=diagonal, seed=seed, density=0.2)
    model = replace(base, A=sparse.diags_array(s) @ base.A @ sparse.diags_array(1 / s))
    u = random_inputs(model, 1, seed)
    for verdict, component in zip(
        model.well_posedness().components, [c for c in model.components if c.cyclic], strict=True
    ):
        if verdict.by is None:
            continue
        bound: Majorant = verdict.majorant
        assert bound.factor is not None
        assert bound.factor < 1
        solution = model.forward(u, FixedPoint(tolerance=1e-14))
        exact = solution.X[component.rows]
        outside = solution.Z[component.rows] - component.inner @ exact
        x = exact + s[component.rows, None] * rng.normal(size=exact.shape)
        phi = model.blocks[0].activation
        residual = np.abs(phi(component.inner @ x + outside) - x)
        error = np.abs(x - exact)
        assert (error <= bound.inverse @ residual * (1 + 1e-9) + 1e-9 * np.abs(exact)).all()
        assert bound.relative_error(residual, error)[0] >= 1 - 1e-9
