"""convert: the implicit form computes what the network computes, to rounding in float64."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import networks_zoo as zoo
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from simtool.cli import main
from simtool.errors import InputError, OutputError, UnsupportedOperator
from simtool.model import load_model
from simtool.networks import NetworkSpec, load_network
from simtool.networks.torch_reader import read_module
from simtool.stages.convert import convert, implicit_form

ZOO = str(Path(__file__).with_name("networks_zoo.py"))


def check_exact(module: torch.nn.Module, *shape: int) -> None:
    module = module.eval()
    model = implicit_form(read_module(copy.deepcopy(module), shape, {"network": "net"}).graph)
    inputs = np.random.default_rng(0).normal(size=(11, *shape))
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(model.predict(inputs), expected, rtol=1e-10, atol=1e-10)
    assert model.structure == "exact"
    assert model.well_posedness().by == "acyclic"


@pytest.mark.parametrize("activation", list(zoo.ACTIVATIONS))
def test_outputs_equal_the_networks(activation: str) -> None:
    check_exact(torch.nn.Sequential(*zoo.mlp("6-5-4-3", activation), torch.nn.LogSoftmax(1)), 6)


def test_tricky_and_normalised() -> None:
    check_exact(zoo.tricky(), 2, 3)
    check_exact(zoo.normalised(), 4)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=3, max_size=5),
    st.sampled_from([name for name in zoo.ACTIVATIONS if name != "identity"]),
    st.booleans(),
)
def test_any_mlp(widths: list[int], activation: str, bias: bool) -> None:
    check_exact(zoo.mlp("-".join(map(str, widths)), activation, bias), widths[0])


def test_onnx_gives_the_same_model(tmp_path: Path) -> None:
    module = zoo.mlp("6-5-4-3", "gelu").eval()
    ours = implicit_form(read_module(copy.deepcopy(module), (6,), {"network": "net"}).graph)
    other = implicit_form(load_network(NetworkSpec(str(zoo.export(module, tmp_path / "n.onnx", (6,))))).graph)
    for name in "ABCD":
        assert (getattr(ours, name) != getattr(other, name)).nnz == 0


def test_saved_and_loaded(tmp_path: Path) -> None:
    result = convert(NetworkSpec(f"{ZOO}:mlp"), tmp_path / "m.h5")
    model = load_model(tmp_path / "m.h5")
    assert result["nnz"] == model.nnz == model.baseline_nnz == 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3
    assert result["norm_a_inf"] < 1
    assert (result["well_posed"], result["well_posed_by"], result["sparsity"]) == (True, "acyclic", 0.0)
    with pytest.raises(OutputError, match="--overwrite"):
        convert(NetworkSpec(f"{ZOO}:mlp"), tmp_path / "m.h5")
    first = (tmp_path / "m.h5").read_bytes()
    convert(NetworkSpec(f"{ZOO}:mlp"), tmp_path / "m.h5", overwrite=True)
    assert (tmp_path / "m.h5").read_bytes() == first


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="linear already"):
        convert(NetworkSpec(f"{ZOO}:mlp", ("sizes='3-2'",)), tmp_path / "m.h5")
    with pytest.raises(UnsupportedOperator, match="cos"):
        convert(NetworkSpec(f"{ZOO}:unsupported", input_shape=(4,)), tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_command(tmp_path: Path) -> None:
    call = ["convert", f"{ZOO}:mlp", "-o", str(tmp_path / "m.h5"), "--model-arg", "sizes=4-3-2"]
    result = CliRunner().invoke(main, [*call, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["states"] == 3
    assert CliRunner().invoke(main, call).exit_code == 1
    assert "acyclic" in CliRunner().invoke(main, [*call, "--overwrite"]).stdout


def test_overwrite_replaces_models_alone(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(Path(ZOO).read_text())
    weights = tmp_path / "w.safetensors"
    save_file(zoo.mlp().state_dict(), weights)
    spec = NetworkSpec(f"{code}:mlp", weights=weights)
    notes = tmp_path / "notes.h5"
    notes.write_text("mine")
    for path in (code, weights, notes):
        before = path.read_bytes()
        with pytest.raises(OutputError, match="not replace"):
            convert(spec, path, overwrite=True)
        assert path.read_bytes() == before
    convert(spec, tmp_path / "m.h5")
    convert(spec, tmp_path / "m.h5", overwrite=True)
    with pytest.raises(OutputError, match="read by this very command"):
        convert(NetworkSpec(str(tmp_path / "m.h5")), tmp_path / "m.h5", overwrite=True)
