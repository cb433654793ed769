"""Which of a network's own numbers a layer's rows are: followed by indices, tried with changed weights, replaced under every name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks_zoo as zoo
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_networks_layers import changed_rows, check_layers, check_round_trip, left, read, samples
from torch import nn

from simtool.errors import InputError, UnsupportedOperator
from simtool.networks.layer_check import DIFFERS
from simtool.networks.layouts import Layout
from simtool.networks.onnx_program import Translator as OnnxTranslator
from simtool.networks.onnx_reader import read_onnx
from simtool.networks.onnx_tensors import changed_model
from simtool.networks.program import Op, Program
from simtool.networks.symbolic import Interpreter
from simtool.networks.torch_program import Translator
from simtool.networks.tracing import trace

node = helper.make_node
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COMPUTED = "its weight is computed from the network's weights"


def symmetric(size: int) -> np.ndarray:
    w = np.random.default_rng(2).normal(size=(size, size)).astype(np.float32)
    return (w + w.T) / 2


class Read(nn.Module):
    """A square weight that is read as it is, turned or through a function, and a linear layer."""

    def __init__(self, how: str, values: np.ndarray) -> None:
        super().__init__()
        self.w, self.last, self.how = nn.Parameter(torch.from_numpy(values)), nn.Linear(4, 2), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = {
            "product": lambda: self.w,
            "turned": lambda: self.w.t(),
            "clamped": lambda: self.w.clamp(min=0),
            "scaled": lambda: self.w * 1.0,
            "triangle": lambda: torch.triu(self.w),
            "swapped": lambda: self.w.flip(0),
        }[self.how]()
        return self.last(torch.softmax(x @ weight, 1))


# --- what an operator reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "rows_first"), [("product", False), ("turned", True)])
@pytest.mark.parametrize("values", [symmetric(4), np.eye(4, dtype=np.float32)])
def test_symmetric_weights_keep_their_place(how: str, rows_first: bool, values: np.ndarray) -> None:
    network = read(Read(how, values), (4,))
    assert not network.outline.found.left
    assert network.outline.layers[0].spec.rows_first == rows_first
    check_layers(network)
    check_round_trip(network)


@pytest.mark.parametrize(
    ("how", "values", "why"),
    [
        ("clamped", np.abs(symmetric(4)), COMPUTED),
        ("scaled", symmetric(4), COMPUTED),
        ("triangle", np.triu(symmetric(4)), COMPUTED),
        ("swapped", np.ones((4, 4), np.float32), "in another order"),
    ],
)
def test_functions_that_change_nothing_now_are_no_layers(how: str, values: np.ndarray, why: str) -> None:
    network = read(Read(how, values), (4,))
    assert [layer.spec.name for layer in network.outline.layers] == ["last"]
    assert why in left(network)


@pytest.mark.parametrize(
    ("reading", "rows_first"),
    [
        ([node("MatMul", ["x", "W"], ["h"])], False),
        ([node("Transpose", ["W"], ["V"]), node("MatMul", ["x", "V"], ["h"])], True),
        ([node("Cast", ["W"], ["V"], to=TensorProto.FLOAT), node("Gemm", ["x", "V"], ["h"], transB=1)], True),
        ([node("Relu", ["W"], ["V"]), node("MatMul", ["x", "V"], ["h"])], None),
        ([node("Mul", ["W", "one"], ["V"]), node("MatMul", ["x", "V"], ["h"])], None),
    ],
)
def test_symmetric_weights_of_onnx(reading: list[Any], rows_first: bool | None, tmp_path: Path) -> None:
    constants = {"W": np.abs(symmetric(4)), "U": np.random.default_rng(3).normal(size=(4, 2)).astype("f")}
    if any("one" in n.input for n in reading):
        constants["one"] = np.ones((), np.float32)
    nodes = [*reading, node("Softmax", ["h"], ["s"], axis=-1), node("MatMul", ["s", "U"], ["y"])]
    network = read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, opset=17), None)
    places = {layer.spec.name: layer.spec.rows_first for layer in network.outline.layers}
    if rows_first is None:
        assert places == {"U": False}
        assert COMPUTED in left(network)
    else:
        assert places == {"W": rows_first, "U": False}
        check_layers(network)
        check_round_trip(network)


def test_a_bias_that_is_zero_now_is_followed_too() -> None:
    """Zeros made by a function are not the zeros of the bias that the function reads."""

    class Zeros(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.inner, self.last, self.own = nn.Linear(4, 4), nn.Linear(4, 2), own
            nn.init.zeros_(self.inner.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.inner.bias if self.own else torch.relu(self.inner.bias)
            return self.last(torch.softmax(nn.functional.linear(x, self.inner.weight, bias), 1))

    assert len(read(Zeros(own=True), (4,)).outline.layers) == 2
    network = read(Zeros(own=False), (4,))
    assert [layer.spec.name for layer in network.outline.layers] == ["last"]
    assert "its bias is computed from the network's weights" in left(network)


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """A chain of operators that only move the values of a (4, 6) tensor."""
    shape, chain = [4, 6], []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["permute", "slice", "reshape"]))
        if kind == "permute":
            order = draw(st.permutations(range(len(shape))))
            shape = [shape[axis] for axis in order]
            chain.append((kind, list(order)))
        elif kind == "slice":
            axis = draw(st.integers(0, len(shape) - 1))
            start = draw(st.integers(0, shape[axis] - 1))
            stop = draw(st.integers(start + 1, shape[axis]))
            shape[axis] = stop - start
            chain.append((kind, (axis, start, stop)))
        else:
            size = int(np.prod(shape))
            first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
            shape = [first, size // first]
            chain.append((kind, list(shape)))
    return chain


def moved(value: Any, chain: list[tuple[str, Any]]) -> Any:
    for kind, how in chain:
        if kind == "permute":
            value = value.permute(how) if isinstance(value, torch.Tensor) else value.transpose(how)
        elif kind == "slice":
            axis, start, stop = how
            value = value[(*[slice(None)] * axis, slice(start, stop))]
        else:
            value = value.reshape(how)
    return value


@few
@given(chain=moves())
def test_indices_follow_every_move(chain: list[tuple[str, Any]], tmp_path: Path) -> None:
    """What both readers say of a folded constant is what moving the indices themselves gives, whatever the values are."""
    zeros, wanted = np.zeros((4, 6), np.float32), moved(np.arange(24).reshape(4, 6), chain)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.from_numpy(zeros))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + moved(self.w, chain).sum()

    exported = trace(Chain().eval(), (3,), torch.float32, "net")
    translator = Translator(exported, {**exported.constants, **exported.state_dict}, "net")
    program = translator.program()
    found = [translator.picks(name) for name in program.constants if program.roots.get(name)]
    assert any(index is not None and np.array_equal(index, wanted) for index in found)
    assert found[-1] is None  # their sum is none of them

    nodes, constants, name = [], {"W": zeros}, "W"
    for at, (kind, how) in enumerate(chain):
        if kind == "permute":
            nodes.append(node("Transpose", [name], [f"v{at}"], perm=how))
        else:
            given = [how] if kind == "reshape" else [[how[1]], [how[2]], [how[0]]]
            names = [f"c{at}_{index}" for index in range(len(given))]
            constants |= {n: np.array(v) for n, v in zip(names, given, strict=True)}
            nodes.append(node("Reshape" if kind == "reshape" else "Slice", [name, *names], [f"v{at}"]))
        name = f"v{at}"
    nodes += [node("ReduceSum", [name], ["sum"], keepdims=0), node("Add", ["x", "sum"], ["y"])]
    model = onnx.load(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, opset=17))
    other = OnnxTranslator(model, "net", "x", lambda *_: None, {})
    other.program()
    np.testing.assert_array_equal(other.picks(name), wanted)
    assert other.picks("sum") is None


# --- the safety net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "values"), [("clamped", np.abs(symmetric(4))), ("scaled", symmetric(4))])
def test_changed_weights_tell_on_a_wrong_layer(
    how: str, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a computed weight taken for the network's own, running with other weights would show it."""
    followed = Translator.picks

    def wrong(self: Translator, name: str) -> np.ndarray | None:
        found = followed(self, name)
        shape = self._constants[name].shape
        return np.arange(int(np.prod(shape))).reshape(shape) if found is None else found

    monkeypatch.setattr(Translator, "picks", wrong)
    network = read(Read(how, values), (4,))
    names = [layer.spec.name for layer in network.outline.layers]
    if how == "clamped":
        assert names == ["last"]
        assert DIFFERS in left(network)
    else:  # a product with 1 is no other weight
        assert names == ["w", "last"]


def test_changed_weights_tell_on_a_turned_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = OnnxTranslator.picks

    def wrong(self: OnnxTranslator, name: str) -> np.ndarray | None:
        found = followed(self, name)
        return found.T if name == "W" and found is not None else found

    monkeypatch.setattr(OnnxTranslator, "picks", wrong)
    nodes = [
        node("MatMul", ["x", "W"], ["h"]),
        node("Softmax", ["h"], ["s"], axis=-1),
        node("MatMul", ["s", "U"], ["y"]),
    ]
    constants = {"W": symmetric(4), "U": symmetric(4)}
    network = read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, opset=17), None)
    assert [layer.spec.name for layer in network.outline.layers] == ["U"]
    assert DIFFERS in left(network)


def test_layers_that_see_no_finite_numbers_are_kept() -> None:
    """They cannot be tried; what the indices say stands."""

    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.log(torch.relu(self.inner(x)) * 0.0))

    network = read(Infinite(), (4,))
    assert [layer.spec.name for layer in network.outline.layers] == ["inner", "last"]


# --- tied weights -------------------------------------------------------------------------------------------------------------


class TiedLayers(nn.Module):
    """Two modules with one weight, in either order, as one parameter or as two of the same memory; one block under three names."""

    def __init__(self, swapped: bool, as_parameter: bool) -> None:
        super().__init__()
        self.a, self.b, block = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight if as_parameter else nn.Parameter(self.a.weight.data)
        self.b.bias = self.a.bias if as_parameter else nn.Parameter(self.a.bias.data)
        self.blocks, self.last, self.swapped = nn.ModuleList([block] * 3), nn.Linear(4, 2), swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (self.b, self.a) if self.swapped else (self.a, self.b)
        x = torch.softmax(second(torch.tanh(first(x))), 1)
        for block in self.blocks:
            x = x + torch.sin(block(x))
        return self.last(x)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("as_parameter", [False, True])
@pytest.mark.parametrize("every_name", [False, True])
def test_tied_weights_change_under_every_name(swapped: bool, as_parameter: bool, every_name: bool) -> None:
    torch.manual_seed(3)
    module = TiedLayers(swapped, as_parameter)
    network = read(module, (4,))
    layers = network.outline.layers
    assert [(layer.spec.name, len(layer.uses)) for layer in layers] == [
        ("a", 2),
        ("blocks.0", 3),
        ("last", 1),
    ]
    changed = changed_rows(network)
    if not every_name:  # else the other names are given as they were
        own = network.weights()
        changed = {name: value for name, value in changed.items() if not np.array_equal(value, own[name])}
    new = network.with_weights(changed)
    state = new.state()
    assert set(state) == set(module.state_dict())
    for one, other in (("a", "b"), ("blocks.0", "blocks.1"), ("blocks.0", "blocks.2")):
        for part in ("weight", "bias"):
            np.testing.assert_array_equal(state[f"{one}.{part}"], state[f"{other}.{part}"])
    again = TiedLayers(swapped, as_parameter)
    again.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    inputs = samples(network)
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.from_numpy(inputs)), new.run(inputs).y, atol=1e-6)
    assert np.abs(new.run(inputs).y - network.run(inputs).y).max() > 1e-4
    with pytest.raises(InputError, match=r"no tensor named other\.weight"):
        network.with_weights({"other.weight": np.zeros((4, 4))})


# --- Constant nodes of ONNX ---------------------------------------------------------------------------------------------------


def constants_of(how: str, values: np.ndarray, name: str) -> Any:
    if how == "value_floats":
        return node("Constant", [], [name], value_floats=[float(v) for v in values])
    tensor = helper.make_tensor(name, TensorProto.FLOAT, values.shape, values)
    return node("Constant", [], [name], value=tensor)


def test_a_sparse_constant_is_replaced(tmp_path: Path) -> None:
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [5.0])
    at = helper.make_tensor("at", TensorProto.INT64, [1], [2])
    sparse = helper.make_sparse_tensor(values, at, [3])
    nodes = [node("Constant", [], ["b"], sparse_value=sparse), node("Add", ["x", "b"], ["y"])]
    model = onnx.load(zoo.hand_made(tmp_path / "n.onnx", nodes, {}, sample=(3,), opset=17))
    changed = changed_model(model, {"b": np.array([1.0, 0.0, -2.0])}, "net")
    session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.zeros((2, 3), np.float32)})[0]
    np.testing.assert_array_equal(found, [[1.0, 0.0, -2.0]] * 2)


@pytest.mark.parametrize("how", ["value", "value_floats"])
def test_constants_of_every_kind_are_replaced(how: str, tmp_path: Path) -> None:
    values = np.array([0.5, 0.0, -2.0], dtype=np.float32)
    nodes = [
        constants_of(how, values, "b"),
        node("MatMul", ["x", "W"], ["h"]),
        node("Add", ["h", "b"], ["z"]),
        node("Softmax", ["z"], ["s"], axis=-1),
        node("MatMul", ["s", "U"], ["y"]),
    ]
    constants = {"W": symmetric(4)[:, :3].copy(), "U": symmetric(3)}
    network = read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, opset=17), None)
    assert [layer.spec.bias for layer in network.outline.layers] == ["b", None]
    check_layers(network)
    check_round_trip(network)
    new = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    model = network.changed_model({"b": new})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = samples(network)
    z = inputs @ constants["W"] + new
    s = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(session.run(None, {"x": inputs})[0], s @ constants["U"], atol=1e-5)
    np.testing.assert_array_equal(network.with_weights({"b": new}).weights()["b"], new)
    with pytest.raises(InputError, match="no tensors named nothing"):
        network.changed_model({"nothing": new})


# --- sizes that a damaged program asks for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attributes", "layout"),
    [
        ("tile", {"repeats": (1, 1, 2**40)}, None),
        ("tile", {"repeats": (1, 2**20, 2**20)}, None),
        ("pad", {"pads": ((0, 0), (0, 2**41), (0, 0))}, None),
        ("pad", {"pads": ((0, 0), (2**30, 0), (0, 2**30))}, None),
        ("take", {"axis": 1}, None),
        ("expand", {}, Layout((2**20, 2**20))),
        ("nearest", {}, Layout((2**21, 2**20))),
        ("concatenate", {"axis": 1, "stack": False}, Layout((2**40, 1))),
    ],
)
def test_results_without_bound_are_refused(
    kind: str, attributes: dict[str, Any], layout: Layout | None
) -> None:
    """Whatever a stored program says, no index of more values than are taken is made."""
    inputs = ("x", "many") if kind == "take" else ("x",)
    op = Op(kind, kind, "huge", inputs, "y", attributes)
    constants = {"many": np.zeros(2**15, dtype=np.int64)}
    shape = (1, 2**13) if kind == "take" else (2, 1)
    program = Program([op], constants, "x", "y")
    layouts = {"x": Layout(shape), "y": layout}
    with pytest.raises(UnsupportedOperator, match=rf"node huge.*more than {2**27} values a sample"):
        Interpreter(program, layouts, shape).run()
