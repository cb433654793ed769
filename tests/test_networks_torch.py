"""The PyTorch reader: the graph it finds computes what the module computes, and what it refuses it names."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from pathlib import Path

import networks_zoo as zoo
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from simtool.errors import FormatError, InputError, OptionError, UnsupportedOperator
from simtool.networks import NetworkSpec, load_network
from simtool.networks.torch_reader import read_module

ZOO = str(Path(__file__).with_name("networks_zoo.py"))


def read(module: torch.nn.Module, *shape: int):
    return read_module(module, shape, {"network": "net"})


def run_both(module: torch.nn.Module, *shape: int, k: int = 7):
    """(network, its record, the graph's own float64 evaluation, the module's float64 output)."""
    module = module.eval()
    network = read(copy.deepcopy(module), *shape)
    inputs = np.random.default_rng(0).normal(size=(k, *shape)).astype(np.float32)
    z, x, y = network.graph.evaluate(inputs.reshape(k, -1).astype(np.float64))
    with torch.no_grad():
        out = copy.deepcopy(module).double()(torch.from_numpy(inputs).double()).numpy()
    return network, network.run(inputs), (z, x, y), out


@pytest.mark.parametrize("activation", [name for name in zoo.ACTIVATIONS if name != "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_graph_records_and_module_agree(activation: str, bias: bool) -> None:
    module = zoo.mlp("6-5-4-3", activation, bias)
    network, recorded, (z, x, y), out = run_both(module, 6)
    graph = network.graph
    assert [b.activation.name for b in graph.blocks] == [activation] * 2
    assert [b.size for b in graph.blocks] == [4, 5]  # last hidden layer first
    first = ("input", "bias") if bias else ("input",)
    assert graph.blocks[-1].parents == first
    assert graph.baseline_nnz == sum(p.numel() for p in module.parameters())
    np.testing.assert_allclose(y, out, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(recorded.y, out, rtol=1e-5, atol=1e-5)
    for name in z:
        np.testing.assert_allclose(recorded.z[name], z[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(recorded.x[name], x[name], rtol=1e-5, atol=1e-5)


def test_linear_after_linear_gets_an_identity_block() -> None:
    module = zoo.mlp("6-5-4-3", "identity")
    network, recorded, (z, _, y), out = run_both(module, 6)
    assert [b.activation.name for b in network.graph.blocks] == ["identity"] * 2
    assert network.graph.matrices().A.nnz == 20  # the weights are not multiplied together
    np.testing.assert_allclose(y, out, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(recorded.z["identity_1"], recorded.x["identity_1"])
    np.testing.assert_allclose(recorded.z["identity_1"], z["identity_1"], atol=1e-5)


def test_tricky_network() -> None:
    module = zoo.tricky().eval()
    network = read(copy.deepcopy(module), 2, 3)
    inputs = np.random.default_rng(1).normal(size=(9, 2, 3)).astype(np.float32)
    recorded = network.run(inputs)
    z, x, _ = network.graph.evaluate(inputs.reshape(9, -1).astype(np.float64))
    assert network.graph.output_map == "log_softmax"
    names = [node.activation.name for node in network.graph.nodes]
    assert names == ["relu", "relu", "gelu_tanh", "silu", "silu", "relu"]
    assert [node.form.parents for node in network.graph.nodes][2] == ("relu_2", "relu_1")
    # The same relu module was used twice, in place: Z must still hold negative values.
    assert recorded.z["relu_1"].min() < 0 < recorded.z["relu_1"].max()
    for node in network.graph.nodes:
        np.testing.assert_allclose(recorded.z[node.name], z[node.name], atol=1e-5)
        np.testing.assert_allclose(recorded.x[node.name], x[node.name], atol=1e-5)
        np.testing.assert_allclose(node.activation(recorded.z[node.name]), recorded.x[node.name], atol=1e-6)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs))
    np.testing.assert_allclose(torch.log_softmax(torch.from_numpy(recorded.y), 1), expected, atol=1e-6)
    roles = {use.role for use in network.graph.taken}
    assert roles >= {"linear", "activation", "arithmetic", "map"}
    assert {use.operator for use in network.graph.passed_through} >= {"aten.view.default"}


def test_normalised_input_is_a_diagonal_and_an_identity_block() -> None:
    network, _, (_, _, y), out = run_both(zoo.normalised(), 4)
    np.testing.assert_allclose(y, out, rtol=1e-12, atol=1e-12)
    assert [b.activation.name for b in network.graph.blocks] == ["tanh", "identity"]
    assert network.graph.matrices().B.nnz == 4 + 4 + 5  # diagonal, its bias, and the bias of the hidden layer


@pytest.mark.parametrize("form", ["silu", "gelu-a", "gelu-b", "gelu-c", "gelu_tanh-a", "gelu_tanh-b"])
def test_activations_written_as_arithmetic(form: str) -> None:
    network, recorded, (_, _, y), out = run_both(zoo.by_hand(form), 4)
    assert [b.activation.name for b in network.graph.blocks] == [form.split("-")[0]]
    np.testing.assert_allclose(y, out, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(recorded.y, out, rtol=1e-5, atol=1e-5)


def test_output_of_an_activation_is_an_identity_link() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
    network, recorded, (_, _, y), out = run_both(module, 4)
    assert network.graph.output_parents == ("tanh_1",)
    assert network.graph.output_map is None
    np.testing.assert_allclose(y, out, atol=1e-12)
    np.testing.assert_array_equal(recorded.y, recorded.x["tanh_1"])


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (torch.nn.Softmax(dim=-1), "softmax"),
        (torch.nn.LogSoftmax(dim=1), "log_softmax"),
        (torch.nn.Sigmoid(), "sigmoid"),
    ],
)
def test_trailing_map_stays_outside(last: torch.nn.Module, name: str) -> None:
    module = torch.nn.Sequential(*zoo.mlp("4-5-2"), last)
    network = read(module, 4)
    assert network.graph.output_map == name
    assert len(network.graph.nodes) == 1
    inputs = torch.randn(3, 4)
    with torch.no_grad():
        np.testing.assert_allclose(network.run(inputs.numpy()).y, module[:-1](inputs), atol=1e-6)


def test_one_sample_and_regression_without_axis() -> None:
    class Squeezed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = zoo.mlp("4-3-1")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).squeeze(-1)

    network = read(Squeezed(), 4)
    assert network.output_size == 1
    assert network.run(np.zeros((1, 4), dtype=np.float32)).y.shape == (1, 1)


def test_double_and_half_weights() -> None:
    double = zoo.mlp().double()
    _, _, (_, _, y), out = run_both(double, 6)
    np.testing.assert_allclose(y, out, rtol=1e-13, atol=1e-13)
    half = read(zoo.mlp().half(), 6)
    assert half.run(np.ones((2, 6), dtype=np.float32)).y.dtype == np.float32


def test_pruned_and_tied_weights_are_counted_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4))
            with torch.no_grad():
                self.weight[0] = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ self.weight) @ self.weight.t()

    graph = read(Tied(), 4).graph
    assert (graph.baseline_nnz, graph.baseline_parameters) == (12, 16)
    assert graph.matrices().B.nnz == 12


def test_all_unsupported_operators_are_named() -> None:
    with pytest.raises(UnsupportedOperator, match=r"cos \(aten\.cos\.default, node cos\)") as caught:
        read(zoo.unsupported(), 4)
    assert "aten.cumsum" in str(caught.value)
    assert len(caught.value.refused) == 2


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.SELU()), (3,), "selu"),
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Softplus(threshold=2)), (3,), "threshold"),
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Hardshrink()), (3,), "abs"),
        (
            torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Softmax(1), torch.nn.Linear(3, 2)),
            (3,),
            "last operator",
        ),
        (torch.nn.BatchNorm1d(3, track_running_stats=False), (3,), "batch norm"),
        (torch.nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 5, 5), "pads by reflect"),
        (torch.nn.Upsample(scale_factor=1.5), (1, 4, 4), "whole factors"),
    ],
)
def test_variants_that_are_refused(module: torch.nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        _ = read(module, *shape).graph


def test_data_dependent_and_wrong_shape() -> None:
    with pytest.raises(InputError, match=r"torch\.export"):
        read(zoo.data_dependent(), 4)
    with pytest.raises(InputError, match="--input-shape"):
        read(zoo.mlp(), 7)


# --- loading --------------------------------------------------------------------------------------------------------


def test_factory_with_arguments_and_weights(tmp_path: Path) -> None:
    module = zoo.mlp("6-4-2", "tanh", seed=9)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    arguments = ("sizes=6-4-2", "activation='tanh'", "seed=1")
    inputs = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    results = []
    for weights in ("w.safetensors", "w.pt"):
        spec = NetworkSpec(f"{ZOO}:mlp", arguments, tmp_path / weights)
        network = load_network(spec, (2, 3))
        assert network.input_shape == (6,)
        results.append((network.sha256, network.run(inputs).y))
    assert results[0][0] == results[1][0]
    with torch.no_grad():
        np.testing.assert_allclose(results[0][1], module(torch.from_numpy(inputs)), atol=1e-6)
    other = load_network(NetworkSpec(f"{ZOO}:mlp", arguments), (2, 3))
    assert other.sha256 != results[0][0]


def test_module_in_a_package_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets_for_test.py").write_text(
        "import torch\nnet = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_network(NetworkSpec("mynets_for_test:net")).input_shape == (2,)
    with pytest.raises(OptionError, match="module already"):
        load_network(NetworkSpec("mynets_for_test:net", ("a=1",)))


@pytest.mark.parametrize(
    ("network", "arguments", "kind", "message"),
    [
        ("", (), InputError, "no network"),
        ("nowhere.onnx", (), InputError, "does not exist"),
        ("nowhere", (), InputError, "Allowed is"),
        ("no_such_module_xyz:f", (), InputError, "importing"),
        ("missing.py:f", (), InputError, "does not exist"),
        (f"{ZOO}:nothing", (), InputError, "has no 'nothing'"),
        (f"{ZOO}:not_a_module", (), InputError, r"torch\.nn\.Module"),
        (f"{ZOO}:failing", (), InputError, "no such checkpoint"),
        (f"{ZOO}:mlp", ("wrong=1",), OptionError, "wrong"),
        (f"{ZOO}:mlp", ("sizes",), OptionError, "key=value"),
    ],
)
def test_network_errors(network: str, arguments: tuple[str, ...], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        load_network(NetworkSpec(network, arguments), (6,))


def test_weights_errors(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        load_network(NetworkSpec(f"{ZOO}:mlp", weights=path), (6,))

    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.pt")
    torch.save(zoo.mlp(), tmp_path / "module.pt")
    with pytest.raises(FormatError, match="--trust-model"):
        load(tmp_path / "module.pt")
    torch.save({"state": zoo.mlp().state_dict()}, tmp_path / "nested.pt")
    with pytest.raises(FormatError, match="--trust-model"):
        load(tmp_path / "nested.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(FormatError, match="safetensors"):
        load(tmp_path / "bad.safetensors")
    save_file(zoo.mlp("6-5-3").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        load(tmp_path / "other.safetensors")
    state = zoo.mlp().state_dict()
    state["0.bias"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinity in 0\.bias"):
        load(tmp_path / "nan.safetensors")


def test_code_files_need_trust(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(zoo.mlp(), path)
    with pytest.raises(InputError, match="--trust-model"):
        load_network(NetworkSpec(str(path)))
    trusted = load_network(NetworkSpec(str(path), trust_model=True), (6,))
    assert trusted.output_size == 3
    torch.save(zoo.mlp().state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match="--weights"):
        load_network(NetworkSpec(str(tmp_path / "state.pt"), trust_model=True), (6,))
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="--weights"):
        load_network(NetworkSpec(str(tmp_path / "w.safetensors")))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(FormatError, match="pickled module"):
        load_network(NetworkSpec(str(tmp_path / "junk.pt"), trust_model=True))
    with pytest.raises(OptionError, match="--weights belongs"):
        load_network(NetworkSpec(str(path), weights=path, trust_model=True))


@pytest.mark.filterwarnings("ignore")
def test_exported_program_and_torchscript(tmp_path: Path) -> None:
    module, example = zoo.mlp().eval(), torch.zeros(2, 6)
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(module, (example,), dynamic_shapes=({0: batch},)), tmp_path / "n.pt2"
    )
    with pytest.raises(InputError, match="--trust-model"):
        load_network(NetworkSpec(str(tmp_path / "n.pt2")))
    network = load_network(NetworkSpec(str(tmp_path / "n.pt2"), trust_model=True))
    with torch.no_grad():
        np.testing.assert_allclose(
            network.run(np.ones((3, 6), np.float32)).y, module(torch.ones(3, 6)), atol=1e-6
        )
    torch.export.save(torch.export.export(module, (example,)), tmp_path / "fixed.pt2")
    with pytest.raises(InputError, match="dynamic first dimension"):
        load_network(NetworkSpec(str(tmp_path / "fixed.pt2"), trust_model=True))
    torch.jit.trace(module, example).save(str(tmp_path / "script.pt"))
    with pytest.raises(InputError, match="TorchScript"):
        load_network(NetworkSpec(str(tmp_path / "script.pt"), trust_model=True))


def test_input_shape_choice() -> None:
    spec = f"{ZOO}:tricky"
    assert load_network(NetworkSpec(spec), (2, 3)).input_shape == (6,)
    assert load_network(NetworkSpec(spec, input_shape=(2, 3)), (6,)).input_shape == (2, 3)
    assert load_network(NetworkSpec(spec)).input_shape == (6,)
    with pytest.raises(OptionError, match="positive sizes"):
        load_network(NetworkSpec(spec, input_shape=(0,)))
    with pytest.raises(InputError, match="Pass --input-shape"):
        load_network(NetworkSpec(f"{ZOO}:unsupported"))


# --- messages ---------------------------------------------------------------------------------------------------------


class Raw(torch.nn.Module):
    """Weights that are plain parameters, so that nothing declares the width of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(12, 5))
        self.last = torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(x @ self.first))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("sizes", "node"), [("6-0-3", "node linear"), ("6-4-0", "node linear_1")])
def test_layers_of_width_zero_are_named(sizes: str, node: str) -> None:
    with pytest.raises(InputError, match=rf"linear .*{node}\) has the width 0") as caught:
        load_network(NetworkSpec(f"{ZOO}:mlp", (f"sizes={sizes}",)), (6,))
    assert "--model-arg" in str(caught.value)


def test_lazy_layers_must_have_been_run() -> None:
    module = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    zoo.__dict__["lazy_for_test"] = lambda: module
    try:
        with pytest.raises(InputError, match=r"lazy layers .*0\.weight.*Run the module once"):
            load_network(NetworkSpec("networks_zoo:lazy_for_test"), (6,))
        module(torch.zeros(2, 6))
        assert load_network(NetworkSpec("networks_zoo:lazy_for_test"), (6,)).output_size == 2
    finally:
        del zoo.__dict__["lazy_for_test"]


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (zoo.mlp("12-8-3"), (24,), "^a sample has 24 values, the network takes 12"),
        (zoo.mlp("12-8-3"), (8, 8), "^a sample has 64 values, the network takes 12"),
        (zoo.mlp("12-8-3"), (3, 4), r"^a sample has the shape \(3, 4\), .*Pass --input-shape 12\."),
        (Raw(), (5,), "^a sample has 5 values, the network takes 12"),
        (torch.nn.Bilinear(4, 4, 2), (4,), r"fails on a batch of samples of shape \(4,\): TypeError"),
        (zoo.data_dependent(), (4,), r"torch\.export cannot trace it"),
    ],
)
def test_samples_that_do_not_fit(
    module: torch.nn.Module,
    shape: tuple[int, ...],
    message: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    loggers = [logging.getLogger(name) for name in ("torch", "torch._subclasses.fake_tensor", "torch.export")]
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]
    with pytest.raises(InputError, match=message) as caught:
        read(module, *shape)
    text = str(caught.value)
    assert "\n" not in text
    assert not re.search(r"\b[su]\d+\b|Sym", text)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers] == before


def test_the_width_of_a_first_layer_that_is_not_the_first(tmp_path: Path) -> None:
    (tmp_path / "raw.py").write_text("from test_networks_torch import Raw\n")
    with pytest.raises(InputError, match="a sample has 5 values, the network takes 12"):
        load_network(NetworkSpec(f"{tmp_path / 'raw.py'}:Raw"))
    spec = NetworkSpec(f"{tmp_path / 'raw.py'}:Raw", input_shape=(12,))
    assert load_network(spec).input_shape == (12,)


def test_batches_that_are_not_writable_give_no_warning() -> None:
    inputs = np.ones((3, 6), dtype=np.float32)
    inputs.flags.writeable = False
    expected = read(zoo.mlp(), 6).run(np.ones((3, 6), dtype=np.float32)).y
    np.testing.assert_array_equal(read(zoo.mlp(), 6).run(inputs).y, expected)


def test_a_trusted_pt2_gives_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(zoo.mlp().eval(), (torch.zeros(2, 6),), dynamic_shapes=shapes)
        torch.export.save(exported, tmp_path / "n.pt2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_network(NetworkSpec(str(tmp_path / "n.pt2"), trust_model=True))
    assert not caught
    (tmp_path / "bad.pt2").write_bytes(b"junk")
    with pytest.raises(FormatError, match="cannot be loaded as an exported program"):
        load_network(NetworkSpec(str(tmp_path / "bad.pt2"), trust_model=True))


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = zoo.mlp("6-5-4-3").state_dict()
    state["0.weight"] = torch.zeros(5, 7)
    state["extra"] = state.pop("4.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_network(NetworkSpec(f"{ZOO}:mlp", weights=tmp_path / "w.safetensors"), (6,))
    text = str(caught.value)
    assert (
        "missing keys: 4.bias; unexpected keys: extra; wrong shapes: 0.weight (file (5, 7), network (5, 6))."
        in text
    )
    assert "\n" not in text
    assert ".." not in text
    with pytest.raises(InputError, match="folder"):
        load_network(NetworkSpec(f"{ZOO}:mlp", weights=Path("")), (6,))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys\n    sys.exit(0)", r"net\.py:f\(width=3\) failed: SystemExit: 0\."),
        ("raise SystemExit", r"net\.py:f\(width=3\) failed: SystemExit\."),
        ("raise BaseExceptionGroup('two', [GeneratorExit()])", r"BaseExceptionGroup: two"),
        ("raise ValueError('no\\nfile.')", r"failed: ValueError: no file\."),
    ],
)
def test_a_factory_that_exits(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "net.py").write_text(f"def f(width):\n    {body}\n")
    with pytest.raises(InputError, match=message):
        load_network(NetworkSpec(f"{tmp_path / 'net.py'}:f", ("width=3",)), (6,))


def test_code_that_exits_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "top.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(InputError, match=r"importing .*top\.py.* failed: SystemExit: 0"):
        load_network(NetworkSpec(f"{tmp_path / 'top.py'}:f"))
    (tmp_path / "stop.py").write_text("def f():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_network(NetworkSpec(f"{tmp_path / 'stop.py'}:f"))

    class Leaves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit(0)

    with pytest.raises(InputError, match=r"fails on a batch .* SystemExit: 0"):
        read(Leaves(), 4)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x[:, None, :])[0][:, -1]


@pytest.mark.parametrize(
    ("module", "shape", "name"),
    [
        (torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5)), (6,), "layer norm"),
        (torch.nn.GroupNorm(1, 2), (2, 5, 5), "group norm"),
    ],
)
def test_refused_operators_have_readable_names(
    module: torch.nn.Module, shape: tuple[int, ...], name: str
) -> None:
    with pytest.raises(UnsupportedOperator, match=f"activations: {name} ") as caught:
        _ = read(module, *shape).graph
    assert caught.value.refused[0].startswith(f"{name} (aten.")
    assert "getitem" not in str(caught.value)


def test_gates_are_no_affine_forms() -> None:
    with pytest.raises(UnsupportedOperator, match="both depend on the input"):
        _ = read(Recurrent(), 6).graph


def test_what_a_network_changes_in_place() -> None:
    class Scales(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.mul_(2.0))

    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return torch.relu(x)

    with pytest.raises(UnsupportedOperator, match="changes its input in place"):
        read(Scales(), 4)
    with pytest.raises(UnsupportedOperator, match="changes its own buffers calls"):
        read(Counts(), 4)


class Conditional(torch.nn.Module):
    """It looks at its values: at whether there are any, or (``scaled``) at the largest of the batch."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.scaled = scaled
        self.first, self.norm, self.last = torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if float(hidden.abs().sum()) > 0:
            hidden = torch.relu_(hidden)
        if self.scaled:
            hidden = hidden / float(hidden.max())
        return self.last(self.norm(hidden)).mean(1)


def test_what_looks_at_its_values_is_traced_on_an_example(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = Conditional().eval()
    with caplog.at_level(logging.WARNING):
        network = read(module, 3, 4)
    assert "traced on 13 random samples" in caplog.text
    assert [layer.spec.name for layer in network.outline.layers] == ["first", "last"]
    assert set(network.weights()) == set(module.state_dict())
    for count in (1, 13, 30):
        inputs = np.random.default_rng(count).normal(size=(count, 3, 4)).astype(np.float32)
        with torch.no_grad():
            np.testing.assert_allclose(network.run(inputs).y, module(torch.from_numpy(inputs)), atol=1e-6)
        layer = network.outline.layers[0]
        tensors = network.tensors(inputs, [layer.uses[0].source, layer.uses[0].result])
        design, targets = layer.columns(tensors, np.tile(np.arange(3), (count, 1)))
        np.testing.assert_allclose(layer.matrix @ design, targets, atol=1e-5)
    with pytest.raises(InputError, match=r"torch\.export cannot trace.*gives other outputs on 1 other"):
        read(Conditional(scaled=True), 3, 4)
