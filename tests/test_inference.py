"""Compiled inference against ``ImplicitModel.predict``: every activation, map, structure, dtype and batch size."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model

from simtool import activations
from simtool.blocks import Block
from simtool.errors import ConvergenceError, InputError, OptionError
from simtool.inference import InferencePlan, kernels
from simtool.inference import program as program_module
from simtool.inference.lanes import exp_of_negative, log1p_of_fraction
from simtool.inference.schedule import CODES, obstacle, schedule
from simtool.model import ImplicitModel
from simtool.model.implicit import OUTPUT_MAPS

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
SPECS = [*activations.NAMES, "leaky_relu:0.3", "elu:0.5", "softplus:2.0", "square:3.0"]


def _agrees(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == dtype
    assert found.shape == expected.shape
    error = np.abs(found - expected) / np.maximum(1.0, np.abs(expected).max(initial=0.0))
    assert error.max(initial=0.0) <= TOLERANCE[dtype]


@st.composite
def acyclic_models(draw: st.DrawFn) -> ImplicitModel:
    """Blocks of random sizes and activations; any state may use any of a later row, so blocks may be entangled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=0, max_size=4))
    n, inputs, q = sum(sizes), draw(st.integers(1, 20)), draw(st.integers(1, 6))
    has_bias = draw(st.booleans())
    p = inputs + has_bias

    def sparse(shape: tuple[int, int]) -> np.ndarray:
        density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.8, 1.0]))
        return rng.normal(size=shape) * (rng.random(shape) < density) / np.sqrt(max(shape[1], 1))

    a = np.triu(sparse((n, n)), 1)
    blocks, offset = [], 0
    for number, size in enumerate(sizes):
        activation = activations.parse(draw(st.sampled_from(SPECS)))
        blocks.append(Block(f"h{number}", activation, offset, size, (size,), ("input", "bias")))
        rows = slice(offset, offset + size)
        if draw(st.booleans()):
            a[rows, rows] = 0.0  # a layer: no state uses another of its block
        offset += size
    if draw(st.booleans()) and n:  # the order of the states says nothing
        inside = np.concatenate([rng.permutation(b.size) + b.offset for b in blocks])
        a = a[np.ix_(inside, inside)]
    return ImplicitModel(
        A=a,
        B=sparse((n, p)),
        C=sparse((q, n)),
        D=sparse((q, p)),
        blocks=tuple(blocks),
        has_bias=has_bias,
        input_shape=(inputs,),
        output_map=draw(st.sampled_from([None, *OUTPUT_MAPS])),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    acyclic_models(),
    st.integers(0, 140),
    st.sampled_from(["float32", "float64"]),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_acyclic_models_agree(model: ImplicitModel, count: int, dtype: str, threads: int, seed: int) -> None:
    inputs = np.random.default_rng(seed).normal(size=(count, *model.input_shape)).astype(np.float32)
    plan = InferencePlan(model, dtype, threads)
    assert plan.method == "compiled"
    _agrees(plan.predict(inputs), model.predict(inputs), dtype)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 12),
    st.sampled_from(["relu", "tanh", "leaky_relu", "sigmoid"]),
    st.sampled_from([None, *OUTPUT_MAPS]),
    st.integers(1, 70),
    st.sampled_from(["float32", "float64"]),
)
def test_cyclic_models_run_the_proven_iteration(
    n: int, activation: str, output_map: str | None, count: int, dtype: str
) -> None:
    model = free_model(n, activation=activation, seed=n)
    model = replace(model, output_map=output_map, has_bias=False, input_shape=(model.p,))
    plan = InferencePlan(model, dtype)
    assert plan.method == "fixed-point"
    assert "cycles" in str(plan.reason)
    inputs = np.random.default_rng(count).normal(size=(count, model.p))
    np.testing.assert_array_equal(plan.predict(inputs), model.predict(inputs).astype(dtype))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_activation_far_out(spec: str, dtype: str) -> None:
    """One state that sees the input itself, from -60 to 60 and at 0: the tails of exp, tanh and erf."""
    model = ImplicitModel(
        A=np.zeros((1, 1)),
        B=np.ones((1, 1)),
        C=np.ones((1, 1)),
        D=np.zeros((1, 1)),
        blocks=(Block("h", activations.parse(spec), 0, 1, (1,), ("input",)),),
        has_bias=False,
        input_shape=(1,),
    )
    z = np.concatenate([np.linspace(-60, 60, 241), [-1e-9, 0.0, 1e-9]])[:, None].astype(np.float32)
    expected = activations.parse(spec)(z.astype(np.float64))
    plan = InferencePlan(model, dtype)
    tiled, alone = plan.predict(z), np.concatenate([plan.predict(row[None]) for row in z])
    for found in (tiled, alone):
        assert (np.abs(found - expected) <= TOLERANCE[dtype] * np.maximum(1.0, np.abs(expected))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponential_is_right_to_two_roundings(dtype: type) -> None:
    from numba import njit

    @njit
    def exponentials(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = exp_of_negative(x[i])
        return out

    x = -np.concatenate([np.linspace(0, 80, 100_001), np.geomspace(1e-12, 80, 20_000), [0.0]]).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    assert (np.abs(exponentials(x) - exact) <= 2 * np.finfo(dtype).eps * exact).all()
    ends = exponentials(np.array([-1e4, -np.inf, np.nan, -0.0], dtype))
    np.testing.assert_array_equal(ends, np.array([0, 0, np.nan, 1], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logarithm_is_right_to_two_roundings(dtype: type) -> None:
    from numba import njit

    @njit
    def logarithms(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = log1p_of_fraction(x[i])
        return out

    x = np.concatenate([np.linspace(0, 1, 100_001), np.geomspace(1e-30, 1, 20_000)]).astype(dtype)
    exact = np.log1p(x.astype(np.longdouble))
    assert (np.abs(logarithms(x) - exact) <= 2 * np.finfo(dtype).eps * exact).all()


def test_every_known_activation_has_a_code() -> None:
    assert set(activations.NAMES) == set(CODES)
    assert {None, *OUTPUT_MAPS} == set(kernels.MAPS)


@pytest.mark.parametrize("dense", [0.0, 1.1], ids=["all dense", "all sparse"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(11, 6, 3), (130, 65, 9)])
def test_dense_and_sparse_steps_agree(
    dense: float, dtype: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DENSE_MANY", "DENSE_ONE", "DENSE_ONE_LARGE"):
        monkeypatch.setattr(program_module, name, dense)
    model = layered_model(inputs=150, hidden=sizes, q=5, activation="gelu", output_map="softmax")
    plan = InferencePlan(model, dtype)
    assert plan.program is not None
    assert set(plan.program.dense_one + plan.program.dense_many) == {dense < 1.0}
    inputs = np.random.default_rng(1).normal(size=(70, 150))
    for count in (1, 3, 20, 70):
        _agrees(plan.predict(inputs[:count]), model.predict(inputs[:count]), dtype)


def test_a_stale_vector_never_reaches_the_padding_of_dense_rows() -> None:
    """Sample after sample in one vector: what an earlier one left behind is not seen."""
    model = layered_model(inputs=7, hidden=(5, 4), q=2)
    plan = InferencePlan(model, np.float64)
    inputs = np.random.default_rng(0).normal(size=(7, 7)) * np.array([1e150, 1, 1e-150, 1, 1, 0, 1])[:, None]
    np.testing.assert_allclose(plan.predict(inputs), model.predict(inputs), rtol=1e-12, atol=1e-12)


def test_a_layered_model_has_one_step_per_block() -> None:
    model = layered_model(hidden=(7, 5, 4))
    made = schedule(model)
    assert [(step.first, step.last) for step in made.steps] == [(0, 7), (7, 12), (12, 16), (16, 19)]
    # every step reads neighbouring numbers, all made before
    assert all(step.high <= made.inputs + step.first for step in made.steps)
    assert made.steps[1].entries == 5 * 7
    assert sorted(made.states) == list(range(model.n))
    assert made.matrix.nnz + np.count_nonzero(made.bias) == model.nnz


def test_wide_models_take_wide_indices() -> None:
    """More columns than 16 bits count."""
    p, rng = 70_000, np.random.default_rng(0)
    b = np.zeros((3, p))
    b[:, [0, 65_535, 65_536, p - 1]] = rng.normal(size=(3, 4))
    model = ImplicitModel(
        A=np.zeros((3, 3)),
        B=b,
        C=np.ones((1, 3)),
        D=np.zeros((1, p)),
        blocks=(Block("h", activations.make("relu"), 0, 3, (3,), ("input",)),),
        has_bias=False,
        input_shape=(p,),
    )
    inputs = rng.normal(size=(9, p)).astype(np.float32)
    for count in (1, 9):
        _agrees(InferencePlan(model).predict(inputs[:count]), model.predict(inputs[:count]), "float32")


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16, np.float64, bool])
def test_inputs_of_any_real_type_and_layout(kind: type) -> None:
    model = layered_model()
    inputs = np.asfortranarray(np.arange(60).reshape(10, 6) % 5).astype(kind)
    plan = InferencePlan(model)
    _agrees(plan.predict(inputs), model.predict(inputs), "float32")
    _agrees(plan.predict(inputs[::2]), model.predict(inputs[::2]), "float32")
    assert plan.predict(inputs[:0]).shape == (0, 3)


def test_one_plan_serves_several_threads() -> None:
    model = layered_model(inputs=40, hidden=(50, 30), q=4)
    plan = InferencePlan(model, threads=2)
    inputs = np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32)
    expected, found = plan.predict(inputs), {}

    def run(name: int) -> None:
        found[name] = [plan.predict(inputs) for _ in range(5)]

    workers = [threading.Thread(target=run, args=(name,)) for name in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((one == expected).all() for name in range(3) for one in found[name])
    assert (InferencePlan(model).predict(inputs) == expected).all()


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dtype": "float16"}, "dtype must be one of"), ({"dtype": "x"}, "dtype"), ({"dtype": ">f4"}, "dtype")]
    + [({"threads": wrong}, "threads must be") for wrong in (0, -1, 1.5, True)],
)
def test_wrong_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        InferencePlan(layered_model(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_named(count: int, value: float) -> None:
    inputs = np.zeros((count, 6))
    inputs[count - 1, 2] = value
    with pytest.raises(InputError, match=f"sample {count - 1} holds NaN or Inf"):
        InferencePlan(layered_model()).predict(inputs)


def test_inputs_of_a_wrong_shape_or_kind_are_refused() -> None:
    plan = InferencePlan(layered_model())
    for wrong in (np.zeros((2, 5)), np.zeros(()), np.zeros(3)):
        with pytest.raises(InputError, match="a sample has shape"):
            plan.predict(wrong)
    for wrong in (np.array([["a"] * 6]), np.zeros((1, 6), dtype=complex)):
        with pytest.raises(InputError, match="real numbers"):
            plan.predict(wrong)
    with pytest.raises(InputError, match="too large for float32"):
        plan.predict(np.full((1, 6), 1e300))
    free = InferencePlan(replace(free_model(), has_bias=False, input_shape=(5,)))
    with pytest.raises(InputError, match="real numbers"):
        free.predict(np.array([["a"] * 5]))


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_an_overflow_is_an_error_and_names_the_remedy(count: int, activation: str) -> None:
    """inf - inf in a row must not end as a closed relu; float64 holds the same numbers."""
    b = np.array([[3e38, -3e38, 0.0], [1.0, 1.0, 0.0]])
    model = ImplicitModel(
        A=np.zeros((2, 2)),
        B=b,
        C=np.array([[1e-30, 1.0]]),
        D=np.zeros((1, 3)),
        blocks=(Block("h", activations.make(activation), 0, 2, (2,), ("input", "bias")),),
        input_shape=(2,),
    )
    inputs = np.full((count, 2), 10.0)
    with pytest.raises(ConvergenceError, match=r"block 'h' overflow single precision. Use dtype=np.float64"):
        InferencePlan(model).predict(inputs)
    _agrees(InferencePlan(model, np.float64).predict(inputs), model.predict(inputs), "float64")


def test_weights_that_float32_cannot_hold_are_refused() -> None:
    model = layered_model()
    with pytest.raises(OptionError, match="float32 holds"):
        InferencePlan(replace(model, C=model.C * 1e39))
    InferencePlan(replace(model, C=model.C * 1e39), np.float64)


def test_outputs_that_overflow_are_an_error() -> None:
    model = layered_model()
    large = replace(model, C=abs(model.C) * 1e38, D=model.D * 1e300)
    with pytest.raises(ConvergenceError, match="outputs overflow double precision"):
        InferencePlan(replace(large, C=large.C * 1e270), np.float64).predict(np.full((1, 6), 1e6))


def test_an_activation_that_the_kernels_do_not_know_is_said() -> None:
    model = layered_model()
    blocks = tuple(
        replace(block, activation=replace(block.activation, name="mystery")) for block in model.blocks
    )
    assert "mystery" in str(obstacle(replace(model, blocks=blocks)))
    plan = InferencePlan(replace(model, blocks=blocks))
    inputs = np.ones((2, 6))
    assert plan.method == "fixed-point"
    assert plan.nbytes > 0
    _agrees(plan.predict(inputs), model.predict(inputs), "float32")


def test_without_numbas_compiler_the_plan_says_so() -> None:
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from model_cases import layered_model; "
        "from simtool.inference import InferencePlan; InferencePlan(layered_model())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NUMBA_DISABLE_JIT is set" in run.stderr.splitlines()[-1]


def test_the_first_run_says_that_it_compiles_and_the_second_does_not(tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s'); "
        f"sys.path.insert(0, {os.path.dirname(__file__)!r}); from model_cases import layered_model; import numpy as np; "
        "from simtool.inference import InferencePlan; InferencePlan(layered_model()).predict(np.zeros((40, 6)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert "compiling the inference kernels, once on this machine" in said[0]
    assert "compiling" not in said[1]
