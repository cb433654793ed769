"""Fixtures shared by the tests: a trained network, its states, and data that may not be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run; `make stress` draws new ones (HYPOTHESIS_PROFILE=default).
# No test has a wall-clock limit: a busy machine is no fault.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fresh", deadline=None)
settings.load_profile("fresh" if os.environ.get("HYPOTHESIS_PROFILE") else "repeatable")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network trained on digits (``weights``) and its states on 300 training samples (``states``)."""
    from simtool.demo import NETWORK, train
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    folder = tmp_path_factory.mktemp("digits")
    weights, states = folder / "network.safetensors", folder / "states.h5"
    train(weights)
    extract(NetworkSpec(NETWORK, weights=weights), "digits", samples=300, output=states)
    return {"weights": weights, "states": states, "folder": folder}


@pytest.fixture(scope="session")
def fashion() -> str:
    """The name ``fashion-mnist`` if it is installed or can be downloaded; else the test says so and skips."""
    from simtool.data import open_data
    from simtool.errors import InputError

    try:
        open_data("fashion-mnist", "test")
    except InputError as error:
        pytest.skip(f"FashionMNIST is not here (Debian: apt-get install dataset-fashion-mnist): {error}")
    return "fashion-mnist"


@pytest.fixture(scope="session")
def case_f(fashion: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case F: the FashionMNIST MLP 784-64-32-16-10, trained by the example script, as safetensors and ONNX."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("case-f")
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_mlp.py"), "-o", str(folder)],
        check=True,
        capture_output=True,
    )
    return {
        "weights": folder / "mlp.safetensors",
        "onnx": folder / "mlp.onnx",
        "factory": Path(f"{ROOT / 'examples' / 'train_mlp.py'}:mlp"),
        "folder": folder,
    }
