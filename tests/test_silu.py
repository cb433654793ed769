"""A biased silu network in a free structure: the Lipschitz constant, not the bare norm, decides well-posedness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse
from scipy.optimize import brentq
from torch import nn

from simtool.activations import make
from simtool.blocks import BIAS, INPUT, Block
from simtool.errors import OptionError
from simtool.model import ImplicitModel, load_model
from simtool.networks import NetworkSpec
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 24),
        nn.SiLU(),
        nn.Linear(24, 16),
        nn.SiLU(),
        nn.Linear(16, 12),
        nn.SiLU(),
        nn.Linear(12, 10),
    )


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silu")
    torch.manual_seed(0)
    save_file(network().state_dict(), folder / "w.safetensors")
    spec = NetworkSpec(f"{__file__}:network", weights=folder / "w.safetensors")
    extract(spec, "digits", samples=400, output=folder / "states.h5")
    return folder / "states.h5"


def test_kappa_respects_the_lipschitz_constant(states: Path, tmp_path: Path) -> None:
    options = SparsifyOptions(objective="elastic-net", structure="free")
    with pytest.raises(OptionError, match=r"\[0, 0\.909223\).*1\.09984"):
        sparsify(states, tmp_path / "no", replace(options, kappa=0.95))
    result = sparsify(states, tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"] == 62
    assert result["well_posed_by"] == "norm"
    model = load_model(tmp_path / "run")
    assert 1.09984 * model.norm_a_inf_raw < 1
    inputs = np.random.default_rng(0).random((20, 64))
    out = model.forward(model.states_inputs(inputs))
    assert out.converged.all()


def test_a_norm_below_one_alone_is_refused(states: Path, tmp_path: Path) -> None:
    """A = .95 P with silu: ||A||_inf < 1 and yet 1.0998 * .95 > 1, so nothing is proven."""
    sparsify(states, tmp_path / "run", SparsifyOptions(objective="l1", structure="free"), engine="serial")
    model = load_model(tmp_path / "run")
    shift = sparse.csr_array(0.95 * np.roll(np.eye(model.n), 1, axis=1))
    tampered = replace(model, A=shift, certificates=None, scale=None)
    verdict = tampered.well_posedness()
    assert tampered.norm_a_inf_raw < 1
    assert not verdict.well_posed
    assert verdict.by is None
    relu = tuple(replace(block, activation=make("relu")) for block in model.blocks)
    assert replace(tampered, blocks=relu).well_posedness().by == "norm"


def test_gelu_below_norm_one_can_have_three_solutions() -> None:
    """x = gelu(.99 x + .04): three fixed points, so the verdict must refuse it although |A| < 1."""
    gelu = make("gelu")

    def excess(x: float) -> float:
        return float(gelu(np.array([0.99 * x + 0.04]))[0] - x)

    grid = np.linspace(-5, 5, 20_001)
    values = [excess(x) for x in grid]
    roots = [
        brentq(excess, a, b)
        for a, b, u, v in zip(grid, grid[1:], values, values[1:], strict=False)
        if u * v < 0
    ]
    assert len(roots) == 3
    model = ImplicitModel(
        A=sparse.csr_array([[0.99]]),
        B=sparse.csr_array([[1.0, 0.04]]),
        C=sparse.csr_array([[1.0]]),
        D=sparse.csr_array((1, 2)),
        blocks=(Block("g", gelu, 0, 1, (1,), ("g", INPUT, BIAS)),),
    )
    assert model.norm_a_inf_raw == 0.99
    assert not model.well_posedness().well_posed
