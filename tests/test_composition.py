"""Composition: outputs of a composed model are the composition of the outputs, and verdicts are what the theorems say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model
from scipy import sparse

from simtool import activations
from simtool.activations import Activation
from simtool.blocks import Block, lipschitz
from simtool.errors import ConvergenceError, InputError, OptionError
from simtool.model import (
    FixedPoint,
    ImplicitModel,
    affine,
    affine_map,
    cascade,
    concatenate,
    elementwise,
    feedback,
    feedback_pair,
    input_gradient,
    load_model,
    loop_gain,
    multiply,
    output_bound,
    parallel_sum,
    scaled_cascade,
    sensitivity_norm,
)
from simtool.model.scaling import norm_inf
from simtool.model.wellposed import collatz_wielandt

EXACT = FixedPoint(tolerance=1e-13)
KINDS = ("acyclic", "norm", "perron-frobenius", "mu-inf", "unproven")
PROVEN = KINDS[:-1]
SPECS = (
    "relu",
    "tanh",
    "sigmoid",
    "leaky_relu:0.2",
    "silu",
    "softplus:1.0",
    "clip:0.7",
    "square:0.5",
    "identity",
)
UNIT_SLOPES = ("relu", "tanh", "sigmoid", "clip:0.7", "identity")


def random_model(
    seed: int, kind: str, p: int, q: int, bias: bool, specs: tuple[str, ...] = SPECS, size: int = 0
) -> ImplicitModel:
    """Two blocks with two activations; ``kind`` is the first theorem that holds; ``p`` inputs without the bias."""
    rng = np.random.default_rng(seed)
    if kind == "mu-inf":
        specs = tuple(spec for spec in specs if spec in UNIT_SLOPES)
    phi = [activations.parse(str(rng.choice(specs))) for _ in range(2)]
    sizes = [size or int(rng.integers(1, 4)), size or int(rng.integers(1, 4))]
    n = sum(sizes)
    blocks = (
        Block("two", phi[0], 0, sizes[0], (sizes[0],), ()),
        Block("one", phi[1], sizes[0], sizes[1], (sizes[1],), ()),
    )
    constants = lipschitz(blocks)
    a = rng.normal(size=(n, n))
    if kind == "acyclic":
        a = np.triu(3.0 * a, 1)
    else:
        np.fill_diagonal(a, 0.0)
        a[np.arange(n), (np.arange(n) + 1) % n] += 0.5 * np.sign(a[np.arange(n), (np.arange(n) + 1) % n])
        a *= (0.8 if kind != "unproven" else 20.0) / (constants * np.abs(a).sum(axis=1))[:, None]
    if kind == "perron-frobenius":
        s = 10.0 ** (2.0 * np.arange(n) / max(n - 1, 1))
        a = s[:, None] * a / s
    if kind == "mu-inf":
        a *= constants[:, None]
        np.fill_diagonal(a, -rng.uniform(3, 9, size=n))
    width = p + int(bias)
    return ImplicitModel(
        A=a,
        B=rng.normal(size=(n, width)),
        C=rng.normal(size=(q, n)),
        D=rng.normal(size=(q, width)),
        blocks=blocks,
        has_bias=bias,
    )


def outputs(model: ImplicitModel, inputs: np.ndarray) -> np.ndarray:
    """Y (q, m) for ``inputs`` (p without the bias, m)."""
    return model.forward(model.states_inputs(inputs.T), EXACT).Y


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    assert found.shape == expected.shape
    return bool(np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max()))


def pf(model: ImplicitModel) -> float:
    """The Perron-Frobenius eigenvalue of diag(L)|A|, without the library's bounds."""
    matrix = lipschitz(model.blocks)[:, None] * np.abs(model.A.toarray())
    return float(np.abs(np.linalg.eigvals(matrix)).max()) if model.n else 0.0


def check_parts(whole: ImplicitModel, *parts: ImplicitModel) -> None:
    """Well-posed exactly where the parts are, by their theorems; states stacked, names distinct, parents true."""
    verdicts = [part.well_posedness() for part in parts]
    verdict = whole.well_posedness()
    assert verdict.well_posed == all(v.well_posed for v in verdicts)
    ours = sorted((c.norm, c.by or "") for c in verdict.components)
    theirs = sorted((c.norm, c.by or "") for v in verdicts for c in v.components)
    assert [by for _, by in ours] == [by for _, by in theirs]
    assert np.allclose([x for x, _ in ours], [x for x, _ in theirs], rtol=1e-12)
    assert pf(whole) == pytest.approx(max(pf(part) for part in parts), abs=1e-3, rel=1e-6)
    names = [block.name for block in whole.blocks]
    assert len(set(names)) == len(names)
    assert [b.activation for b in whole.blocks] == [b.activation for part in parts for b in part.blocks]
    for rows, left, right, parents in [
        *((b.rows, whole.A, whole.B, b.parents) for b in whole.blocks),
        (slice(None), whole.C, whole.D, whole.output_parents),
    ]:
        expected = {b.name for b in whole.blocks if left[rows][:, b.rows].nnz}
        inputs = whole.p - int(whole.has_bias)
        expected |= {"input"} if right[rows][:, :inputs].nnz else set()
        expected |= {"bias"} if right[rows][:, inputs:].nnz else set()
        assert set(parents) == expected


seeds = st.integers(0, 2**31)
sizes = st.integers(1, 4)
kinds = st.sampled_from(KINDS)
proven = st.sampled_from(PROVEN)
laws = settings(max_examples=60, deadline=None)


@laws
@given(seeds, kinds, kinds, st.booleans(), st.booleans(), sizes, sizes, sizes)
def test_cascade(
    seed: int, one: str, two: str, bias_one: bool, bias_two: bool, p: int, r: int, q: int
) -> None:
    inner = random_model(seed, one, p, r, bias_one)
    outer = random_model(seed + 1, two, r, q, bias_two)
    whole = cascade(outer, inner)
    assert (whole.n, whole.q, whole.has_bias) == (outer.n + inner.n, q, bias_one or bias_two)
    assert [b.name for b in whole.blocks] == ["outer/two", "outer/one", "inner/two", "inner/one"]
    check_parts(whole, outer, inner)
    if whole.well_posedness().well_posed:
        u = np.random.default_rng(seed).normal(size=(p, 3))
        assert close(outputs(whole, u), outputs(outer, outputs(inner, u)))


@laws
@given(
    seeds,
    st.lists(kinds, min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.booleans(),
)
def test_concatenate(seed: int, found: list[str], biases: list[bool], separate: bool) -> None:
    models = [
        random_model(seed + i, kind, 2 + i * separate, 1 + i, biases[i]) for i, kind in enumerate(found)
    ]
    whole = concatenate(*models, separate_inputs=separate)
    check_parts(whole, *models)
    assert whole.blocks[0].name == "part1/two"
    assert whole.has_bias == any(model.has_bias for model in models)
    if whole.well_posedness().well_posed:
        u = [
            np.random.default_rng(seed + i * separate).normal(size=(2 + i * separate, 4))
            for i in range(len(found))
        ]
        expected = np.vstack([outputs(model, part) for model, part in zip(models, u, strict=True)])
        assert close(outputs(whole, np.vstack(u) if separate else u[0]), expected)


@laws
@given(
    seeds,
    st.lists(kinds, min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.booleans(),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_parallel_sum(
    seed: int, found: list[str], biases: list[bool], separate: bool, weights: list[float]
) -> None:
    models = [random_model(seed + i, kind, 2 + i * separate, 3, biases[i]) for i, kind in enumerate(found)]
    weights = weights[: len(models)]
    whole = parallel_sum(*models, weights=weights, separate_inputs=separate)
    check_parts(whole, *models)
    if whole.well_posedness().well_posed:
        u = [
            np.random.default_rng(seed + i * separate).normal(size=(2 + i * separate, 4))
            for i in range(len(found))
        ]
        expected = sum(w * outputs(model, part) for w, model, part in zip(weights, models, u, strict=True))
        assert close(outputs(whole, np.vstack(u) if separate else u[0]), np.asarray(expected))
        plain = outputs(parallel_sum(*models, separate_inputs=separate), np.vstack(u) if separate else u[0])
        assert close(plain, np.asarray(sum(outputs(m, x) for m, x in zip(models, u, strict=True))))


@laws
@given(
    seeds,
    kinds,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["number", "diagonal", "matrix"]),
)
def test_affine(seed: int, kind: str, bias: bool, shift_in: bool, shift_out: bool, form: str) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(seed, kind, 3, 2, bias)
    weight = {"number": 1.7, "diagonal": rng.normal(size=2), "matrix": rng.normal(size=(4, 2))}[form]
    before = {"number": -0.3, "diagonal": rng.normal(size=3), "matrix": rng.normal(size=(3, 5))}[form]
    c_out = rng.normal(size=4 if form == "matrix" else 2) if shift_out else None
    c_in = rng.normal(size=3) if shift_in else None
    whole = affine(model, weight=weight, bias=c_out, input_weight=before, input_bias=c_in)
    check_parts(whole, model)
    assert [block.name for block in whole.blocks] == ["two", "one"]
    assert whole.has_bias == (bias or shift_in or shift_out)
    if whole.well_posedness().well_posed:
        u = rng.normal(size=(5 if form == "matrix" else 3, 3))
        entering = before @ u if form == "matrix" else np.reshape(before, (-1, 1)) * u
        y = outputs(model, entering + (0 if c_in is None else c_in[:, None]))
        expected = weight @ y if form == "matrix" else np.reshape(weight, (-1, 1)) * y
        assert close(outputs(whole, u), expected + (0 if c_out is None else c_out[:, None]))


@laws
@given(seeds, proven, proven, st.booleans(), sizes)
def test_cascades_are_associative(seed: int, one: str, two: str, bias: bool, r: int) -> None:
    f = random_model(seed, one, 2, r, bias)
    g = random_model(seed + 1, two, r, r, not bias)
    h = random_model(seed + 2, "acyclic", r, 2, bias)
    left, right = cascade(cascade(h, g), f), cascade(h, cascade(g, f))
    for name in "ABCD":
        x, y = getattr(left, name).toarray(), getattr(right, name).toarray()
        assert np.allclose(x, y, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(x).max(initial=0.0)))
    assert left.blocks[0].name == "outer/outer/two"
    assert right.blocks[0].name == "outer/two"


# --- feedback ------------------------------------------------------------------------------------------------------------


def looped(model: ImplicitModel, u: np.ndarray, gain: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the open model prints when u + K y enters: y again, where y is the closed loop's."""
    return outputs(model, u + gain @ y)


@laws
@given(seeds, proven, st.booleans(), sizes, sizes, st.floats(0.05, 0.95))
def test_feedback_below_gain_one_is_proven_and_closes_the_loop(
    seed: int, kind: str, bias: bool, p: int, q: int, share: float
) -> None:
    model = random_model(seed, kind if kind != "mu-inf" else "norm", p, q, bias)
    gain = np.random.default_rng(seed).normal(size=(p, q))
    whole_gain = loop_gain(model, gain)
    assert whole_gain is not None
    a, b, c, d = (np.abs(getattr(model, x).toarray()) for x in "ABCD")
    slope = lipschitz(model.blocks)[:, None]
    sensitivity = (
        c @ np.linalg.solve(np.eye(model.n) - slope * a, slope * b[:, :p]) + d[:, :p]
    )  # IDL Theorem 4.2
    assert whole_gain == pytest.approx((sensitivity @ np.abs(gain)).sum(axis=1).max(), rel=1e-6)
    gain = gain * share / whole_gain
    closed = feedback(model, gain)
    # Theorem 2.2 and the small-gain argument of loop_gain: the closed loop meets the Perron-Frobenius condition
    assert pf(closed) < 1.0
    assert closed.well_posedness().by in PROVEN[:3]
    u = np.random.default_rng(seed + 1).normal(size=(p, 3))
    y = outputs(closed, u)
    assert close(looped(model, u, gain, y), y)


@laws
@given(seeds, st.sampled_from(["acyclic", "norm", "mu-inf"]), st.booleans(), sizes, st.floats(-3.0, 3.0))
def test_any_feedback_closes_the_loop_or_is_refused(
    seed: int, kind: str, bias: bool, p: int, factor: float
) -> None:
    model = random_model(seed, kind, p, p, bias)
    closed, refusal = None, ""
    try:
        closed = feedback(model, factor)
    except InputError as error:
        refusal = str(error)
    if closed is None:
        assert "singular" in refusal or "not proven well-posed" in refusal
        if "singular" not in refusal:
            open_ended = feedback(model, factor, allow_unproven=True)
            assert not open_ended.well_posedness().well_posed
            assert pf(open_ended) > 0.999
        return
    assert closed.well_posedness().well_posed
    u = np.random.default_rng(seed + 1).normal(size=(p, 3))
    y = outputs(closed, u)
    condition = np.linalg.cond(np.eye(p) - factor * model.D.toarray()[:, :p])
    assume(condition < 1e3)
    again = looped(model, u, factor * np.eye(p), y)
    scale = max(1.0, np.abs(y).max(), np.abs(model.A).max(), np.abs(closed.A).max())
    assert np.abs(again - y).max() <= 1e-9 * condition * scale


@laws
@given(
    seeds,
    st.sampled_from(PROVEN[:3]),
    st.sampled_from(PROVEN[:3]),
    st.booleans(),
    st.booleans(),
    sizes,
    sizes,
    st.floats(0.1, 0.95),
)
def test_feedback_pair(
    seed: int, one: str, two: str, bias_one: bool, bias_two: bool, p: int, q: int, share: float
) -> None:
    first, second = random_model(seed, one, p, q, bias_one), random_model(seed + 1, two, q, p, bias_two)
    gain = float(sensitivity_norm(first) or 0.0) * float(sensitivity_norm(second) or 0.0)
    second = affine(second, weight=share / gain)
    closed = feedback_pair(first, second)
    assert pf(closed) < 1.0
    assert [b.name for b in closed.blocks] == ["forward/two", "forward/one", "backward/two", "backward/one"]
    assert (closed.q, closed.p) == (q, p + int(bias_one or bias_two))
    u = np.random.default_rng(seed + 1).normal(size=(p, 3))
    y = outputs(closed, u)
    again = outputs(first, u + outputs(second, y))
    assert np.abs(again - y).max() <= 1e-9 * max(1.0, np.abs(y).max())


def test_the_printed_matrices() -> None:
    """IDL section 2.4: the cascade and, for D = 0, the feedback connection, entry by entry."""
    rng = np.random.default_rng(0)
    one, two = (replace(random_model(s, "norm", 2, 2, False), header_extra={}) for s in (1, 2))
    a1, b1, c1, d1, a2, b2, c2, d2 = (getattr(m, x).toarray() for m in (one, two) for x in "ABCD")
    whole = cascade(two, one)
    zero = np.zeros((one.n, two.n))
    assert np.allclose(whole.A.toarray(), np.block([[a2, b2 @ c1], [zero, a1]]))
    assert np.allclose(whole.B.toarray(), np.vstack([b2 @ d1, b1]))
    assert np.allclose(whole.C.toarray(), np.hstack([c2, d2 @ c1]))
    assert np.allclose(whole.D.toarray(), d2 @ d1)

    one = replace(one, D=np.zeros((2, 2)), C=0.1 * rng.normal(size=(2, one.n)))
    two = replace(two, D=np.zeros((2, 2)))
    closed = feedback_pair(one, two, allow_unproven=True)
    c1 = one.C.toarray()
    assert np.allclose(closed.A.toarray(), np.block([[a1, b1 @ c2], [b2 @ c1, a2]]))
    assert np.allclose(closed.B.toarray(), np.vstack([b1, np.zeros((two.n, 2))]))
    assert np.allclose(closed.C.toarray(), np.hstack([c1, np.zeros((2, two.n))]))
    assert closed.D.nnz == 0
    with_d = feedback_pair(one, replace(two, D=d2), allow_unproven=True)
    assert np.allclose(with_d.A.toarray(), np.block([[a1 + b1 @ d2 @ c1, b1 @ c2], [b2 @ c1, a2]]))


def test_networks_from_the_laws() -> None:
    """Layers cascaded are IDL (3.2); a sum with the identity under an activation is the thesis's residual block."""
    rng = np.random.default_rng(1)
    w = [rng.normal(size=shape) for shape in ((4, 3), (5, 4), (2, 5))]
    layers = [affine(elementwise("relu", len(x)), input_weight=x) for x in w[:2]]
    network = cascade(affine_map(w[2]), cascade(layers[1], layers[0]))
    a, b = np.zeros((9, 9)), np.zeros((9, 3))
    a[:5, 5:], b[5:] = w[1], w[0]
    assert np.array_equal(network.A.toarray(), a)
    assert np.array_equal(network.B.toarray(), b)
    assert np.array_equal(network.C.toarray(), np.hstack([w[2], np.zeros((2, 4))]))
    assert (network.D.nnz, network.has_bias, network.well_posedness().by) == (0, False, "acyclic")

    # y = phi_2(u + W2 phi_1(W1 u)); printed with x = (x1, x2), here last layer first
    w1, w2 = rng.normal(size=(4, 3)), rng.normal(size=(3, 4))
    branch = affine(affine(elementwise("tanh", 4), input_weight=w1), weight=w2)
    block = cascade(elementwise("relu", 3), parallel_sum(affine_map(np.eye(3)), branch))
    assert np.array_equal(block.A.toarray(), np.block([[np.zeros((3, 3)), w2], [np.zeros((4, 7))]]))
    assert np.array_equal(block.B.toarray(), np.vstack([np.eye(3), w1]))
    u = rng.normal(size=(3, 5))
    assert close(outputs(block, u), np.maximum(u + w2 @ np.tanh(w1 @ u), 0.0))


def test_ill_posed_feedback_is_refused() -> None:
    straight = affine_map(np.eye(2))
    with pytest.raises(InputError, match="I - D K is singular"):
        feedback(straight)
    with pytest.raises(InputError, match="I - D K is singular"):
        feedback(straight, 1.0, allow_unproven=True)
    with pytest.raises(InputError, match=r"condition 1e\+13"):
        feedback(affine_map(np.array([[1.0, 1.0], [1.0, 1.0]])), 0.5 * (1 - 1e-13))
    assert np.allclose(outputs(feedback(straight, 0.5), np.ones((2, 1))), 2.0)

    # x = relu(x + u) has no state for u > 0 and many for u < 0; x = tanh(3 x + u) has three for u = 0
    relu, tanh = (elementwise(name, 1) for name in ("relu", "tanh"))
    with pytest.raises(InputError, match=r"not proven well-posed.*loop gain.* is 1;"):
        feedback(relu)
    with pytest.raises(InputError, match="allow_unproven"):
        feedback(tanh, 3.0)
    asked = feedback(tanh, 3.0, allow_unproven=True)
    assert not asked.well_posedness().well_posed
    with pytest.raises(ConvergenceError, match="no theorem proves"):
        feedback(relu, 1.5, allow_unproven=True).forward(np.ones((1, 1)))
    # negative feedback of a slope in [0, 1] is well-posed at any gain, by mu-inf: |A| alone would not tell
    braked = feedback(tanh, -50.0)
    assert braked.well_posedness().by == "mu-inf"
    x = outputs(braked, np.ones((1, 1)))
    assert np.allclose(x, np.tanh(1.0 - 50.0 * x), atol=1e-12)
    # well-posed parts, an ill-posed pair
    with pytest.raises(InputError, match="not proven well-posed"):
        feedback_pair(relu, affine(relu, weight=2.0))
    assert loop_gain(random_model(0, "unproven", 2, 2, True)) is None


def test_an_acyclic_loop_is_proven_at_any_gain() -> None:
    # the output of the last state enters the last state's successor only: no cycle is closed
    model = ImplicitModel(
        A=np.zeros((2, 2)), B=np.array([[100.0, 0.0], [0.0, 1.0]]), C=np.array([[0.0, 9.0], [0.0, 0.0]]), D=np.zeros((2, 2)),
        blocks=(Block("h", activations.make("relu"), 0, 2, (2,), ()),), has_bias=False,
    )  # fmt: skip
    assert feedback(model).well_posedness().by == "acyclic"
    assert feedback(model).structure == "dag"
    assert loop_gain(model) == pytest.approx(9.0)


# --- products ------------------------------------------------------------------------------------------------------------

GATES = ("tanh", "sigmoid", "clip:2.5", "clip:0.3", "square:1.5")


@laws
@given(
    seeds, kinds, kinds, st.booleans(), st.booleans(), st.sampled_from(GATES), st.sampled_from(GATES), st.booleans(), sizes
)  # fmt: skip
def test_multiply_is_the_product_of_the_gated_outputs_for_every_input(
    seed: int, one: str, two: str, bias_one: bool, bias_two: bool, g1: str, g2: str, separate: bool, q: int
) -> None:
    first = random_model(seed, one, 2, q, bias_one)
    second = random_model(seed + 1, two, 3 if separate else 2, q, bias_two)
    whole = multiply(first, second, gates=(g1, activations.parse(g2)), separate_inputs=separate)
    verdicts = [model.well_posedness().well_posed for model in (first, second)]
    assert whole.well_posedness().well_posed == all(verdicts)
    assert pf(whole) == pytest.approx(max(pf(first), pf(second)), abs=1e-3, rel=1e-6)
    assert whole.blocks[0].name == "product/square"
    assert (whole.q, whole.n) == (q, first.n + second.n + 4 * q)
    if all(verdicts):
        rng = np.random.default_rng(seed)
        u = 30.0 * rng.normal(size=(2, 5))
        v = 30.0 * rng.normal(size=(3, 5)) if separate else u
        gated = activations.parse(g1)(outputs(first, u)) * activations.parse(g2)(outputs(second, v))
        found = outputs(whole, np.vstack([u, v]) if separate else u)
        assert np.abs(found - gated).max() <= 1e-10
        assert (np.abs(found).max(axis=1) <= output_bound(whole)).all()


@laws
@given(seeds, st.booleans(), st.booleans())
def test_bounded_outputs_need_no_gate(seed: int, bias_one: bool, bias_two: bool) -> None:
    bounded = ("tanh", "sigmoid", "clip:0.7", "square:0.5")
    models = [random_model(seed + i, "norm", 2, 3, b, bounded) for i, b in enumerate((bias_one, bias_two))]
    for i, model in enumerate(models):
        direct = model.D.toarray()
        direct[:, :2] = 0.0
        models[i] = replace(model, D=direct)
    u = 10.0 * np.random.default_rng(seed).normal(size=(2, 6))
    y = [outputs(model, u) for model in models]
    for model, value in zip(models, y, strict=True):
        assert (np.abs(value).max(axis=1) <= output_bound(model)).all()
    assert close(outputs(multiply(*models), u), y[0] * y[1])


def test_unbounded_products_are_refused_and_clips_are_exact_within_their_range() -> None:
    relu = random_model(0, "acyclic", 2, 2, True, ("relu",))
    with pytest.raises(InputError, match=r"output 0 of 'second' is not bounded.*clip:c"):
        multiply(relu, relu, gates=("tanh", None))
    bounded = random_model(0, "acyclic", 2, 2, False, ("tanh",))
    with pytest.raises(InputError, match="not bounded"):  # its D lets the input through
        multiply(bounded, bounded)
    u = np.linspace(-1, 1, 14).reshape(2, 7)
    y = outputs(relu, u)
    c = float(np.abs(y).max())
    assert close(outputs(multiply(relu, relu, gates=(f"clip:{c!r}", f"clip:{c!r}")), u), y * y)
    cut = outputs(multiply(relu, relu, gates=("clip:0.1", f"clip:{c!r}")), u)
    assert close(cut, np.clip(y, -0.1, 0.1) * y)
    # an output that is always 0 has the bound 0
    dead = affine(elementwise("tanh", 2), weight=0.0)
    assert not outputs(multiply(dead, relu, gates=(None, "tanh")), u).any()
    with pytest.raises(InputError, match="equally many"):
        multiply(relu, affine(relu, weight=np.ones((1, 2))), gates=("tanh", "tanh"))


@pytest.mark.parametrize(("c1", "c2", "expected"), [(1.0, 1.0, 2.0), (2.0, 0.5, 4.0)])
def test_the_lipschitz_constant_seen_is_twice_the_papers(c1: float, c2: float, expected: float) -> None:
    gates = (f"clip:{c1}", f"clip:{c2}")
    whole = multiply(
        elementwise("identity", 1), elementwise("identity", 1), gates=gates, separate_inputs=True
    )
    # the sensitivity matrix of both inputs is (2 c2, 2 c1); IDL's constant in the l1 norm is max(c1, c2)
    assert sensitivity_norm(whole) == pytest.approx(2.0 * (c1 + c2))
    one = affine(whole, input_weight=np.array([[1.0], [0.0]]), input_bias=np.array([0.0, 99.0]))
    assert sensitivity_norm(one) == pytest.approx(2.0 * c2)
    both = [float(sensitivity_norm(affine(whole, input_weight=np.eye(2)[:, [i]])) or 0.0) for i in (0, 1)]
    assert max(both) == pytest.approx(expected)
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61))).reshape(2, -1)
    y = outputs(whole, grid)[0].reshape(61, 61)
    steepest = max(np.abs(np.diff(y, axis=0)).max(), np.abs(np.diff(y, axis=1)).max()) / 0.1
    assert steepest == pytest.approx(max(c1, c2))


def test_gradients_pass_through_a_product() -> None:
    first, second = (random_model(s, "norm", 2, 2, True, ("tanh",)) for s in (0, 1))
    whole = multiply(first, second, gates=("sigmoid", "tanh"))
    u = np.random.default_rng(0).normal(size=(2, 4))
    stacked = whole.states_inputs(u.T)
    gradient = input_gradient(whole, stacked, whole.forward(stacked, EXACT), np.ones((2, 4)), EXACT)[:2]
    for i in range(2):
        step = np.zeros((2, 1))
        step[i] = 1e-6
        numeric = (outputs(whole, u + step) - outputs(whole, u - step)).sum(axis=0) / 2e-6
        assert np.allclose(gradient[i], numeric, atol=1e-7)


@laws
@given(st.sampled_from(["clip", "square"]), st.floats(1e-3, 1e3), seeds)
def test_clip_and_square_keep_what_they_declare(name: str, bound: float, seed: int) -> None:
    phi: Activation = activations.make(name, bound)
    assert activations.parse(phi.spec) == phi
    rng = np.random.default_rng(seed)
    z = bound * np.concatenate([rng.normal(size=200), [-1.0, 1.0, 0.0, 1e6, -1e6]])
    x = phi(z)
    inside = np.abs(z) <= bound
    assert np.allclose(x[inside], z[inside] if name == "clip" else z[inside] ** 2, rtol=1e-15)
    assert (np.abs(x) <= phi.bound).all()
    other = rng.permutation(z)
    assert (np.abs(x - phi(other)) <= phi.lipschitz * np.abs(z - other) * (1 + 1e-12)).all()
    slope = phi.slope(z)
    assert (np.abs(slope) <= phi.lipschitz).all()
    assert phi.unit_slopes == (name == "clip")
    away = np.abs(np.abs(z) - bound) > 1e-4 * bound
    h = 1e-6 * bound
    assert np.allclose(
        slope[away], ((phi(z + h) - phi(z - h)) / (2 * h))[away], rtol=1e-4, atol=1e-4 * phi.lipschitz
    )
    assert phi(z.astype(np.float32)).dtype == np.float32
    with pytest.raises(OptionError, match="above 0"):
        activations.make(name, -bound)


# --- norms and rescaling -----------------------------------------------------------------------------------------------

HOMOGENEOUS = ("relu", "leaky_relu:0.2", "identity")


@laws
@given(seeds, st.sampled_from(PROVEN[:3]), st.sampled_from(PROVEN[:3]), st.booleans(), st.booleans())
def test_scaled_cascade(seed: int, one: str, two: str, bias_one: bool, bias_two: bool) -> None:
    outer = random_model(seed, two, 3, 2, bias_two, HOMOGENEOUS)
    # inner needs a norm below 1 of its own where it is not homogeneous
    inner = random_model(seed + 1, one, 2, 3, bias_one, SPECS if one == "norm" else HOMOGENEOUS)
    inner = affine(inner, weight=50.0)
    whole = scaled_cascade(outer, inner)
    assert norm_inf(sparse.csr_array(sparse.diags_array(lipschitz(whole.blocks)) @ abs(whole.A))) < 1.0
    assert whole.well_posedness().by in ("acyclic", "norm")
    u = np.random.default_rng(seed).normal(size=(2, 3))
    assert close(outputs(whole, u), outputs(outer, outputs(inner, u)))
    # X_whole = diag(scaling) X_plain
    scaling = np.ones(whole.n) if whole.scaling is None else whole.scaling
    entering = whole.states_inputs(u.T)
    states = cascade(outer, inner).forward(entering, EXACT).X
    found = whole.forward(entering, EXACT).X / scaling[:, None]
    assert np.abs(found - states).max() <= 1e-9 * max(1.0, np.abs(states).max())


def test_a_plain_cascade_can_lose_the_norm_and_keeps_a_rescaling() -> None:
    outer, inner = free_model(p=4, q=2, seed=1), free_model(p=5, q=3, seed=2)
    whole = cascade(outer, inner)
    assert max(outer.norm_a_inf_raw, inner.norm_a_inf_raw) < 1.0 < whole.norm_a_inf_raw
    assert whole.norm_a_inf < 1.0  # IDL section 2.5: a rescaling exists since the eigenvalue stays below 1
    assert scaled_cascade(outer, inner).norm_a_inf_raw < 1.0
    # tanh on top cannot be scaled, below it can stay
    tanh = free_model(p=4, q=2, activation="tanh", seed=1)
    with pytest.raises(InputError, match=r"blocks h are not positively homogeneous"):
        scaled_cascade(tanh, inner)
    below = free_model(p=5, q=3, activation="tanh", seed=2)
    assert scaled_cascade(outer, below).norm_a_inf_raw < 1.0
    assert cascade(outer, below).rescaling() is None
    # a cascade that is below 1 as it is stays as it is
    weak = scaled_cascade(tanh, affine(inner, weight=1e-4))
    assert weak.scaling is None
    with pytest.raises(InputError, match=r"'inner' has .*no rescaling below 1"):
        scaled_cascade(outer, free_model(p=5, q=3, norm=1.5))
    with pytest.raises(InputError, match=r"shrink by the factor .*below 1e-200"):
        scaled_cascade(outer, affine(inner, weight=1e250))


@laws
@given(seeds, st.sampled_from(PROVEN[:3]), st.sampled_from(PROVEN[:3]))
def test_composition_preserves_the_rescaling(seed: int, one: str, two: str) -> None:
    inner = random_model(seed, one, 2, 3, True, HOMOGENEOUS)
    outer = random_model(seed + 1, two, 3, 2, True, HOMOGENEOUS)
    for whole in (cascade(outer, inner), concatenate(outer, inner, separate_inputs=True)):
        rescaled = whole.rescaled()
        assert rescaled is not None
        assert rescaled.norm_a_inf_raw < 1.0
        u = np.random.default_rng(seed).normal(size=(whole.p - 1, 3))
        assert close(outputs(rescaled, u), outputs(whole, u))
        # Collatz-Wielandt (IDL 2.7): S^-1 |A| S with s = (I - |A|)^-1 1, as printed there
        weighted = sparse.csr_array(sparse.diags_array(lipschitz(whole.blocks)) @ abs(whole.A))
        s = np.linalg.solve(np.eye(whole.n) - weighted.toarray(), np.ones(whole.n))
        assert (s > 0).all()
        assert norm_inf(sparse.csr_array(weighted.toarray() * s / s[:, None])) < 1.0
        assert collatz_wielandt(weighted)[0] >= pf(whole) - 1e-3


# --- what is carried, and what is refused ------------------------------------------------------------------------------


def test_bookkeeping(tmp_path: Path) -> None:
    inner = replace(layered_model(q=4), scaling=np.full(16, 2.0))
    outer = layered_model(inputs=4, hidden=(3, 2), output_map="softmax", seed=1)
    whole = cascade(outer, inner)
    assert whole.output_map == "softmax"
    assert (whole.structure, whole.certificates, whole.scale) == ("layered", None, None)
    assert (whole.baseline_nnz, whole.baseline_bytes) == (2000, 8000)
    assert whole.fingerprints == {"outer/network": "ab" * 32, "inner/network": "ab" * 32}
    assert whole.scaling is not None
    assert whole.scaling.tolist() == [1.0] * 5 + [2.0] * 16
    assert whole.input_shape == (6,)
    assert [b.name for b in whole.blocks] == ["outer/h2", "outer/h1", "inner/h3", "inner/h2", "inner/h1"]
    assert whole.blocks[1].parents == ("inner/h3", "bias")
    # B2 meets C1 only: inner's last layer is what outer reads
    loaded = load_model(whole.save(tmp_path / "m.h5"))
    inputs = np.random.default_rng(0).normal(size=(3, 6))
    assert np.array_equal(loaded.predict(inputs), whole.predict(inputs))
    assert loaded.blocks == whole.blocks
    assert cascade(outer, free_model(q=4)).structure == "free"
    assert cascade(outer, elementwise("tanh", 4)).structure == "dag"
    assert cascade(outer, inner, names=("", "below")).blocks[0].name == "h2"
    image = replace(layered_model(inputs=6), input_shape=(2, 3))
    assert affine(image, input_weight=0.5, input_bias=-1.0).input_shape == (2, 3)
    assert concatenate(image, image).input_shape == (2, 3)
    assert concatenate(image, layered_model()).input_shape == (6,)
    assert affine(image, input_weight=np.ones((6, 4)), input_shape=(2, 2)).input_shape == (2, 2)
    squares = multiply(elementwise("tanh", 2), elementwise("sigmoid", 2))
    again = load_model(squares.save(tmp_path / "s.h5"))
    assert [b.activation.spec for b in again.blocks] == ["square:1.0", "tanh", "sigmoid"]


def test_output_maps_are_refused_or_stripped() -> None:
    mapped = layered_model(output_map="softmax")
    outer = layered_model(inputs=3)
    laws_ = {
        "cascade": lambda **k: cascade(outer, mapped, **k),
        "scaled_cascade": lambda **k: scaled_cascade(outer, mapped, **k),
        "concatenate": lambda **k: concatenate(
            outer, replace(mapped, output_map="sigmoid"), separate_inputs=True, **k
        ),
        "sum": lambda **k: parallel_sum(mapped, mapped, **k),
        "affine": lambda **k: affine(mapped, weight=2.0, **k),
        "feedback": lambda **k: feedback(mapped, 1e-4 * np.ones((6, 3)), **k),
        "feedback_pair": lambda **k: feedback_pair(affine(outer, weight=np.ones((6, 3)) / 1e4), mapped, **k),
        "multiply": lambda **k: multiply(mapped, mapped, gates=("tanh", "tanh"), **k),
    }
    for law in laws_.values():
        with pytest.raises(InputError, match=r"output map '\w+'.*strip_output_map=True"):
            law()
        assert law(strip_output_map=True).output_map is None
    assert affine(mapped, input_weight=2.0).output_map == "softmax"


def test_shapes_that_do_not_fit_are_refused() -> None:
    model = random_model(0, "norm", 2, 3, True)
    with pytest.raises(InputError, match="'inner' has 3 outputs, 'outer' takes 2 inputs"):
        cascade(model, model)
    with pytest.raises(InputError, match=r"inputs of one size, got \[2, 4\].*separate_inputs=True"):
        concatenate(model, random_model(0, "norm", 4, 3, True))
    with pytest.raises(InputError, match="at least one"):
        concatenate()
    with pytest.raises(InputError, match="at least one"):
        parallel_sum()
    with pytest.raises(InputError, match="2 models and 1 names"):
        concatenate(model, model, names=["a"])
    with pytest.raises(InputError, match=r"same name.*part"):
        concatenate(model, model, names=["part", "part"])
    with pytest.raises(InputError, match="2 models and 3 weights"):
        parallel_sum(model, model, weights=[1, 2, 3])
    with pytest.raises(InputError, match=r"different numbers of outputs, \[2, 3\]"):
        parallel_sum(model, random_model(0, "norm", 2, 2, True))
    with pytest.raises(InputError, match=r"weight has shape \(4,\).*length 3"):
        affine(model, weight=np.ones(4))
    with pytest.raises(InputError, match=r"input_weight has shape \(3, 2\).*\(2, any\)"):
        affine(model, input_weight=np.ones((3, 2)))
    with pytest.raises(InputError, match=r"must be a number or 3 numbers, got shape \(2,\)"):
        affine(model, bias=np.ones(2))
    with pytest.raises(InputError, match="must be a matrix"):
        affine_map(np.ones(3))
    with pytest.raises(InputError, match="NaN"):
        affine(model, weight=np.nan)
    with pytest.raises(InputError, match=r"K must map the 3 outputs to the 2 inputs.*got \(3, 3\)"):
        feedback(model)
    with pytest.raises(InputError, match="K holds NaN"):
        feedback(model, np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="a loop needs 'backward' to take the 3 outputs of 'forward'"):
        feedback_pair(model, model)
    with pytest.raises(InputError, match="at least one value"):
        elementwise("tanh", 0)
