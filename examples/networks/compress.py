"""Every network of this folder at 80 % sparsity without retraining, from PyTorch and from ONNX, run in ONNX Runtime.

    python examples/networks/compress.py -o compressed                 # a table; compressed/lenet/pytorch/sparse.onnx and so on
    python examples/networks/compress.py lstm gru --sparsity 0.9 -o compressed

For each: extract from unlabelled training samples, sparsify layered to the wanted size, export the network with the sparse weights in the
place of its own, and count what ONNX Runtime classifies rightly on the test split.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime

import simtool
from simtool.data import open_data
from simtool.networks import NetworkSpec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from train import RECIPES, export_onnx  # noqa: E402

SAMPLES = {"digits": None, "fashion-mnist": 6000}
SOURCES = ("pytorch", "onnx")


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    network: str
    source: str
    rows: int
    certified: int
    nnz: int
    baseline_nnz: int
    dense: float
    sparse: float
    kilobytes: float
    seconds: float


def accuracy(model: Path, data: str) -> float:
    """The share of the test split of ``data`` that ONNX Runtime classifies rightly with ``model``."""
    source = open_data(data, "test")
    indices = source.select(None, 0)
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else -1 for size in entry.shape[1:]]
    right, labels = 0, np.asarray(source.labels())[indices]
    done = 0
    for batch in source.batches(indices, 500):
        (scores,) = session.run(None, {entry.name: batch.astype(np.float32).reshape(len(batch), *shape)})
        right += int((scores.argmax(axis=1) == labels[done : done + len(batch)]).sum())
        done += len(batch)
    return right / len(indices)


def compress(name: str, source: str, sparsity: float, folder: Path) -> Result:
    """Take the network ``name``, read from ``source`` (pytorch or onnx), to the ``sparsity`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = folder / "dense.onnx"
    export_onnx(name, dense)
    network = NetworkSpec(str(dense))
    if source == "pytorch":
        network = NetworkSpec(f"{HERE / name}.py:factory", weights=HERE / f"{name}.safetensors")
    data = RECIPES[name].data
    simtool.extract(
        network, data, samples=SAMPLES[data], blocks=("none",), output=folder / "states.h5", overwrite=True
    )
    options = simtool.SparsifyOptions(target_sparsity=sparsity)
    found = simtool.sparsify(folder / "states.h5", folder / "run", options, network=network)
    simtool.evaluate(folder / "run", data, baseline=network, output=folder / "report", overwrite=True)
    written = simtool.export_model(folder / "run", folder / "sparse.onnx", network=network, overwrite=True)
    return Result(
        network=name,
        source=source,
        rows=found["rows"],
        certified=found["certified"],
        nnz=found["nnz"],
        baseline_nnz=found["baseline_nnz"],
        dense=accuracy(dense, data),
        sparse=accuracy(folder / "sparse.onnx", data),
        kilobytes=written["sparse_bytes"] / 1e3,
        seconds=found["seconds"],
    )


def table(results: list[Result]) -> str:
    """Markdown."""
    lines = [
        "| network | read from | rows certified | non-zeros | dense | sparse | as CSR | sparsify |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.network} | {r.source} | {r.certified} of {r.rows} | {r.nnz} of {r.baseline_nnz} | {100 * r.dense:.2f} % | "
        f"{100 * r.sparse:.2f} % | {r.kilobytes:.0f} kB | {r.seconds:.0f} s |"
        for r in results
    ]
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(RECIPES)))
@click.option("--sparsity", type=float, default=0.8, show_default=True)
@click.option(
    "--source", "sources", multiple=True, type=click.Choice(SOURCES), default=SOURCES, show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for runs, reports and networks.",
)
def main(names: tuple[str, ...], sparsity: float, sources: tuple[str, ...], output: Path) -> None:
    """Compress the networks NAMES (all by default) and print a table of their accuracies in ONNX Runtime."""
    results = [
        compress(name, source, sparsity, output / name / source)
        for name in names or tuple(RECIPES)
        for source in sources
    ]
    click.echo(table(results))


if __name__ == "__main__":
    main()
