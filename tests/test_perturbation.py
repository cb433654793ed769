"""Error bounds of a model whose entries changed: they hold, they are attained, and what is not proven is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import free_model, layered_model, random_inputs
from scipy import sparse

from simtool import activations
from simtool.blocks import Block, lipschitz
from simtool.errors import InputError
from simtool.model import FixedPoint, Forward, ImplicitModel
from simtool.model.perturbation import difference_bound, entry_errors, perturbation_bound, state_bound

PRECISE = FixedPoint(tolerance=1e-14)
SPECS = (
    "relu",
    "tanh",
    "leaky_relu:0.2",
    "leaky_relu:-1.5",
    "sigmoid",
    "silu",
    "gelu",
    "identity",
    "elu:1.0",
)


def two_blocks(seed: int) -> tuple[ImplicitModel, np.random.Generator]:
    """Two blocks of different activations, cyclic or not, with or without negative self loops."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=2)
    n, p, q = int(sizes.sum()), 4, 3
    blocks = (
        Block("one", activations.parse(str(rng.choice(SPECS))), 0, int(sizes[0]), (int(sizes[0]),), ()),
        Block(
            "two",
            activations.parse(str(rng.choice(SPECS))),
            int(sizes[0]),
            int(sizes[1]),
            (int(sizes[1]),),
            (),
        ),
    )
    a = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.6)
    if seed % 3 == 0:
        a = np.triu(3.0 * a, 1)
    else:
        target = rng.uniform(0.3, 0.9) / lipschitz(blocks)
        a *= (target / np.maximum(np.abs(a).sum(axis=1), 1e-9))[:, None]
        units = 10.0 ** rng.uniform(-2, 2, n)  # a norm above 1, the same eigenvalue
        a = units[:, None] * a / units
    model = ImplicitModel(
        A=a, B=rng.normal(size=(n, p)), C=rng.normal(size=(q, n)), D=rng.normal(size=(q, p)), blocks=blocks
    )
    return model, rng


def changed(model: ImplicitModel, errors: list[np.ndarray], rng: np.random.Generator) -> ImplicitModel:
    """Entries moved within the errors, half of them by all of it."""
    moved = {}
    for name, error in zip("ABCD", errors, strict=True):
        step = np.where(
            rng.random(error.shape) < 0.5,
            np.sign(rng.normal(size=error.shape)),
            rng.uniform(-1, 1, error.shape),
        )
        moved[name] = getattr(model, name).toarray() + step * error
    return replace(model, **moved)


def check(
    bound: Any, nominal: ImplicitModel, other: ImplicitModel, u: np.ndarray, before: Forward | None = None
) -> Forward:
    before, after = before or nominal.forward(u, PRECISE), other.forward(u, PRECISE)
    scale = np.abs(after.X) + np.abs(before.X) + np.abs(bound.states) + 1e-6
    assert (np.abs(after.X - before.X) <= bound.states + 1e-10 * scale).all()
    reach = np.abs(after.Y) + np.abs(before.Y) + abs(nominal.C) @ scale + 1.0
    assert (np.abs(after.Y - before.Y) <= bound.outputs + 1e-10 * reach).all()
    return before


def test_a_thousand_perturbations() -> None:
    """All four matrices, six activations and more, cyclic and acyclic; none is left out but those that are refused."""
    tried, refused, cyclic = 0, 0, 0
    for seed in range(200):
        model, rng = two_blocks(seed)
        relative = 10.0 ** rng.uniform(-6, -1)
        errors = [
            relative * rng.random(getattr(model, x).shape) * np.abs(getattr(model, x).toarray()).mean()
            for x in "BCD"
        ]
        entries = np.abs(model.A.toarray())
        errors.insert(0, relative * rng.random(entries.shape) * entries)
        u = random_inputs(model, 3, seed)
        try:
            bound = perturbation_bound(model, *errors, U=u)
        except InputError:
            refused += 1
            continue
        cyclic += any(c.cyclic for c in model.components)
        before = None
        for _ in range(6):
            other = changed(model, errors, rng)
            before = check(bound, model, other, u, before)
            tried += 1
        closer = difference_bound(model, other, u)
        check(closer, model, other, u, before)
        assert (closer.states <= bound.states * (1 + 1e-9) + 1e-300).all()
    assert tried >= 1000
    assert cyclic >= 100
    assert refused <= 30


def swap(scale: float, n: int = 2) -> np.ndarray:
    return scale * np.eye(n)[::-1]


def test_the_printed_bound_fails_and_ours_is_attained() -> None:
    """A0 = -.5 S, E = .4 S, S a swap, identity: A = A0 - E moves the state by 8; printed is (I - |A0 + E|)^-1 E |x0| = .89."""
    model = ImplicitModel(
        A=swap(-0.5),
        B=np.array([[1.0], [-1.0]]),
        C=np.eye(2),
        D=np.zeros((2, 1)),
        blocks=(Block("h", activations.parse("identity"), 0, 2, (2,), ("h", "input")),),
        has_bias=False,
    )
    u = np.ones((1, 1))
    E = swap(0.4)
    other = replace(model, A=swap(-0.9))
    x0, x = model.forward(u, PRECISE).X, other.forward(u, PRECISE).X
    np.testing.assert_allclose(np.abs(x - x0), [[8.0], [8.0]], rtol=1e-12)
    printed = np.linalg.solve(np.eye(2) - np.abs(swap(-0.5) + E), E @ np.abs(x0))
    np.testing.assert_allclose(printed, 8.0 / 9.0, rtol=1e-12)
    ours = perturbation_bound(model, E, U=u)
    assert (np.abs(x - x0) > 8 * printed).all()
    np.testing.assert_allclose(ours.states, 8.0, rtol=1e-11)
    np.testing.assert_allclose(ours.outputs, 8.0, rtol=1e-11)


@given(st.integers(0, 10**6))
def test_attained_by_positive_linear_models(seed: int) -> None:
    """A0, B, E >= 0, u >= 0 and identity activations: A = A0 + E reaches the bound, in states and outputs."""
    rng = np.random.default_rng(seed)
    n, p, q = 5, 3, 2
    a, e = rng.random((2, n, n))
    whole = (a + e).sum(axis=1, keepdims=True)
    a, e = 0.9 * a / whole, 0.9 * e / whole
    b, eb, c, ec, d, ed = (rng.random(s) for s in ((n, p), (n, p), (q, n), (q, n), (q, p), (q, p)))
    model = ImplicitModel(
        A=a,
        B=b,
        C=c,
        D=d,
        blocks=(Block("h", activations.parse("identity"), 0, n, (n,), ()),),
        has_bias=False,
    )
    u = rng.random((p, 2))
    bound = perturbation_bound(model, e, eb, ec, ed, U=u)
    other = replace(model, A=a + e, B=b + eb, C=c + ec, D=d + ed)
    before, after = model.forward(u, PRECISE), other.forward(u, PRECISE)
    np.testing.assert_allclose(bound.states, after.X - before.X, rtol=1e-10)
    np.testing.assert_allclose(bound.outputs, after.Y - before.Y, rtol=1e-10)


def test_zero_error_is_zero_and_one_entry_moves_what_follows_it() -> None:
    model = layered_model(certified=False)
    u = random_inputs(model, 4)
    still = perturbation_bound(model, U=u)
    assert not still.states.any()
    assert not still.outputs.any()
    E = sparse.lil_array(model.A.shape)
    E[4, 9] = 0.1  # a state of h2 reads h1: h1 and the rest of h2 stay
    moved = perturbation_bound(model, E, U=u).states
    assert not moved[5:].any()
    assert moved[4] == pytest.approx(0.1 * model.forward(u).X[9])


def test_negative_self_loops_help() -> None:
    """|A0| + E has an eigenvalue above 1, and the bound exists since a_ii = -5 only damps relu states."""
    model = free_model(n=8, p=3, norm=0.6, diagonal=-5.0, activation="relu")
    rng = np.random.default_rng(0)
    E = 0.02 * np.abs(model.A.toarray())
    u = rng.normal(size=(3, 5))
    model = replace(model, has_bias=False, input_shape=(3,))
    bound = perturbation_bound(model, E, U=u)
    for _ in range(20):
        check(bound, model, changed(model, [E, *(np.zeros(getattr(model, x).shape) for x in "BCD")], rng), u)
    silu = replace(model, blocks=(replace(model.blocks[0], activation=activations.parse("silu")),))
    with pytest.raises(InputError, match="not proven to be below 1"):
        perturbation_bound(silu, E, x0=bound.nominal)


def test_for_all_inputs_of_a_box() -> None:
    for seed in range(40):
        model, rng = two_blocks(seed)
        radius = np.append(rng.random(3), 1.0)[:, None]
        try:
            size = state_bound(model, radius)
        except InputError:
            continue
        u = np.vstack([radius[:3] * rng.uniform(-1, 1, (3, 50)), np.ones((1, 50))])
        assert (np.abs(model.forward(u, PRECISE).X) <= size * (1 + 1e-9)).all()
        errors = [1e-4 * np.abs(getattr(model, x).toarray()) for x in "ABCD"]
        bound = perturbation_bound(model, *errors, U=radius, x0=size)
        check(replace(bound), model, changed(model, errors, rng), u)


def test_sparse_and_dense_errors_agree() -> None:
    model, rng = two_blocks(7)
    u = random_inputs(model, 2)
    E = 0.01 * rng.random((model.n, model.n)) * np.abs(model.A.toarray())
    dense, thin = perturbation_bound(model, E, U=u), perturbation_bound(model, sparse.csr_array(E), U=u)
    np.testing.assert_array_equal(dense.states, thin.states)


def test_refusals() -> None:
    model = free_model(n=4, p=3, norm=0.9, activation="tanh")
    model = replace(model, has_bias=False, input_shape=(3,))
    u = np.ones((3, 2))
    with pytest.raises(InputError, match=r"not proven to be below 1 \(bound 1\.\d+\)"):
        perturbation_bound(model, 0.05 * np.ones((4, 4)), U=u)
    unproven = replace(model, A=3.0 * model.A)
    with pytest.raises(InputError, match="not proven"):
        perturbation_bound(unproven, E_B=np.ones((4, 3)), U=u, x0=np.ones((4, 2)))
    with pytest.raises(InputError, match="shape of A"):
        perturbation_bound(model, np.ones((4, 3)), U=u)
    with pytest.raises(InputError, match="shape of A"):
        perturbation_bound(model, 0.1, U=u)
    with pytest.raises(InputError, match=r"at least 0, got one of -1"):
        perturbation_bound(model, E_B=-np.ones((4, 3)), U=u)
    with pytest.raises(InputError, match="got one of nan"):
        perturbation_bound(model, E_D=np.full((3, 3), np.nan), U=u)
    with pytest.raises(InputError, match="neither was given"):
        perturbation_bound(model)
    with pytest.raises(InputError, match="pass U"):
        perturbation_bound(model, E_B=np.ones((4, 3)), x0=np.ones((4, 2)))
    with pytest.raises(InputError, match="must be equal"):
        perturbation_bound(model, U=u, x0=np.ones((4, 3)))
    with pytest.raises(InputError, match=r"must have shape \(4, m\)"):
        perturbation_bound(model, x0=np.ones(4))
    with pytest.raises(InputError, match="more than the values"):
        entry_errors(model, free_model(n=4, p=3, activation="relu"))
