"""Convolutional and residual networks: both readers, and the exact implicit form, against PyTorch and ONNX Runtime."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import networks_zoo as zoo
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from simtool.errors import InputError
from simtool.networks import Graph, NetworkSpec, formable, load_network
from simtool.networks.onnx_reader import read_onnx
from simtool.networks.torch_reader import read_module
from simtool.report import evaluate
from simtool.stages.convert import implicit_form
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal to ``tolerance``, relative to the largest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))


def check_records(graph: Graph, network, inputs: np.ndarray) -> None:
    """What is recorded, and what is computed from it, is what the graph's forms give: Z = A X + B U and X = phi(Z)."""
    z, x, _ = graph.evaluate(inputs.reshape(len(inputs), -1).astype(np.float64))
    recorded = network.run(inputs)
    for node in graph.nodes:
        close(recorded.z[node.name], z[node.name], 1e-5)
        close(recorded.x[node.name], x[node.name], 1e-5)
        close(node.activation(recorded.z[node.name]), recorded.x[node.name], 1e-6)


def check(module: nn.Module, *shape: int, path: Path | None = None, dynamo: bool = False) -> Graph:
    """The implicit form equals ``module`` in float64, its record in float32; the same by ONNX where a ``path`` is given."""
    module = module.eval()
    inputs = np.random.default_rng(0).normal(size=(5, *shape))
    narrow = inputs.astype(np.float32)
    with torch.no_grad():
        wide = copy.deepcopy(module).double()(torch.from_numpy(inputs)).numpy().reshape(5, -1)
        single = module(torch.from_numpy(narrow)).numpy().reshape(5, -1)
    network = read_module(copy.deepcopy(module), shape, {"network": "net"})
    close(implicit_form(network.graph).predict(inputs), wide, 1e-10)
    close(implicit_form(network.graph).predict(narrow), single, 1e-5)
    check_records(network.graph, network, narrow)
    assert sum(getattr(network.graph.matrices(), name).nnz for name in "ABCD") <= network.graph.entries
    if path is not None:
        other = read_onnx(zoo.export(copy.deepcopy(module), path, shape, dynamo), None)
        close(implicit_form(other.graph).predict(narrow), other.run(narrow).y, 1e-5)
        close(implicit_form(other.graph).predict(narrow), single, 1e-5)
        check_records(other.graph, other, narrow)
    return network.graph


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
# Tracing takes half a second: a failure is shown as it was found, its steps are few anyway.
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(zoo.STEPS), min_size=1, max_size=7), st.integers(0, 10**6))
def test_random_networks(tmp_path: Path, steps: list[str], seed: int) -> None:
    check(zoo.Random(tuple(steps), seed), 2, 6, 5, path=tmp_path / "n.onnx")


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
def test_residual_network(tmp_path: Path, dynamo: bool) -> None:
    graph = check(zoo.residual(), 3, 6, 5, path=tmp_path / "n.onnx", dynamo=dynamo)
    module = zoo.residual()
    assert graph.baseline_parameters == sum(p.numel() for p in module.parameters())
    # The skips are terms of the sums, and only the average before the last layer is a block of its own.
    assert [node.name for node in graph.nodes] == [
        "relu_1",
        "relu_2",
        "relu_3",
        "relu_4",
        "relu_5",
        "identity_6",
    ]
    assert graph.nodes[2].form.parents == ("relu_2", "relu_1", "bias")
    assert implicit_form(graph).well_posedness().by == "acyclic"


class Moves(nn.Module):
    """What the exporters for ONNX cannot write, or write as something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, padding="same", dilation=2)
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5)
        self.last = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        x = torch.stack([x[:, 0], x.select(1, 2), x.narrow(1, 1, 1).squeeze(1)], 1).repeat(1, 2, 1, 1)
        x = x[:, [3, 0, 1, 2]] + x.index_select(1, torch.tensor([1, 1, 0, 5]))
        x = torch.minimum(x, x.unbind(1)[1].unsqueeze(1).expand(-1, 4, -1, -1))
        x = nn.functional.hardsigmoid(x) + nn.functional.hardtanh(x, -0.5, 0.25) + nn.functional.relu6(x)
        first, second = torch.split(self.pool(x), [1, 3], dim=1)
        x = torch.cat([second, first], 1) + nn.functional.adaptive_max_pool2d(x, (4, 3))
        return self.last(nn.functional.adaptive_avg_pool2d(x, (2, 3)).sum(2).flatten(1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_moved_and_pooled_values() -> None:
    torch.manual_seed(2)
    graph = check(Moves(), 2, 6, 5)
    roles = {use.operator.split(".")[1]: use.role for use in graph.operators}
    assert {roles[name] for name in ("conv2d", "linear")} == {"linear"}
    assert {roles[name] for name in ("stack", "repeat", "avg_pool2d", "split_with_sizes", "cat", "sum")} == {
        "fixed"
    }
    assert {roles[name] for name in ("minimum", "hardtanh", "adaptive_max_pool2d")} == {"activation"}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 2)), (2, 8)),
        (nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.AvgPool3d(2), nn.Flatten()), (1, 3, 5, 3)),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(20, 2)), (5, 3)),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (5,)),
        (nn.Sequential(nn.ConvTranspose1d(2, 2, 3, 2, dilation=3, output_padding=1), nn.SiLU()), (2, 4)),
    ],
    ids=["1d", "3d", "positions", "flat", "transposed"],
)  # fmt: skip
def test_other_dimensions(tmp_path: Path, module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    check(module, *shape, path=tmp_path / "n.onnx")


def test_max_pooling_leaves_padding_out_and_shares_what_overlaps() -> None:
    """All values negative: a padding of zeros would win. 3 x 3 of 2 strides: 2 states a row and value, then 2 a column."""
    module = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 1))
    graph = check(module, 1, 5, 5)
    names = [node.name for node in graph.nodes if node.name.startswith("max_pool")]
    assert names == ["max_pool_1", "max_pool_2", "max_pool_3", "max_pool_4"]
    inputs = -1.0 - np.random.default_rng(0).random((3, 1, 5, 5))
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(inputs)).numpy()
    close(implicit_form(graph).predict(inputs), expected, 1e-6)
    # Where two values meet, one state; windows at the border have one value less.
    assert sum(node.size for node in graph.nodes if node.name.startswith("max_pool")) == 5 * (
        1 + 2 + 1
    ) + 3 * (1 + 2 + 1)


def test_batch_norm_is_part_of_the_convolution() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    graph = check(module, 1, 5, 5)
    assert [node.name for node in graph.nodes] == ["relu_1"]
    # The weight and the bias of the norm are parameters, what it has seen is not.
    assert graph.baseline_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"stride": 2, "padding": 3},
        {"dilation": 2, "padding": 2},
        {"padding": 1, "groups": 2},
    ],
)
def test_fingerprints_hold_the_geometry(change: dict[str, int]) -> None:
    def read(**options: int):
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 2, 3, **options)
        layer.weight.data = torch.ones_like(layer.weight)
        return read_module(nn.Sequential(layer, nn.ReLU()), (2, 5, 5), {"network": "net"}).sha256

    assert read(padding=1) == read(padding=1) != read(**change)


def test_grey_images_have_one_channel() -> None:
    spec = NetworkSpec(f"{Path(zoo.__file__)}:small_cnn")
    assert load_network(spec, (8, 8)).input_shape == (1, 8, 8)
    assert load_network(spec, (1, 8, 8)).input_shape == (1, 8, 8)
    with pytest.raises(InputError, match="--input-shape"):
        load_network(NetworkSpec(f"{Path(zoo.__file__)}:residual"), (8, 8))


def test_forms_too_large_are_refused_by_their_size() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten())
    graph = read_module(wide, (3, 256, 256), {"network": "net"}).graph
    assert graph.entries > 2**31
    with pytest.raises(
        InputError, match=rf"would have {graph.entries} non-zeros \(\d+ states.*at most 2147483647"
    ):
        implicit_form(graph)
    with pytest.raises(InputError, match=r"takes about 0\.0 GiB of memory, 0\.0 GiB are free"):
        _with_free_memory(1000)


def _with_free_memory(size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formable, "free_memory", lambda: size)
        implicit_form(read_module(zoo.small_cnn(), (1, 8, 8), {"network": "net"}).graph)


def test_from_images_to_a_sparse_model(tmp_path: Path) -> None:
    """extract, sparsify and evaluate of a small convolutional network, by its channels and with every position a row of its own."""
    network = NetworkSpec(f"{Path(zoo.__file__)}:small_cnn")  # grey images of 8 x 8: one channel
    found = extract(network, "digits", output=tmp_path / "s.h5", samples=200)
    assert [block["name"] for block in found["blocks"]] == [
        "relu_5",
        "identity_4",
        "max_pool_3",
        "max_pool_2",
        "relu_1",
    ]
    assert found["max_reconstruction_error"] <= 1e-5
    with open_states(tmp_path / "s.h5") as states:
        teacher = states.teacher()
        z = teacher["A"] @ states.X[()] + teacher["B"] @ states.U[()]
        np.testing.assert_allclose(z, states.Z[()], atol=1e-4)
        np.testing.assert_array_equal(np.maximum(states.Z[()][:16], 0), states.X[()][:16])
    channels = sum(layer.spec.rows for layer in load_network(network, (8, 8)).outline.layers)
    for structure, rows in (("layered", channels), ("dag", found["states"] + found["outputs"])):
        options = SparsifyOptions(kappa=5.0, structure=structure)
        result = sparsify(tmp_path / "s.h5", tmp_path / structure, options, engine="serial")
        assert result["rows"] == result["certified"] == rows
        report = evaluate(
            tmp_path / structure, "digits", output=tmp_path / f"{structure}-report", baseline=network
        )
        assert report["agreement"] > 0.9
        assert report["baseline_nnz"] == found["baseline_nnz"]


class MobileBlock(torch.nn.Module):
    """An inverted bottleneck with hardswish, which is written by hand in the second half, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = torch.nn.Conv2d(3, 6, 1, bias=False), torch.nn.BatchNorm2d(6)
        self.depth = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.narrow = torch.nn.Conv2d(6, 3, 1)
        self.last = torch.nn.Linear(3, 2)
        self.swish, self.gate = torch.nn.Hardswish(), torch.nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.swish(3.0 * self.wide_norm(self.wide(x)))
        deep = self.depth(wide)
        deep = deep * torch.nn.functional.relu6(deep + 3.0) / 6.0
        mean = (x + self.narrow(deep)).mean((2, 3))
        return self.last(mean * self.gate(mean))


@pytest.mark.parametrize("opset", [None, 13, 17])
def test_hardswish_is_square_clip_and_relu(opset: int | None, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = MobileBlock().eval()
    if opset is None:
        network = read_module(copy.deepcopy(module), (3, 4, 4), {"network": "net"})
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, (torch.zeros(2, 3, 4, 4),), str(tmp_path / "n.onnx"), dynamo=False, opset_version=opset,
                input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "b"}, "y": {0: "b"}},
            )  # fmt: skip
        network = load_network(NetworkSpec(str(tmp_path / "n.onnx")))
    names = [node.activation.spec for node in network.graph.nodes if node.activation.name != "identity"]
    assert names == ["square:3.0", "clip:3.0", "relu"] * 3
    inputs = 3.0 * np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    recorded = network.run(inputs)
    z, x, y = network.graph.evaluate(inputs.reshape(20, -1).astype(np.float64))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(recorded.y, expected, atol=1e-5)
    for name in z:
        np.testing.assert_allclose(recorded.z[name], z[name], atol=1e-4)
        np.testing.assert_allclose(recorded.x[name], x[name], atol=1e-4)
    assert z["square_2"].min() < -3.0  # every branch is taken
    assert z["square_2"].max() > 3.0
