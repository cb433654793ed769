"""The demo: a small network trained on the digits of scikit-learn, taken through every stage."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.data import open_data
from simtool.errors import OutputError
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.report import evaluate
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

if TYPE_CHECKING:
    import torch

NETWORK = "simtool.demo:network"
_MARK = "made-by-simtool-demo"
_EPOCHS = 60
_BATCH = 64
_OPTIONS = SparsifyOptions(objective="l1", beta=4.0)


def network() -> torch.nn.Module:
    """The demo's network, 64-48-32-10 with ReLU; a NETWORK as ``simtool.demo:network``."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(inplace=True), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def train(path: Path, progress: Progress = NO_PROGRESS, seed: int = 0) -> None:
    """Train the demo's network on the digits' training split and store its weights as safetensors."""
    import torch
    from safetensors.torch import save_file

    source = open_data("digits", "train")
    inputs = np.concatenate(list(source.batches(np.arange(source.count), 512)))
    labels = source.labels()
    assert labels is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = network()
            x, y = torch.from_numpy(inputs.reshape(len(inputs), -1)), torch.from_numpy(np.asarray(labels))
            optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
            progress.start(_EPOCHS, "epochs", "training")
            for _ in range(_EPOCHS):
                for batch in torch.randperm(len(x)).split(_BATCH):
                    optimiser.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimiser.step()
                progress.advance()
            progress.finish()
    finally:
        torch.set_num_threads(threads)
    save_file(model.state_dict(), path)


def demo(output: str | Path = "simtool-demo", *, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
    """Train, extract, sparsify, evaluate and report, into the folder ``output``.

    A folder left by an earlier demo is replaced; any other existing folder is refused (OutputError). Returns the
    results of the stages under ``extract``, ``sparsify`` and ``evaluate``, and the ``report`` and ``seconds``.
    """
    started = time.perf_counter()
    folder = Path(output)
    if folder.exists():
        if not (folder / _MARK).is_file():
            raise OutputError(f"{folder} exists and is not an earlier demo. Choose another -o.")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}. Choose another -o.") from error
    weights = folder / "network.safetensors"
    train(weights, progress)
    spec = NetworkSpec(NETWORK, weights=weights)
    extracted = extract(spec, "digits", split="train", output=folder / "states.h5", progress=progress)
    sparsified = sparsify(folder / "states.h5", folder / "run", _OPTIONS, progress=progress)
    evaluated = evaluate(
        folder / "run",
        "digits",
        split="test",
        baseline=spec,
        attack="fgsm",
        epsilons=("0.02", "0.05"),
        output=folder / "report",
        progress=progress,
    )
    return {
        "extract": extracted,
        "sparsify": sparsified,
        "evaluate": evaluated,
        "report": str(folder / "report" / "report.html"),
        "seconds": time.perf_counter() - started,
    }
