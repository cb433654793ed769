"""The example trainer: its two files are the same network, and both readers extract the same states from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simtool.importing import resolve
from simtool.networks import NetworkSpec
from simtool.stages.extract import extract
from simtool.states import open_states

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "train_mlp.py")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_readers_give_the_same_states(tmp_path: Path) -> None:
    arguments = [
        "--data",
        "digits",
        "--sizes",
        "64-24-12-10",
        "--epochs",
        "15",
        "--batch",
        "32",
        "-o",
        str(tmp_path),
    ]
    result = CliRunner().invoke(resolve(f"{EXAMPLE}:main"), arguments)
    assert result.exit_code == 0, result.output
    accuracy = float(result.stdout.split("test accuracy ")[1].split(" %")[0])
    assert accuracy > 75
    pytorch = NetworkSpec(f"{EXAMPLE}:mlp", ("sizes=64-24-12-10",), tmp_path / "mlp.safetensors")
    extract(pytorch, "digits", output=tmp_path / "t.h5")
    extract(str(tmp_path / "mlp.onnx"), "digits", output=tmp_path / "o.h5")
    with open_states(tmp_path / "t.h5") as one, open_states(tmp_path / "o.h5") as two:
        assert one.blocks == two.blocks
        assert one.baseline_nnz == two.baseline_nnz
        assert one.data_sha256 == two.data_sha256
        for block in one.blocks:
            bound = 1e-5 * max(1.0, float(np.abs(one.Z[block.rows]).max()))
            assert np.abs(one.Z[block.rows] - two.Z[block.rows]).max() <= bound
            assert np.abs(one.X[block.rows] - two.X[block.rows]).max() <= bound
        scores = one.Y[()].argmax(axis=0)
        assert (scores == one.labels).mean() > 0.9
