"""Linear layers of any network: their rows give what the network computes, at every position, whatever lies between them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import networks_zoo as zoo
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from simtool.errors import InputError, UnsupportedOperator
from simtool.networks import Network, NetworkSpec, load_network
from simtool.networks.layers import Layer
from simtool.networks.onnx_reader import OnnxNetwork, read_onnx
from simtool.networks.torch_reader import read_module
from simtool.stages.convert import implicit_form

node = helper.make_node
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return read_module(module.eval(), shape, {"network": "net"})


def exported(module: nn.Module, shape: tuple[int, ...], path: Path, modern: bool = False) -> OnnxNetwork:
    """The same module by way of an ONNX file."""
    open_batch: dict[str, Any] = {"dynamic_axes": {"x": {0: "b"}, "y": {0: "b"}}}
    if modern:
        open_batch = {"dynamic_shapes": ({0: torch.export.Dim("b")},), "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, *shape),)
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            dynamo=modern,
            input_names=["x"],
            output_names=["y"],
            **open_batch,
        )
    return read_onnx(path, None)


def samples(network: Network, k: int = 4) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(k, *network.input_shape)).astype(np.float32)


def columns(network: Network, layer: Layer, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Design and targets at every position."""
    names = {name for use in layer.uses for name in (use.source, use.result)}
    tensors = network.tensors(inputs, names)
    every = np.arange(layer.positions())
    return layer.columns(tensors, np.tile(every, (len(inputs), 1)))


def check_layers(network: Network) -> None:
    """Every row gives its targets; a sample's columns are the same whatever batch it is in."""
    inputs = samples(network)
    assert network.outline.layers
    for layer in network.outline.layers:
        design, targets = columns(network, layer, inputs)
        scale = max(1.0, float(np.abs(targets).max()))
        assert np.abs(layer.matrix @ design - targets).max() <= 2e-6 * scale * np.sqrt(layer.spec.features)
        alone, results = columns(network, layer, inputs[2:3])
        own = slice(2 * layer.positions(), 3 * layer.positions())
        np.testing.assert_allclose(design[:, own], alone, atol=1e-5 * max(1.0, float(np.abs(alone).max())))
        np.testing.assert_allclose(targets[:, own], results, atol=1e-5 * scale)


def changed_rows(network: Network, seed: int = 3) -> dict[str, np.ndarray]:
    """Every layer's rows changed at random, as the network's own tensors."""
    rng = np.random.default_rng(seed)
    tensors = network.weights()
    for layer in network.outline.layers:
        moved = layer.matrix * (1.0 + 0.3 * rng.standard_normal(layer.matrix.shape))
        spec = layer.spec
        bias = None if spec.bias is None else tensors[spec.bias]
        tensors |= spec.tensors(moved, tensors[spec.weight], bias)
    return tensors


def check_round_trip(network: Network) -> np.ndarray:
    """Own rows change nothing, changed rows are found again; gives the outputs with changed rows."""
    inputs = samples(network)
    before = network.run(inputs).y
    for layer in network.outline.layers:
        own = layer.spec.tensors(layer.matrix, layer.weight, layer.bias)
        np.testing.assert_allclose(network.with_weights(own).run(inputs).y, before, atol=1e-5)
    moved = network.with_weights(changed_rows(network))
    for old, new in zip(network.outline.layers, moved.outline.layers, strict=True):
        assert old.spec == new.spec
        design, targets = columns(moved, new, inputs)
        scale = max(1.0, float(np.abs(targets).max()))
        assert np.abs(new.matrix @ design - targets).max() <= 2e-6 * scale * np.sqrt(new.spec.features)
        assert not np.allclose(new.matrix, old.matrix)
    after = moved.run(inputs).y
    assert np.abs(after - before).max() > 1e-4
    return after


def check_both(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> tuple[Network, OnnxNetwork]:
    """Both readers find the same layers, and agree when the rows change."""
    first, second = read(module, shape), exported(module, shape, tmp_path / "n.onnx")
    outputs = []
    for network in (first, second):
        check_layers(network)
        outputs.append(check_round_trip(network))
    sizes = [
        [(x.spec.kind, x.spec.rows, x.spec.fan_in, x.positions()) for x in n.outline.layers]
        for n in (first, second)
    ]
    assert sizes[0] == sizes[1]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4 * max(1.0, float(np.abs(outputs[0]).max())))
    return first, second


# --- dense layers and convolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_dense_layers_on_samples_of_several_axes(lead: tuple[int, ...], tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    first, _ = check_both(module, (*lead, 5), tmp_path)
    assert [layer.positions() for layer in first.outline.layers] == [int(np.prod(lead))] * 2
    assert [layer.spec.has_bias for layer in first.outline.layers] == [True, False]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ins, outs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 3)] * axes)
    kernel, stride = draw(each), draw(st.tuples(*[st.integers(1, 2)] * axes))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * axes))
    transposed = draw(st.booleans())
    padding = tuple(draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True))
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    kind = f"Conv{'Transpose' if transposed else ''}{axes}d"
    if transposed:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = getattr(nn, kind)(ins, outs, kernel, **options)
    size = tuple(draw(st.integers(5, 6 if axes < 3 else 5)) for _ in range(axes))
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Softmax(dim=1)), (ins, *size)


@few
@given(case=convolutions())
def test_convolutions_of_any_geometry(case: tuple[nn.Module, tuple[int, ...]], tmp_path: Path) -> None:
    check_both(*case, tmp_path)


def test_depthwise_and_pointwise(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.Linear(50, 3)
    )
    first, _ = check_both(module, (4, 5, 5), tmp_path)
    assert [(x.spec.groups, x.spec.fan_in) for x in first.outline.layers] == [(4, 9), (1, 8), (1, 50)]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Gemm", ["x", "V", "b"], ["y"], transB=1, alpha=0.5, beta=-2.0)],
        [node("Gemm", ["x", "W", "b"], ["y"], alpha=3.0)],
        [node("MatMul", ["x", "W"], ["h"]), node("Add", ["b", "h"], ["y"])],
    ],
)
def test_products_of_onnx(nodes: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    constants = {"W": w, "V": np.ascontiguousarray(w.T), "b": b}
    used = {name for n in nodes for name in n.input}
    constants = {name: value for name, value in constants.items() if name in used}
    network = read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, opset=17), None)
    check_layers(network)
    check_round_trip(network)
    assert network.outline.layers[0].spec.has_bias


# --- what is not taken, and why -----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A matrix and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cos(torch.relu(self.encode(x)) @ self.encode.weight))


class Words(nn.Module):
    """Ids to the scores of the next id, with or without the embedding's own weights in the last layer."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=0)
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        if tied:
            self.last.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        hidden = (ids == 0)[:, None, :]
        scores = (x @ x.transpose(1, 2)).masked_fill(hidden, -1e9)
        mixed = torch.softmax(scores, -1) @ nn.functional.gelu(self.inner(x))
        return self.last(mixed).mean(1)


def left(network: Network) -> str:
    return "; ".join(f"{op.title}: {why}" for op, why in network.outline.found.left)


def test_shared_weights_are_left_with_the_reason() -> None:
    network = read(Tied(), (4,))
    assert [layer.spec.name for layer in network.outline.layers] == ["last"]
    assert left(network).count("its encode.weight belongs to another layer too") == 2
    network = read(Words(tied=True), (5,))
    assert [layer.spec.name for layer in network.outline.layers] == ["inner"]
    assert "is read by embedding" in left(network)


def test_a_layer_that_is_used_twice_is_one_layer(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(torch.relu(self.inner(x)))

    first, _ = check_both(Twice(), (4,), tmp_path)
    (layer,) = first.outline.layers
    assert (layer.positions(), len(layer.uses)) == (2, 2)
    assert layer.spec.reads_input
    assert layer.spec.is_output


def test_nothing_to_take_is_refused_with_every_reason(tmp_path: Path) -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x) @ torch.exp(self.scale)

    with pytest.raises(
        UnsupportedOperator, match=r"sin.*No linear layer .* computed from the network's weights"
    ):
        read(Nothing(), (4,))
    branch = [
        helper.make_graph(
            [node("MatMul", ["x", "W"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("t", "e")
    ]
    nodes = [
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["positive"]),
        node("If", ["positive"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    constants = {"W": np.ones((4, 3), np.float32), "zero": np.float32(0)}
    with pytest.raises(UnsupportedOperator, match=r"If .*it runs 2 nodes of its own, 2 of them with weights"):
        read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants), None)


def test_networks_that_mix_their_samples_are_refused() -> None:
    mixing = nn.TransformerEncoderLayer(
        8, 2, 16
    )  # it takes the steps first: the batch is what it attends over
    with pytest.raises(UnsupportedOperator, match="depends on the other samples"):
        read(mixing, (5, 8))


def test_a_bias_that_an_exporter_shares_is_added_apart(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv1d(3, 4, 1),
        nn.GELU(),
        nn.Conv1d(4, 4, 2),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
        nn.SELU(),
        nn.Linear(4, 4),
    )
    for layer in (module[0], module[2], module[5], module[7]):
        nn.init.zeros_(layer.bias)  # equal tensors: the exporter writes one
    network = exported(module, (3, 5), tmp_path / "n.onnx")
    assert [(x.spec.rows, x.spec.has_bias) for x in network.outline.layers] == [(4, False)] * 4
    inputs = samples(network)
    with torch.no_grad():
        np.testing.assert_allclose(network.run(inputs).y, module(torch.from_numpy(inputs)), atol=1e-5)
    check_layers(network)
    check_round_trip(network)


# --- whole numbers --------------------------------------------------------------------------------------------------------------


def test_networks_of_whole_numbers(tmp_path: Path) -> None:
    module = Words().eval()
    network = read(module, (5,))
    assert [layer.spec.name for layer in network.outline.layers] == ["inner", "last"]
    ids = np.random.default_rng(0).integers(0, 11, size=(6, 5))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).numpy()
    for given_ids in (ids, ids.astype(np.float32), ids.astype(np.int32)):
        np.testing.assert_allclose(network.run(given_ids).y, expected, atol=1e-6)
    for layer in network.outline.layers:
        design, targets = columns(network, layer, ids.astype(np.float32))
        np.testing.assert_allclose(layer.matrix @ design, targets, atol=1e-5)
    with pytest.raises(InputError, match=r"whole numbers .* sample 1 of the batch holds 2\.5"):
        network.run(np.array([[1, 2, 3, 4, 5], [1, 2.5, 3, 4, 5]]))
    with pytest.raises(InputError, match=r"from 0 to 10 .* holds 11"):
        network.run(np.full((1, 5), 11))
    with pytest.raises(InputError, match=r"from 0 to 10 .* holds -1"):
        network.run(np.full((1, 5), -1))
    path = tmp_path / "n.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.ones(2, 5, dtype=torch.int64),), str(path), dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "b"}},
        )  # fmt: skip
    again = read_onnx(path, None)
    assert len(again.outline.layers) == 2
    assert "looks rows of its table up" in left(network)
    assert "looks rows of its table up" in left(again)
    np.testing.assert_allclose(again.run(ids.astype(np.float32)).y, expected, atol=1e-5)
    with pytest.raises(InputError, match="from 0 to 10"):
        again.run(np.full((1, 5), 11))


# --- transformers ---------------------------------------------------------------------------------------------------------------


class Turned(nn.Module):
    """``inner`` with the steps first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class Crossed(nn.Module):
    """Attention with other queries, keys and values: parts of one packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x.flip(1), 2.0 * x)[0]


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True), 4),
        (
            Turned(
                nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
            ),
            8,
        ),
        (Crossed(), 4),
    ],
)
def test_transformers(module: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    network = read(module, (5, 8))
    assert not network.outline.found.left
    assert len(network.outline.layers) == count
    assert {layer.positions() for layer in network.outline.layers} == {5}
    check_layers(network)
    check_round_trip(network)
    with torch.no_grad():
        expected = module(torch.from_numpy(samples(network)))
    np.testing.assert_allclose(network.run(samples(network)).y, expected.flatten(1), atol=1e-5)
    with pytest.raises(UnsupportedOperator):
        _ = network.graph


def test_transformer_of_onnx(tmp_path: Path) -> None:
    module = Turned(nn.TransformerEncoderLayer(8, 2, 16)).eval()
    network = exported(module, (5, 8), tmp_path / "n.onnx", modern=True)
    assert [layer.spec.rows for layer in network.outline.layers] == [24, 8, 16, 8]
    check_layers(network)
    check_round_trip(network)


# --- recurrent networks -----------------------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """A recurrent network on (k, 5, 3), with the steps first or second, and a linear layer."""

    def __init__(self, kind: str, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.steps = getattr(nn, kind)(3, 4, batch_first=batch_first, **options)
        self.last = nn.Linear(8 if options.get("bidirectional") else 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, last = self.steps(x if self.batch_first else x.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        return self.last(states).mean(1 if self.batch_first else 0) + last.sum(0)[:, :2]


RECURRENT = [
    ("RNN", True, {}),
    ("RNN", False, {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
    ("LSTM", True, {"bias": False}),
    ("LSTM", False, {"bidirectional": True}),
    ("GRU", True, {}),
    ("GRU", False, {"num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "batch_first", "options"), RECURRENT)
def test_recurrent_networks(kind: str, batch_first: bool, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Steps(kind, batch_first, **options)
    first = read(module, (5, 3))
    second = exported(module, (5, 3), tmp_path / "n.onnx")
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    inputs = samples(first)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    for network in (first, second):
        assert not network.outline.found.left
        assert len(network.outline.layers) == 2 * layers + 1
        assert {layer.positions() for layer in network.outline.layers} == {5}
        np.testing.assert_allclose(network.run(inputs).y, expected, atol=1e-5)
        check_layers(network)
        check_round_trip(network)
        if kind == "RNN":
            np.testing.assert_allclose(network.graph.evaluate(inputs.reshape(4, -1))[2], expected, atol=1e-5)
            model = implicit_form(network.graph)
            np.testing.assert_allclose(model.predict(inputs), expected, atol=1e-5)
            assert model.well_posedness().by == "acyclic"
        else:
            with pytest.raises(UnsupportedOperator, match="both depend on the input"):
                _ = network.graph


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_node_is_changed_in_the_file_itself(kind: str, tmp_path: Path) -> None:
    """The written-out program is only for reading: what is exported keeps the node, with new numbers in its W, R and B."""
    network = exported(Steps(kind, False, bidirectional=True), (5, 3), tmp_path / "n.onnx")
    changed = changed_rows(network)
    model = network.changed_model(changed)
    assert [n.op_type for n in model.graph.node].count(kind) == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = samples(network)
    (found,) = session.run(None, {"x": inputs})
    np.testing.assert_allclose(found, network.with_weights(changed).run(inputs).y, atol=1e-5)


RNG = np.random.default_rng(5)


@st.composite
def recurrent_nodes(draw: st.DrawFn) -> tuple[Any, dict[str, np.ndarray], tuple[int, int]]:
    kind = draw(st.sampled_from(["RNN", "GRU", "LSTM"]))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    gates, d = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], 2 if direction == "bidirectional" else 1
    steps, ins, hidden = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    constants = {
        "W": RNG.normal(size=(d, gates * hidden, ins)).astype(np.float32),
        "R": RNG.normal(size=(d, gates * hidden, hidden)).astype(np.float32),
    }
    inputs = ["t", "W", "R"]
    if draw(st.booleans()):
        constants["B"] = RNG.normal(size=(d, 2 * gates * hidden)).astype(np.float32)
        inputs.append("B")
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if kind == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if kind == "RNN" and draw(st.booleans()):
        attributes["activations"] = ["Relu"] * d
    return node(kind, inputs, ["all"], **attributes), constants, (steps, ins)


@few
@given(case=recurrent_nodes())
def test_recurrent_nodes_of_onnx(
    case: tuple[Any, dict[str, np.ndarray], tuple[int, int]], tmp_path: Path
) -> None:
    recurrent, constants, sample = case
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        recurrent,
        node("Transpose", ["all"], ["y"], perm=[2, 0, 1, 3]),
    ]
    network = read_onnx(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, sample=sample, opset=14), None)
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"), providers=["CPUExecutionProvider"])
    inputs = samples(network)
    (expected,) = session.run(None, {"x": inputs})
    np.testing.assert_allclose(network.run(inputs).y, expected.reshape(4, -1), atol=1e-5)
    check_layers(network)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"clip": 1.0}, "clips its gates"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations are Sigmoid, Relu, Tanh"),
    ],
)
def test_recurrent_nodes_that_are_left(attributes: dict[str, Any], why: str, tmp_path: Path) -> None:
    constants = {
        "W": RNG.normal(size=(1, 8, 3)).astype(np.float32),
        "R": RNG.normal(size=(1, 8, 2)).astype(np.float32),
        "V": RNG.normal(size=(2, 2)).astype(np.float32),
    }
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "W", "R"], ["", "h", ""], hidden_size=2, name="gates", **attributes),
        node("Squeeze", ["h", "first"], ["s"]),
        node("MatMul", ["s", "V"], ["y"]),
    ]
    path = zoo.hand_made(
        tmp_path / "n.onnx", nodes, {**constants, "first": np.array([0])}, sample=(5, 3), opset=14
    )
    network = read_onnx(path, None)
    assert [layer.spec.name for layer in network.outline.layers] == ["V"]
    assert "node gates" in left(network)
    assert why in left(network)


def test_inspect_lists_layers_and_what_is_left(tmp_path: Path) -> None:
    from simtool.stages.inspect import inspect

    file = tmp_path / "words.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_networks_layers import Words\n"
    )
    found = inspect(f"{file}:Words", network=NetworkSpec(f"{file}:Words", input_shape=(5,)))
    assert (found["graph"], found["states"]) == (False, None)
    assert "embedding" in found["graph_reason"]
    assert [(x["name"], x["rows"], x["fan_in"], x["positions"], x["uses"]) for x in found["layers"]] == [
        ("inner", 6, 6, 5, 1),
        ("last", 11, 6, 5, 1),
    ]
    roles = {(use["operator"].split(".")[1], use["role"]) for use in found["operators"]}
    assert roles >= {("linear", "linear"), ("embedding", "left"), ("softmax", "glue")}
    assert load_network(NetworkSpec(f"{file}:Words", input_shape=(5,))).output_size == 11


class Loop(nn.Module):
    """A cell that the network itself calls for each of 5 steps; einsum reads its inputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.weight = getattr(nn, kind)(4, 4), nn.Parameter(torch.randn(3, 4))
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bti,io->bto", x, self.weight)
        state = x.new_zeros(len(x), 4)
        both = (state, state)
        for step in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                both = self.cell(x[:, step], both)
                state = both[0]
            else:
                state = self.cell(x[:, step], state)
        return self.last(state)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_and_einsum(kind: str) -> None:
    torch.manual_seed(4)
    module = Loop(kind).eval()
    network = read(module, (5, 3))
    assert not network.outline.found.left
    found = {layer.spec.name: (len(layer.uses), layer.positions()) for layer in network.outline.layers}
    assert found == {"weight": (1, 5), "cell.weight_ih": (5, 5), "cell.weight_hh": (5, 5), "last": (1, 1)}
    with torch.no_grad():
        expected = module(torch.from_numpy(samples(network)))
    np.testing.assert_allclose(network.run(samples(network)).y, expected, atol=1e-6)
    check_layers(network)
    check_round_trip(network)
    assert (network.outline.whole is not None) == (kind == "RNNCell")
