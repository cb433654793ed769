"""to_onnx gives files that the ONNX checker accepts and that ONNX Runtime runs to the model's own outputs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model

import simtool.export.onnx_model as onnx_module
from simtool import activations
from simtool.blocks import Block
from simtool.errors import InputError, OptionError
from simtool.export.onnx_graph import IR_VERSION, OPSET, GraphWriter
from simtool.export.onnx_loop import iteration
from simtool.export.onnx_model import runner, to_onnx, verify_onnx
from simtool.export.sizes import csr_bytes, sizes
from simtool.export.verify import difference, probes, verify
from simtool.model import FixedPoint, ImplicitModel
from simtool.networks import NetworkSpec, load_network
from simtool.stages.convert import implicit_form

SPECS = [
    *("identity", "relu", "leaky_relu:0.1", "tanh", "sigmoid", "elu:0.7", "silu", "gelu", "gelu_tanh"),
    *("softplus:2.0", "clip:0.8", "square:0.8"),
]
DTYPES = ("float32", "float64")


def check(
    model: ImplicitModel, folder: Path, dtype: str = "float32", allowed: float = 1e-5
) -> onnx.ModelProto:
    path = folder / "net.onnx"
    made = to_onnx(model, dtype=dtype)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    assert verify_onnx(path, model, probes(model)) <= allowed
    return made


def operators(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


def random_model(seed: int, blocks: int, order: str, has_bias: bool = True) -> ImplicitModel:
    """Blocks of random sizes and activations. ``order``: "blocks" (acyclic block by block), "states" (acyclic only state
    by state) or "loops" (with small cycles)."""
    rng = np.random.default_rng(seed)
    sizes_ = rng.integers(1, 6, blocks)
    n, p, q = int(sizes_.sum()), 4 + int(has_bias), 3
    offsets = np.concatenate([[0], np.cumsum(sizes_)])
    a = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.3)
    if order == "blocks":
        owner = np.repeat(np.arange(blocks), sizes_)
        a *= owner[:, None] < owner[None, :]  # last hidden layer first
    elif order == "states":
        a = np.triu(a, 1)
    a *= 0.8 / np.maximum(np.abs(a).sum(axis=1, keepdims=True), 0.8)
    return ImplicitModel(
        A=a,
        B=rng.normal(size=(n, p)) * (rng.random((n, p)) < 0.4),
        C=rng.normal(size=(q, n)) * (rng.random((q, n)) < 0.5),
        D=rng.normal(size=(q, p)) * (rng.random((q, p)) < 0.4),
        blocks=tuple(
            Block(
                f"b{i}",
                activations.parse(str(rng.choice(SPECS[:10]))),
                int(offsets[i]),
                int(size),
                (int(size),),
                (),
            )
            for i, size in enumerate(sizes_)
        ),
        has_bias=has_bias,
        input_shape=(2, 2),
        output_map=[None, "softmax", "log_softmax", "sigmoid"][seed % 4],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_activation(tmp_path: Path, spec: str, dtype: str) -> None:
    exact = 1e-12 if dtype == "float64" and spec != "gelu" else 1e-5
    check(layered_model(activation=spec, weight=2.0), tmp_path, dtype, exact)


def test_no_activation_is_missing() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(activations.NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_activation_in_a_loop(tmp_path: Path, spec: str, dtype: str) -> None:
    model = free_model(activation=spec, norm=0.5)
    made = check(model, tmp_path, dtype, 1e-7 if dtype == "float64" else 1e-5)
    assert operators(made).count("Loop") == 1
    assert runner(tmp_path / "net.onnx")(np.zeros((0, 4))).shape == (0, 3)


@pytest.mark.parametrize("output_map", [None, "softmax", "log_softmax", "sigmoid"])
def test_layers_become_layers(tmp_path: Path, output_map: str | None) -> None:
    model = layered_model(output_map=output_map)
    made = check(model, tmp_path)
    assert operators(made)[:-1] == ["Gemm", "Relu"] * 3 + ["Gemm"]
    shapes = {i.name: tuple(i.dims) for i in made.graph.initializer}
    assert shapes["h1.weight"] == (7, 6)
    assert shapes["h3.weight"] == (4, 5)
    assert sizes(model).dense_bytes == 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    raw = to_onnx(model, output_map=False)
    assert operators(raw)[-1] == "Identity"


def test_shapes_and_batches(tmp_path: Path) -> None:
    model = replace(layered_model(6), input_shape=(2, 3))
    made = check(model, tmp_path)
    declared = made.graph.input[0]
    assert declared.name == "input"
    assert [d.dim_param or d.dim_value for d in declared.type.tensor_type.shape.dim] == ["batch", 2, 3]
    assert made.graph.output[0].name == "output"
    run = runner(tmp_path / "net.onnx")
    for count in (0, 1, 3, 17):
        assert run(np.zeros((count, 2, 3))).shape == (count, 3)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from(["blocks", "states", "loops"]),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_any_model(
    tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: int, order: str, has_bias: bool, dtype: str
) -> None:
    model = random_model(seed, blocks, order, has_bias)
    made = check(model, tmp_path_factory.mktemp("onnx"), dtype)
    assert ("Loop" in operators(made)) == (model.well_posedness().by != "acyclic")


def slow_model(rate: float, seed: int, activation: str = "relu") -> ImplicitModel:
    """Every row of A sums to ``rate``, without a negative entry: no iteration does better than the proof says."""
    a = np.abs(np.random.default_rng(seed).normal(size=(6, 6)))
    return replace(
        free_model(n=6, p=4, q=2, activation=activation, seed=seed),
        A=rate * a / a.sum(axis=1, keepdims=True),
    )


@pytest.mark.parametrize("activation", ["relu", "leaky_relu:0.1"])
@pytest.mark.parametrize("rate", [0.99, 0.999])
def test_a_float32_file_is_right_however_slow_its_loop_is(
    tmp_path: Path, rate: float, activation: str
) -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        model = slow_model(rate, seed, activation)
        made = check(model, tmp_path)
        others = np.concatenate([rng.uniform(-1, 1, (500, 3)), rng.uniform(-30, 30, (100, 3))])
        others = others.astype(np.float32)
        assert difference(model.predict(others), runner(tmp_path / "net.onnx")(others)) <= 1e-5
        ends = (*made.graph.input, *made.graph.output)
        assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}


def test_only_the_loops_of_a_float32_file_are_float64() -> None:
    for seed in range(8):
        model = random_model(seed, 3, "loops")
        made = to_onnx(model)
        names = {node.name.removesuffix(".loop") for node in made.graph.node if node.op_type == "Loop"}
        wide = {f"{name}.{part}" for name in names for part in ("A", "weight", "bias")}
        for array in made.graph.initializer:
            if array.name.endswith((".A", ".weight", ".bias")):
                double = array.data_type == onnx.TensorProto.DOUBLE
                assert double == (array.name in wide), array.name
        assert names


def test_a_loop_that_ends_before_its_fixed_point_has_its_own_message(tmp_path: Path) -> None:
    path, model = tmp_path / "net.onnx", slow_model(0.99999, 0)
    for dtype in DTYPES:
        onnx.save(to_onnx(model, dtype=dtype), path)
        with pytest.raises(
            InputError, match="does not reach the fixed point within 10000 iterations"
        ) as raised:
            verify_onnx(path, model, probes(model))
        assert "proven to converge" in str(raised.value)
        assert "--dtype" not in str(raised.value)
    (enough,) = re.findall(r"max_iterations=(\d+)", str(raised.value))
    onnx.save(to_onnx(model, options=FixedPoint(tolerance=1e-7, max_iterations=int(enough))), path)
    assert verify_onnx(path, model, probes(model)[:1]) <= 1e-5

    model = free_model(n=6, norm=1.3, activation="tanh", seed=3)
    assert not model.well_posedness().well_posed
    onnx.save(to_onnx(model, options=FixedPoint(method="picard", max_iterations=3)), path)
    with pytest.raises(InputError, match=r"within 3 iterations on .* no theorem"):
        verify_onnx(path, model, probes(model))


def test_the_error_function_in_a_loop_is_exact() -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    writer = GraphWriter(np.dtype(np.float32))
    z = writer.name("z")
    y = writer.in_double().activate(activations.parse("gelu"), z)
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["m"]) for name in (z, y)]
    opset = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(
        writer.graph("gelu", ends[:1], ends[1:]), opset_imports=opset, ir_version=IR_VERSION
    )
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    points = np.concatenate([np.linspace(-12, 12, 100_001), [0.0, -1e300, 1e300]])
    (found,) = session.run(None, {z: points})
    expected = activations.parse("gelu")(points)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_nothing_is_as_it_should_be_where_a_value_is_not_finite(tmp_path: Path) -> None:
    good = np.ones((2, 3))
    assert difference(good, good) == 0.0
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[1, 2] = value
        assert difference(bad, good) == difference(good, bad) == difference(bad, bad) == np.inf

    class Broken(ImplicitModel):
        def predict(self, *args: Any, **options: Any) -> np.ndarray:
            return np.asarray(super().predict(*args, **options) * np.inf)

    model = layered_model()
    broken = Broken(**{name: getattr(model, name) for name in ("A", "B", "C", "D", "blocks", "has_bias")})
    with pytest.raises(InputError, match="own outputs are not finite on 64 of the 64"):
        verify("net.onnx", broken, probes(broken), broken.predict)


@pytest.mark.parametrize("norm", [0.3, 0.9, 0.99])
def test_loops_under_the_norm(tmp_path: Path, norm: float) -> None:
    check(free_model(n=60, norm=norm, activation="tanh"), tmp_path)
    check(free_model(n=60, norm=norm), tmp_path, "float64", 1e-7)


def test_a_loop_that_contracts_slowly(tmp_path: Path) -> None:
    n = 12
    model = replace(
        free_model(n=n, activation="identity"),
        A=0.999 * np.eye(n)[np.roll(np.arange(n), 1)],
        B=np.abs(free_model(n=n).B.toarray()),
    )
    check(model, tmp_path, "float64", 1e-8)  # 20 000 iterations would be enough for 1e-9


def test_loops_under_perron_frobenius(tmp_path: Path) -> None:
    model = free_model(n=8, norm=0.8)
    units = 10.0 ** np.linspace(-3, 3, 8)
    scaled = replace(
        model, A=model.A.toarray() * units[:, None] / units, B=model.B * units[:, None], C=model.C / units
    )
    assert scaled.well_posedness().by == "perron-frobenius"
    check(scaled, tmp_path)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_loops_under_the_matrix_measure(tmp_path: Path, activation: str) -> None:
    model = free_model(n=10, norm=1.2, diagonal=-0.6, activation=activation)
    assert model.well_posedness().by == "mu-inf"
    check(model, tmp_path)
    check(model, tmp_path, "float64", 1e-7)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from([None, -0.9, -0.3, 0.1]), st.sampled_from(["relu", "tanh", "silu"])
)
def test_the_factor_of_a_loop_is_a_contraction(seed: int, diagonal: float | None, activation: str) -> None:
    model = free_model(n=7, norm=0.85, diagonal=diagonal, activation=activation, seed=seed)
    verdicts = model.well_posedness().components
    rng = np.random.default_rng(seed)
    for component, verdict in zip(model.components, verdicts, strict=True):
        how = iteration(component, verdict, model.blocks, "auto")
        if how.factor is None:
            continue
        phi = model.blocks[0].activation
        one, other, b = rng.normal(size=(3, 7, 50))
        after = [x + how.step * (phi(how.matrix @ x + b) - x) for x in (one, other)]
        v = how.vector[:, None]
        before = (np.abs(one - other) / v).max(axis=0)
        assert ((np.abs(after[0] - after[1]) / v).max(axis=0) <= how.factor * before * (1 + 1e-9)).all()


def test_a_loop_that_does_not_converge_says_nan() -> None:
    import onnxruntime

    model = free_model(n=6, norm=3.0, activation="tanh", seed=3)
    assert not model.well_posedness().well_posed
    made = to_onnx(model, options=FixedPoint(method="picard", tolerance=1e-7, max_iterations=3))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": np.ones((2, 4), dtype=np.float32)})
    assert np.isnan(found).all()


def test_no_states_at_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    check(
        ImplicitModel(
            A=np.zeros((0, 0)), B=np.zeros((0, 5)), C=np.zeros((3, 0)), D=rng.normal(size=(3, 5)), blocks=()
        ),
        tmp_path,
    )


def test_a_wrong_file_is_found(tmp_path: Path) -> None:
    model = layered_model()
    onnx.save(to_onnx(model), tmp_path / "net.onnx")
    other = replace(model, D=model.D * 1.001)
    with pytest.raises(InputError, match="does not compute"):
        verify_onnx(tmp_path / "net.onnx", other, probes(other))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="float16"):
        to_onnx(layered_model(), dtype="float16")
    monkeypatch.setattr(onnx_module, "_LARGEST", 100)
    with pytest.raises(InputError, match="2 GiB"):
        to_onnx(layered_model())


def test_the_tool_reads_its_own_files(tmp_path: Path) -> None:
    model = layered_model(output_map="softmax", certified=False)
    check(model, tmp_path, "float64")
    again = implicit_form(load_network(NetworkSpec(str(tmp_path / "net.onnx"))).graph)
    inputs = probes(model)
    np.testing.assert_allclose(again.predict(inputs), model.predict(inputs), rtol=1e-6, atol=1e-6)
    assert again.nnz == model.nnz


def test_sizes() -> None:
    model = layered_model(inputs=300)
    b = model.B
    assert csr_bytes(b) == b.nnz * (4 + 2) + (b.shape[0] + 1) * 2  # 301 columns, 2116 entries: 2-byte indices
    assert sizes(model).sparse_bytes == sum(csr_bytes(m) for m in (model.A, model.B, model.C, model.D))
    empty = replace(model, B=model.B * 0.0)
    assert sizes(empty).dense_bytes < sizes(model).dense_bytes
