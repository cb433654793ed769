"""The ONNX reader: files of both exporters and hand-made ones give the graph that PyTorch gives."""

from __future__ import annotations

import copy
from pathlib import Path

import networks_zoo as zoo
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from simtool.errors import FormatError, InputError, UnsupportedOperator
from simtool.networks import NetworkSpec, load_network
from simtool.networks.torch_reader import read_module

node = helper.make_node
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype(np.float32)
V = RNG.normal(size=(3, 2)).astype(np.float32)
b = RNG.normal(size=3).astype(np.float32)


def load(path: Path, shape: tuple[int, ...] | None = None):
    return load_network(NetworkSpec(str(path), input_shape=shape))


def check_self_consistent(network, k: int = 5) -> None:
    """What ONNX Runtime records is what the graph's matrices and activations give."""
    inputs = RNG.normal(size=(k, *network.input_shape)).astype(np.float32)
    recorded = network.run(inputs)
    z, x, y = network.graph.evaluate(inputs.reshape(k, -1).astype(np.float64))
    for name in z:
        np.testing.assert_allclose(recorded.z[name], z[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(recorded.x[name], x[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(recorded.y, y, rtol=1e-5, atol=1e-5)


def check_equal_states(module: torch.nn.Module, network, shape: tuple[int, ...]) -> None:
    reference = read_module(copy.deepcopy(module), shape, {"network": "net"})
    assert [b.name for b in network.graph.blocks] == [b.name for b in reference.graph.blocks]
    assert [b.activation.name for b in network.graph.blocks] == [
        b.activation.name for b in reference.graph.blocks
    ]
    assert [b.parents for b in network.graph.blocks] == [b.parents for b in reference.graph.blocks]
    assert network.graph.output_map == reference.graph.output_map
    inputs = RNG.normal(size=(9, *shape)).astype(np.float32)
    found, expected = network.run(inputs), reference.run(inputs)
    for name, z in expected.z.items():
        bound = 1e-5 * max(1.0, float(np.abs(z).max()))
        assert np.abs(found.z[name] - z).max() <= bound
        assert np.abs(found.x[name] - expected.x[name]).max() <= bound
    assert np.abs(found.y - expected.y).max() <= 1e-5 * max(1.0, float(np.abs(expected.y).max()))


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
def test_exported_activations(tmp_path: Path, dynamo: bool) -> None:
    layers: list[torch.nn.Module] = []
    for index, name in enumerate(n for n in zoo.ACTIVATIONS if n != "identity"):
        layers += [torch.nn.Linear(4, 4, bias=bool(index % 2)), zoo.ACTIVATIONS[name]()]
    torch.manual_seed(1)
    module = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2), torch.nn.Softmax(-1)).eval()
    network = load(zoo.export(module, tmp_path / "n.onnx", (4,), dynamo))
    names = [block.activation.name for block in reversed(network.graph.blocks)]
    assert names[: len(zoo.ACTIVATIONS) - 2] == [
        n for n in zoo.ACTIVATIONS if n not in ("identity", "softplus")
    ]
    assert "softplus" in names[-1]
    if dynamo:  # the classic exporter writes softplus(beta z) / beta, whose beta becomes part of the rows
        check_equal_states(module, network, (4,))
    check_self_consistent(network)


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
def test_tricky_network_and_hand_written_gelu(tmp_path: Path, dynamo: bool) -> None:
    for name, module, shape in (
        ("t", zoo.tricky(), (2, 3)),
        ("g", zoo.by_hand("gelu_tanh-b"), (4,)),
        ("n", zoo.normalised(), (4,)),
    ):
        network = load(zoo.export(module.eval(), tmp_path / f"{name}.onnx", shape, dynamo))
        check_equal_states(module, network, shape)


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
def test_fixed_batch_is_padded(tmp_path: Path, dynamo: bool) -> None:
    module = zoo.mlp("4-5-2", "gelu").eval()
    network = load(zoo.export(module, tmp_path / "n.onnx", (4,), dynamo, fixed=True))
    inputs = RNG.normal(size=(6, 4)).astype(np.float32)  # one full batch of 4 and half of one
    with torch.no_grad():
        np.testing.assert_allclose(network.run(inputs).y, module(torch.from_numpy(inputs)), atol=1e-6)


def test_gemm_variants(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", ["x", "W", "b"], ["h"], alpha=0.5, beta=2.0),
        node("LeakyRelu", ["h"], ["a"], alpha=0.25),
        node("Gemm", ["a", "Vt"], ["y"], transB=1, name="last"),
    ]
    network = load(zoo.hand_made(tmp_path / "n.onnx", nodes, {"W": W, "b": b, "Vt": V.T.copy()}))
    check_self_consistent(network)
    np.testing.assert_allclose(network.graph.matrices().B.toarray(), np.c_[0.5 * W.T, 2 * b], rtol=1e-6)
    assert network.graph.baseline_nnz == W.size + b.size + V.size


def test_matmul_add_constant_node_and_double(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(b.astype(np.float64))
    nodes = [
        node("Constant", [], ["bias"], value=tensor),
        node("MatMul", ["x", "W"], ["xw"]),
        node("Add", ["bias", "xw"], ["h"]),
        node("Tanh", ["h"], ["a"]),
        node("Transpose", ["Vt"], ["V"], perm=[1, 0]),
        node("MatMul", ["a", "V"], ["y"]),
    ]
    constants = {"W": W.astype(np.float64), "Vt": V.T.astype(np.float64)}
    network = load(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, kind=TensorProto.DOUBLE))
    check_self_consistent(network)
    assert network.graph.baseline_nnz == W.size + b.size + V.size


def test_passed_operators_and_gelu_swish_ops(tmp_path: Path) -> None:
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("Identity", ["f"], ["i"]),
        node("Gemm", ["i", "W", "b"], ["h"]),
        node("Gelu", ["h"], ["a"], approximate="tanh"),
        node("Dropout", ["a"], ["d"]),
        node("Unsqueeze", ["d", "axes"], ["u"]),
        node("Squeeze", ["u", "axes"], ["s"]),
        node("Reshape", ["s", "shape"], ["r"]),
        node("MatMul", ["r", "V"], ["y"]),
    ]
    constants = {"W": W, "b": b, "V": V, "axes": np.array([1]), "shape": np.array([-1, 3])}
    network = load(zoo.hand_made(tmp_path / "n.onnx", nodes, constants, sample=(2, 2), opset=20))
    assert network.input_shape == (2, 2)
    check_self_consistent(network)
    passed = [use.operator for use in network.graph.passed_through]
    assert passed == ["Flatten", "Identity", "Dropout", "Unsqueeze", "Squeeze", "Reshape"]


def test_activation_of_the_input_and_of_an_activation(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Tanh", ["a"], ["t"]), node("MatMul", ["t", "W"], ["y"])]
    network = load(zoo.hand_made(tmp_path / "n.onnx", nodes, {"W": W}))
    check_self_consistent(network)
    assert [block.parents for block in network.graph.blocks] == [("relu_1",), ("input",)]


def test_residual_of_affine_forms_and_shared_linear(tmp_path: Path) -> None:
    square = RNG.normal(size=(4, 4)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "S"], ["h"]),  # read by two operators: becomes an identity block
        node("Relu", ["h"], ["a"]),
        node("Sub", ["a", "h"], ["r"]),
        node("Neg", ["r"], ["m"]),
        node("Div", ["m", "two"], ["d"]),
        node("MatMul", ["d", "W"], ["y"]),
    ]
    network = load(zoo.hand_made(tmp_path / "n.onnx", nodes, {"S": square, "W": W, "two": np.float32(2)}))
    check_self_consistent(network)
    assert [block.activation.name for block in network.graph.blocks] == ["identity", "relu", "identity"]


def test_all_unsupported_nodes_are_listed(tmp_path: Path) -> None:
    nodes = [
        node("Cos", ["x"], ["c"], name="first"),
        node("Sin", ["c"], ["h"], name="second"),
        node("MatMul", ["h", "W"], ["y"]),
    ]
    with pytest.raises(UnsupportedOperator, match=r"Cos \(node first\); Sin \(node second\)"):
        _ = load(zoo.hand_made(tmp_path / "n.onnx", nodes, {"W": W})).graph
    nodes[2] = node("Identity", ["h"], ["y"])
    with pytest.raises(UnsupportedOperator, match=r"Cos \(node first\); Sin \(node second\)"):
        load(zoo.hand_made(tmp_path / "n.onnx", nodes, {}))


K = RNG.normal(size=(2, 2, 2, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Conv", ["x", "K"], ["h"], auto_pad="SAME_LOWER", strides=[1, 2])],
        [node("Conv", ["x", "K"], ["h"], auto_pad="SAME_UPPER")],
        [node("Conv", ["x", "K"], ["h"], auto_pad="VALID", dilations=[2, 1])],
        [node("Conv", ["x", "K"], ["h"], pads=[0, 1, 1, 2])],
        [node("ConvTranspose", ["x", "K"], ["h"], pads=[0, 1, 1, 0], strides=[2, 1], output_padding=[1, 0])],
        [node("MaxPool", ["x"], ["h"], kernel_shape=[2, 3], auto_pad="SAME_UPPER", strides=[2, 2])],
        [node("AveragePool", ["x"], ["h"], kernel_shape=[2, 2], auto_pad="SAME_LOWER")],
        [node("AveragePool", ["x"], ["h"], kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1)],
        [node("GlobalAveragePool", ["x"], ["h"])],
        [node("GlobalMaxPool", ["x"], ["h"])],
        [node("BatchNormalization", ["x", "two", "two", "two", "two"], ["h"])],
        [node("Transpose", ["x"], ["h"], perm=[0, 3, 1, 2])],
        [node("Slice", ["x", "last", "far", "axis", "back"], ["h"])],
        [node("Slice", ["x", "one", "most", "axis"], ["h"])],
        [node("Split", ["x"], ["s", "t"], axis=1), node("Concat", ["t", "x", "s"], ["h"], axis=-3)],
        [node("Split", ["x", "parts"], ["unused", "h"], axis=2)],
        [node("Pad", ["x", "pads"], ["h"])],
        [node("Gather", ["x", "picked"], ["h"], axis=3)],
        [node("Gather", ["x", "scalar"], ["h"], axis=2)],
        [node("Expand", ["x", "ones"], ["e"]), node("Tile", ["e", "repeats"], ["h"])],
        [node("ReduceMean", ["x"], ["h"], axes=[2, -1], keepdims=0)],
        [node("ReduceSum", ["x", "axis"], ["h"])],
        [node("ReduceMax", ["x"], ["h"], axes=[1, 3])],
        [
            node("Resize", ["x", "", "scales"], ["h"], mode="nearest", nearest_mode="floor",
                 coordinate_transformation_mode="asymmetric"),
        ],
        [node("Clip", ["x", "", "half"], ["h"])],
        [node("Neg", ["x"], ["m"]), node("Max", ["m", "x"], ["a"]), node("Min", ["a", "half"], ["h"])],
        [node("HardSigmoid", ["x"], ["h"], alpha=0.3, beta=0.4)],
        [node("MatMul", ["x", "last_axis"], ["h"])],
    ],
    ids=lambda nodes: "-".join(n.op_type for n in nodes),
)  # fmt: skip
def test_layers_and_moves(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    constants = {
        "K": K,
        "two": np.array([0.5, 2.0], np.float32),
        "half": np.float32(0.5),
        "last": np.array([-1]),
        "far": np.array([-(2**31)]),
        "axis": np.array([3]),
        "back": np.array([-2]),
        "one": np.array([1]),
        "most": np.array([2**31 - 1]),
        "parts": np.array([1, 3]),
        "pads": np.array([0, 0, 1, 0, 0, 1, 0, 2]),
        "picked": np.array([2, -1, 0, 0]),
        "scalar": np.array(1),
        "ones": np.array([1, 1, 1, 1]),
        "repeats": np.array([1, 2, 1, 3]),
        "scales": np.array([1, 1, 2, 3], np.float32),
        "last_axis": RNG.normal(size=(5, 3)).astype(np.float32),
    }
    used = {name for n in nodes for name in n.input}
    network = load(
        zoo.hand_made(
            tmp_path / "n.onnx",
            [*nodes, node("Tanh", ["h"], ["a!"]), node("Flatten", ["a!"], ["y"])],
            {name: value for name, value in constants.items() if name in used},
            sample=(2, 4, 5),
        )
    )
    check_self_consistent(network)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [node("MatMul", ["x", "W"], ["h"]), node("Mul", ["h", "h"], ["y"], name="square")],
            "both depend on the input",
        ),
        ([node("Softmax", ["x"], ["s"]), node("MatMul", ["s", "W"], ["y"])], "last operator"),
        ([node("Gemm", ["x", "W"], ["y"], transA=1, name="g")], "transA"),
        ([node("MatMul", ["W", "x"], ["y"])], "constant where"),
        (
            [node("Reshape", ["x", "moved"], ["r"]), node("MatMul", ["r", "W"], ["y"])],
            "does not keep the samples apart",
        ),
        (
            [node("Clip", ["x", "six", "zero"], ["c"]), node("MatMul", ["c", "W"], ["y"])],
            r"clips to \[6\.0, 0\.0\]",
        ),
        ([node("Dropout", ["x", "half", "yes"], ["d"]), node("MatMul", ["d", "W"], ["y"])], "training mode"),
        (
            [
                node("Slice", ["x", "one", "two", "none"], ["s"], name="cut"),
                node("MatMul", ["s", "W"], ["y"]),
            ],
            "cut.*across the samples",
        ),
        ([node("Erf", ["x"], ["e"]), node("MatMul", ["e", "W"], ["y"])], "Erf"),
        ([node("ReduceSum", ["x", "none"], ["y"], name="all")], "all.*across the samples"),
        ([node("Transpose", ["x"], ["y"], perm=[1, 0], name="turn")], "turn.*batch"),
        ([node("Pad", ["x", "around", "half"], ["y"], name="frame")], "frame.*zeros"),
        ([node("Gather", ["x", "one"], ["y"], axis=0, name="pick")], "pick.*across the samples"),
        ([node("Concat", ["x", "x"], ["y"], axis=0, name="join")], "join.*batch"),
        ([node("Max", ["x", "V"], ["y"], name="most")], "most.*must be a number"),
    ],
)
def test_meanings_that_are_refused(tmp_path: Path, nodes: list[onnx.NodeProto], message: str) -> None:
    constants = {
        "W": W,
        "moved": np.array([1, -1, 4]),
        "U": W[:2],
        "zero": np.float32(0),
        "six": np.float32(6),
        "half": np.float32(0.5),
        "yes": np.array(True),
        "none": np.array([0]),
        "around": np.array([0, 1, 0, 1]),
        "V": np.arange(4, dtype=np.float32),
        "one": np.array([1]),
        "two": np.array([2]),
    }
    with pytest.raises(UnsupportedOperator, match=message):
        _ = load(zoo.hand_made(tmp_path / "n.onnx", nodes, constants)).graph


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(FormatError, match="not a valid ONNX file"):
        load(tmp_path / "junk.onnx")
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Relu", ["h"], ["y"])]
    with pytest.raises(UnsupportedOperator, match="opset 8"):
        load(zoo.hand_made(tmp_path / "old.onnx", nodes, {"W": W}, opset=8))
    two = [node("MatMul", ["x", "W"], ["y"]), node("Relu", ["y"], ["z"])]
    with pytest.raises(UnsupportedOperator, match="2 outputs"):
        load(zoo.hand_made(tmp_path / "two.onnx", two, {"W": W}, outputs=("y", "z")))
    integers = [node("Relu", ["x"], ["y"])]
    with pytest.raises(UnsupportedOperator, match="FLOAT16"):
        load(zoo.hand_made(tmp_path / "int.onnx", integers, {}, kind=TensorProto.FLOAT16))
    open_shape = zoo.hand_made(tmp_path / "open.onnx", nodes, {"W": W}, sample=("features",))
    with pytest.raises(InputError, match="open dimensions"):
        load(open_shape)
    check_self_consistent(load(open_shape, (4,)))
    with pytest.raises(InputError, match=r"cannot be run|failed"):
        load(open_shape, (5,))
    with pytest.raises(InputError, match="does not fit"):
        load(zoo.hand_made(tmp_path / "four.onnx", nodes, {"W": W}), (5,))


def test_content_decides_the_fingerprint(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Relu", ["h"], ["y"])]
    first = load(zoo.hand_made(tmp_path / "a.onnx", nodes, {"W": W}))
    again = load(zoo.hand_made(tmp_path / "b.onnx", nodes, {"W": W}))
    other = load(zoo.hand_made(tmp_path / "c.onnx", nodes, {"W": W + 1}))
    assert first.sha256 == again.sha256 != other.sha256
