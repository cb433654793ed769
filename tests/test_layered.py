"""Rows of layers whose weights are shared over positions: extract, sparsify, evaluate, predict, inspect, replay, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import simtool
from simtool import layers as layers_module
from simtool.cli import main
from simtool.errors import FormatError, InputError, NoImplicitForm, OptionError
from simtool.layers import LayerSpec
from simtool.model import load_layers, load_model, save_model
from simtool.networks import NetworkSpec
from simtool.networks.tracing import quiet_torch
from simtool.stages.extract import extract
from simtool.stages.sparsify.anchor import anchored
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states

HERE = Path(__file__).resolve()
SHAPE = (2, 6, 6)


class Small(nn.Module):
    """Every kind of layer that shares its weights, with a batch norm and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.shared = nn.Linear(12, 5)
        self.out = nn.Linear(3 * 12 * 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.grouped(x)) + x)
        x = torch.relu(self.up(x))
        return self.out(torch.relu(self.shared(x)).flatten(1))


class Gated(nn.Module):
    """No affine graph: its halves are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.left(x)) * torch.sigmoid(self.right(x)))


def small() -> nn.Module:
    torch.manual_seed(0)
    module = Small()
    module.norm.running_mean.uniform_(-1, 1)
    module.norm.running_var.uniform_(0.5, 2)
    return module


def other() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU(), nn.Linear(4, 3))


def gated() -> nn.Module:
    torch.manual_seed(1)
    return Gated()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layered")


@pytest.fixture(scope="module")
def data(place: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(place / "d.npz", inputs=rng.uniform(-1, 1, (150, *SHAPE)).astype(np.float32))
    np.savez(place / "flat.npz", inputs=rng.uniform(-1, 1, (300, 8)).astype(np.float32))
    return str(place / "d.npz")


@pytest.fixture(scope="module")
def states(place: Path, data: str) -> Path:
    extract(f"{HERE}:small", data, output=place / "s.h5", positions=20)
    return place / "s.h5"


LEAST = SparsifyOptions(objective="least-squares", tol=1e-9)


@pytest.fixture(scope="module")
def run(place: Path, states: Path) -> Path:
    sparsify(states, place / "run", LEAST, engine="serial")
    return place / "run"


def test_the_columns_are_what_the_layers_compute(states: Path) -> None:
    with open_states(states) as source:
        names = [layer.spec.name for layer in source.layers]
        assert names == ["first", "grouped", "up", "shared", "out"]
        columns = {layer.spec.name: layer.spec.columns for layer in source.layers}
        assert columns == {"first": 3000, "grouped": 3000, "up": 3000, "shared": 3000, "out": 150}
        for layer in source.layers:
            found = layer.spec.outputs(layer.teacher[()], np.asarray(layer.design[()], dtype=np.float64))
            assert np.abs(found - layer.targets[()]).max() < 1e-5
            assert layer.sensitivity[()].any()
        norm = 4  # its weights; its biases are zero, its statistics are no parameters
        assert source.header.carried_nnz == norm
        rows = sum(int(np.count_nonzero(layer.teacher[()])) for layer in source.layers)
        assert source.header.baseline_nnz == rows + norm


def test_enough_samples_give_the_teacher_back(run: Path, states: Path) -> None:
    layers = load_layers(run)
    assert layers is not None
    assert layers.certificates is not None
    assert layers.certificates.certified.all()
    with open_states(states) as source:
        for own, matrix in zip(source.layers[:-1], layers.matrices, strict=False):
            assert np.abs(own.spec.compact(matrix) - own.teacher[()]).max() < 1e-3, own.spec.name


def test_the_implicit_form_computes_what_the_sparse_network_does(run: Path, place: Path, data: str) -> None:
    model, layers = load_model(run), load_layers(run)
    assert layers is not None
    inputs = np.load(data)["inputs"][:20]
    module = small().eval()
    own = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    changed = {**own, **layers.tensors(own)}
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in changed.items()})
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    assert np.abs(model.predict(inputs) - expected).max() < 1e-5
    assert model.parameters == layers.nnz
    assert model.sparsity == layers.sparsity
    assert model.well_posedness().by == "acyclic"


def test_layers_alone_need_their_network(run: Path, place: Path, data: str) -> None:
    alone = place / "alone.h5"
    save_model(None, alone, True, load_layers(run))
    with pytest.raises(NoImplicitForm, match="--baseline NETWORK"):
        load_model(alone)
    with pytest.raises(NoImplicitForm):
        simtool.predict(alone, data, output=place / "y.npz")
    with pytest.raises(OptionError, match="fgsm follows a gradient"):
        simtool.evaluate(alone, data, baseline=f"{HERE}:small", attack="fgsm", output=place / "r")
    with pytest.raises(InputError, match="is not the network that the model came from"):
        simtool.predict(alone, data, network=f"{HERE}:other", output=place / "y.npz")
    simtool.predict(alone, data, network=f"{HERE}:small", output=place / "one.npz")
    simtool.predict(run, data, output=place / "two.npz")
    one, two = np.load(place / "one.npz")["outputs"], np.load(place / "two.npz")["outputs"]
    assert np.abs(one - two).max() < 1e-5
    reports = [
        simtool.evaluate(path, data, baseline=f"{HERE}:small", output=place / f"r{i}")
        for i, path in enumerate((alone, run))
    ]
    for key in ("nnz", "sparsity", "certified", "rows", "well_posed_by", "baseline_nnz"):
        assert reports[0][key] == reports[1][key]
    assert abs(reports[0]["output_error"] - reports[1]["output_error"]) < 1e-6


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "pt"])
def test_drop_in_exports(run: Path, place: Path, data: str, suffix: str) -> None:
    target = place / f"net.{suffix}"
    result = simtool.export_model(run, target, network=f"{HERE}:small")
    assert result["max_difference"] < 1e-5
    assert result["nnz"] == load_model(run).parameters
    inputs = np.load(data)["inputs"][:20]
    expected = load_model(run).predict(inputs)
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
    else:
        from simtool.networks.weights import load_weights

        module = small().eval()
        module.load_state_dict(load_weights(target))
        with torch.no_grad():
            found = module(torch.from_numpy(inputs)).numpy()
    assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(simtool.SimtoolError, match="exists already"):
        simtool.export_model(run, target, network=f"{HERE}:small")
    simtool.export_model(run, target, network=f"{HERE}:small", overwrite=True)


def test_an_onnx_network_keeps_its_file(place: Path, data: str, states: Path) -> None:
    module, path = small().eval(), place / "small.onnx"
    with quiet_torch():
        torch.onnx.export(
            module, (torch.zeros(2, *SHAPE),), str(path), dynamo=True, dynamic_shapes=({0: torch.export.Dim("b")},),
            external_data=False, verbose=False,
        )  # fmt: skip
    extract(str(path), data, output=place / "o.h5", positions=20)
    sparsify(place / "o.h5", place / "orun", SparsifyOptions(target_sparsity=0.5), engine="serial")
    result = simtool.export_model(place / "orun", place / "sparse.onnx", network=str(path))
    assert result["max_difference"] < 1e-5
    inputs = np.load(data)["inputs"][:20]
    session = onnxruntime.InferenceSession(
        (place / "sparse.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
    assert np.abs(found - load_model(place / "orun").predict(inputs)).max() < 1e-5


def test_a_network_that_is_no_graph(place: Path, data: str) -> None:
    flat = str(place / "flat.npz")
    found = extract(f"{HERE}:gated", flat, output=place / "g.h5")
    assert found["states"] == 0
    assert found["norm_a_inf"] is None
    assert [layer["name"] for layer in found["layers"]] == ["left", "right", "out"]
    result = sparsify(place / "g.h5", place / "grun", LEAST, engine="serial")
    assert result["certified"] == result["rows"] == 14
    assert (result["well_posed_by"], result["norm_a_inf"]) == ("acyclic", None)
    report = simtool.evaluate(place / "grun", flat, baseline=f"{HERE}:gated", output=place / "gr")
    assert report["output_error"] < 1e-5
    assert report["state_error"] is None
    for structure in ("dag", "free"):
        with pytest.raises(InputError, match="columns of layers alone"):
            sparsify(place / "g.h5", place / "no", SparsifyOptions(structure=structure), engine="serial")
    with pytest.raises(simtool.SimtoolError, match=r"multiplies or divides two values"):
        extract(f"{HERE}:gated", flat, output=place / "no.h5", blocks=["*"])


def test_every_engine_gives_the_same_bytes(states: Path, place: Path) -> None:
    for options, name in ((SparsifyOptions(kappa=2.0), "k"), (SparsifyOptions(target_sparsity=0.7), "t")):
        bytes_ = set()
        for engine in ("serial", "process"):
            folder = place / f"{name}-{engine}"
            sparsify(states, folder, options, engine=engine, workers=2 if engine == "process" else None)
            bytes_.add((folder / "model.h5").read_bytes())
        assert len(bytes_) == 1


def test_a_budget_is_met_to_one_coefficient_and_resumed(states: Path, place: Path) -> None:
    with open_states(states) as source:
        baseline, carried = source.header.baseline_nnz, source.header.carried_nnz
    result = sparsify(states, place / "b", SparsifyOptions(target_nnz=300), engine="serial")
    assert result["nnz"] == 300
    assert result["certified"] == result["rows"]
    model = (place / "b" / "model.h5").read_bytes()
    layers = load_layers(place / "b")
    assert layers is not None
    assert layers.certificates is not None
    assert set(layers.certificates.kind.tolist()) == {2}  # fixed-support
    (place / "b" / "model.h5").unlink()
    (place / "b" / "rows" / "supports.shard").unlink()
    (place / "b" / "rows" / "000000.shard").write_bytes(b"damaged")
    sparsify(states, place / "b", SparsifyOptions(target_nnz=300), engine="serial")
    assert (place / "b" / "model.h5").read_bytes() == model
    result = sparsify(states, place / "c", SparsifyOptions(target_sparsity=0.9), engine="serial")
    assert result["nnz"] == int(0.1 * baseline)
    with pytest.raises(OptionError, match=f"{carried} belong to parts of the network that have no rows"):
        sparsify(states, place / "d", SparsifyOptions(target_nnz=carried - 1), engine="serial")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_sparsity": 0.5, "target_nnz": 3}, "ask for the same thing"),
        ({"target_sparsity": 1.0}, r"must lie in \[0, 1\)"),
        ({"target_nnz": -1}, "must not be negative"),
        ({"target_nnz": 5, "objective": "l1"}, "got --objective l1"),
        ({"target_nnz": 5, "match": "exact"}, "--match exact"),
        ({"target_nnz": 5, "solver": "scs"}, "needs --solver native"),
        ({"target_nnz": 5, "eliminate": "safe"}, "leave --eliminate safe out"),
        ({"untied": True, "structure": "dag"}, "--untied belongs to --structure layered"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(**options)


def test_what_counts_by_states_is_refused_for_layers(states: Path, place: Path) -> None:
    np.save(place / "w.npy", np.ones(150))
    for options in (SparsifyOptions(weight_samples=str(place / "w.npy")), SparsifyOptions(eliminate="safe")):
        with pytest.raises(OptionError, match="add --untied"):
            sparsify(states, place / "no", options, engine="serial")


def test_untied_rows_of_single_states(states: Path, place: Path) -> None:
    options = SparsifyOptions(objective="l1", beta=1.0, untied=True)
    result = sparsify(states, place / "untied", options, engine="serial")
    with open_states(states) as source:
        assert result["rows"] == source.n + source.q
    assert load_layers(place / "untied") is None


def test_chosen_blocks(place: Path, data: str) -> None:
    whole = extract(f"{HERE}:small", data, output=place / "whole.h5")
    relus = [block["name"] for block in whole["blocks"]][-2:]
    found = extract(f"{HERE}:small", data, output=place / "some.h5", blocks=relus)
    assert [block["name"] for block in found["blocks"]] == relus
    with open_states(place / "some.h5") as some, open_states(place / "whole.h5") as source:
        rows = np.concatenate(
            [np.arange(b.offset, b.offset + b.size) for b in source.blocks if b.name in relus]
        )
        assert np.array_equal(some.X[:], source.X[:][rows])
        assert not some.header.whole
        assert some.teacher()["A"].nnz == 0
    result = sparsify(
        place / "some.h5", place / "dag", SparsifyOptions(structure="dag", kappa=5.0), engine="serial"
    )
    assert result["well_posed_by"] == "acyclic"
    assert result["certified"] == result["rows"]
    with pytest.raises(InputError, match="states of some blocks only"):
        sparsify(place / "some.h5", place / "no", SparsifyOptions(untied=True), engine="serial")
    with pytest.raises(OptionError, match="matches no block"):
        extract(f"{HERE}:small", data, output=place / "no.h5", blocks=["nothing*"])
    with pytest.raises(OptionError, match="needs all states"):
        extract(f"{HERE}:small", data, output=place / "no.h5", blocks=relus, rescale="layer")
    with pytest.raises(OptionError, match="--positions must be above 0"):
        extract(f"{HERE}:small", data, output=place / "no.h5", positions=0)


def test_positions_do_not_depend_on_the_batches(place: Path, data: str) -> None:
    for name, size in (("one", 7), ("two", 150)):
        extract(
            f"{HERE}:small", data, output=place / f"{name}.h5", positions=3, batch_size=size, blocks=["none"]
        )
    with open_states(place / "one.h5") as one, open_states(place / "two.h5") as two:
        for a, b in zip(one.layers, two.layers, strict=True):
            assert np.array_equal(a.design[:], b.design[:])
            assert np.abs(a.targets[:] - b.targets[:]).max() < 1e-5


def test_the_command_line(run: Path, states: Path, place: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(
        main,
        [
            "inspect",
            str(run),
            "--row",
            "5",
            "--dump",
            str(place / "r.npz"),
            "--states",
            str(states),
            "--json",
        ],
    )
    assert found.exit_code == 0, found.output
    row = json.loads(found.stdout)
    assert row["owner"] == "channel 1 of layer grouped"
    assert row["certificate"]["certified"]
    again = json.loads(runner.invoke(main, ["inspect", str(place / "r.npz"), "--json"]).stdout)
    assert again["stored"]["certified"]
    assert again["features"] == 18
    facts = json.loads(runner.invoke(main, ["inspect", str(states), "--json"]).stdout)
    assert [layer["kind"] for layer in facts["layers"]][2] == "transposed-convolution"
    model = json.loads(runner.invoke(main, ["inspect", str(run / "model.h5"), "--json"]).stdout)
    assert [layer["name"] for layer in model["layers"]] == ["first", "grouped", "up", "shared", "out"]
    text = runner.invoke(main, ["inspect", str(run / "model.h5")]).stdout
    assert "grouped" in text


def test_a_tampered_description_is_refused() -> None:
    spec = LayerSpec("a", "linear", "w", (3, 4), True, 0, 1.0, "b", (3,), 1.0, 3, 1, 4, False, False, 7)
    good = spec.to_json()
    assert layers_module.from_json([good]) == (spec,)
    broken: list[dict[str, Any]] = [
        {"kind": "x"}, {"rows": 4}, {"rows": 0}, {"fan_in": 5}, {"groups": 2}, {"alpha": 0.0}, {"alpha": float("nan")},
        {"start": 1}, {"start": -1}, {"bias_shape": [2]}, {"columns": 2**40}, {"weight_shape": "ab"}, {"rows": None},
    ]  # fmt: skip
    for change in broken:
        with pytest.raises(FormatError):
            layers_module.from_json([{**good, **change}])
    with pytest.raises(FormatError, match="same name"):
        layers_module.from_json([good, good])


def test_a_dense_network_is_put_back_from_its_rows(place: Path) -> None:
    import networks_zoo as zoo

    rng = np.random.default_rng(0)
    np.savez(place / "mlp.npz", inputs=rng.uniform(-1, 1, (200, 10)).astype(np.float32))
    path = zoo.export(zoo.mlp("10-8-6-3"), place / "mlp.onnx", (10,))
    extract(str(path), str(place / "mlp.npz"), output=place / "m.h5", rescale="layer")
    sparsify(place / "m.h5", place / "mrun", SparsifyOptions(target_sparsity=0.4), engine="serial")
    assert load_layers(place / "mrun") is None
    simtool.export_model(place / "mrun", place / "mlp_sparse.onnx", network=NetworkSpec(str(path)))
    inputs = np.load(place / "mlp.npz")["inputs"][:20]
    session = onnxruntime.InferenceSession(
        (place / "mlp_sparse.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
    assert np.abs(found - load_model(place / "mrun").predict(inputs)).max() < 1e-5
    sparsify(place / "m.h5", place / "drun", SparsifyOptions(structure="dag", kappa=1.0), engine="serial")
    with pytest.raises(InputError, match="have no place in it"):
        simtool.export_model(place / "drun", place / "no.onnx", network=NetworkSpec(str(path)))


def test_few_samples_are_held_near_the_network(place: Path) -> None:
    rng = np.random.default_rng(5)
    for name, count in (("few", 30), ("new", 300)):
        np.savez(place / f"{name}.npz", inputs=rng.uniform(-1, 1, (count, *SHAPE)).astype(np.float32))
    extract(f"{HERE}:small", str(place / "few.npz"), output=place / "few.h5", positions=2)
    errors = {}
    for anchor in (None, 0.01):
        options = SparsifyOptions(target_sparsity=0.5, anchor=anchor)
        result = sparsify(place / "few.h5", place / f"few-{anchor}", options, engine="serial")
        assert result["certified"] == result["rows"]
        report = simtool.evaluate(
            place / f"few-{anchor}",
            str(place / "new.npz"),
            output=place / f"few-r-{anchor}",
            baseline=f"{HERE}:small",
        )
        errors[anchor] = report["output_error"]
    assert errors[0.01] < 0.8 * errors[None]
    with open_states(place / "few.h5") as source:
        layer = source.layers[-1]
        design, targets = anchored(layer, 0.01)
        d, m = layer.spec.features, layer.spec.columns
        w = rng.standard_normal((layer.spec.rows, d))
        own = np.square(w @ design[:].astype(np.float64) - targets[:]).sum()
        ridge = 0.01 * np.square(layer.design[:].astype(np.float64)).sum() / d
        plain = np.square(w @ layer.design[:].astype(np.float64) - layer.targets[:]).sum()
        assert design.shape == (d, m + d)
        assert np.isclose(own, plain + ridge * np.square(w - layer.teacher[()]).sum(), rtol=1e-5)
    with pytest.raises(OptionError, match="--anchor must lie in"):
        SparsifyOptions(anchor=0.0)


@pytest.mark.parametrize("structure", ["dag", "free"])
def test_a_budget_over_states(structure: str, place: Path) -> None:
    import networks_zoo as zoo

    rng = np.random.default_rng(0)
    np.savez(place / "over.npz", inputs=rng.uniform(-1, 1, (200, 10)).astype(np.float32))
    path = zoo.export(zoo.mlp("10-8-6-3"), place / "over.onnx", (10,))
    extract(str(path), str(place / "over.npz"), output=place / "over.h5", rescale="layer", overwrite=True)
    options = SparsifyOptions(target_nnz=60, structure=structure)
    result = sparsify(place / "over.h5", place / f"over-{structure}", options, engine="serial")
    assert result["certified"] == result["rows"] == 17
    assert result["nnz"] == 60 if structure == "dag" else result["nnz"] <= 60  # kappa may zero more
    model = load_model(place / f"over-{structure}")
    assert model.well_posedness().well_posed
    assert not model.A.diagonal().any()


def norms() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def reseeded() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def test_a_norm_after_a_dense_layer_keeps_rows_of_layers(place: Path, data: str) -> None:
    flat = str(place / "flat.npz")
    found = extract(f"{HERE}:norms", flat, output=place / "n.h5")
    assert [layer["name"] for layer in found["layers"]] == ["0", "3"]
    sparsify(place / "n.h5", place / "nrun", SparsifyOptions(target_sparsity=0.5), engine="serial")
    result = simtool.export_model(place / "nrun", place / "n.safetensors", network=f"{HERE}:norms")
    assert result["warnings"] == []
    # Another network's batch norm must not be mixed in.
    for action in (
        lambda: simtool.export_model(place / "nrun", place / "no.safetensors", network=f"{HERE}:reseeded"),
        lambda: simtool.evaluate(
            save_model(None, place / "na.h5", True, load_layers(place / "nrun")),
            flat,
            baseline=f"{HERE}:reseeded",
            output=place / "no",
        ),
    ):
        with pytest.raises(InputError, match="is not the network that the model came from"):
            action()
    assert not (place / "no.safetensors").exists()


def test_sensitivities_know_samples_from_all_of_the_file(place: Path) -> None:
    # The first half of the samples moves the first half of the units only, as data sorted by class do.
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0.5, 1, (1400, 8)).astype(np.float32)
    inputs[:700, 4:], inputs[700:, :4] = -10.0, -10.0
    np.savez(place / "sorted.npz", inputs=inputs)
    arrays = []
    for size in (7, 500):
        extract(
            f"{HERE}:halves",
            str(place / "sorted.npz"),
            output=place / "h.h5",
            batch_size=size,
            overwrite=True,
        )
        with open_states(place / "h.h5") as source:
            arrays.append(source.layers[0].sensitivity[()])
    assert (arrays[0] > 0).all()
    assert np.allclose(arrays[0], arrays[1], rtol=1e-5)  # whatever the batches


class Halves(nn.Module):
    """Unit i reads input i; its results are multiplied, so that there is no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(8))
            self.first.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x)
        return self.out(torch.relu(z) * torch.sigmoid(z))


def halves() -> nn.Module:
    torch.manual_seed(0)
    return Halves()


class Rooted(nn.Module):
    """Its outputs are finite, their gradients are not: the root of 0 has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x)
        return self.out(torch.where(z > 0, torch.sqrt(z), torch.zeros_like(z)))


def rooted() -> nn.Module:
    torch.manual_seed(0)
    return Rooted()


def test_gradients_that_are_not_finite_are_measured(place: Path, data: str) -> None:
    extract(f"{HERE}:rooted", str(place / "flat.npz"), output=place / "root.h5")
    with open_states(place / "root.h5") as source:
        assert (source.layers[0].sensitivity[()] > 0).all()


def depthwise() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def test_depthwise_layers_cost_what_they_hold(place: Path, data: str) -> None:
    extract(f"{HERE}:depthwise", data, output=place / "dw.h5", blocks=["none"], positions=4)
    with open_states(place / "dw.h5") as source:
        assert source.layers[1].teacher.shape == (64, 10)
    options = SparsifyOptions(target_sparsity=0.5, anchor=0.01)
    result = sparsify(place / "dw.h5", place / "dwrun", options, engine="serial")
    assert result["certified"] == result["rows"]
    written = simtool.export_model(place / "dwrun", place / "dw.safetensors", network=f"{HERE}:depthwise")
    assert written["max_difference"] == 0
