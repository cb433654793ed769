"""How far can features be eliminated? Accuracy and error against the fraction removed (OOD report, Figure 9).

    python examples/feature_elimination.py -o curves

Two cases: the FashionMNIST network 784-64-32-16-10 (896 features: 112 states and 784 pixels), and a regression on
scikit-learn's diabetes table with a network 10-32-16-1 (58 features). Each point is a run of
``simtool sparsify --eliminate heuristic --features F`` evaluated on the test split. Writes ``curves.json`` and
``curves.png``, and the runs they come from; the same command again resumes. A few minutes on one core.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from train_mlp import load, mlp, save, train

import simtool
from simtool.data import open_data

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CASES = ("fashion-mnist", "diabetes")


def table_mlp() -> nn.Sequential:
    """Ten columns in, one number out."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))


def curve(
    states: Path, data: str, network: simtool.NetworkSpec, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One run and one evaluation for every fraction, and what safe elimination proves about the same rows."""
    sizes = simtool.inspect(states)
    total = sizes["states"] + sizes["inputs"] - 1
    proven = simtool.sparsify(
        states, folder / "safe", simtool.SparsifyOptions(**options, eliminate="safe"), engine="serial"
    )
    points = []
    for fraction in FRACTIONS:
        wanted = max(1, total - math.floor(fraction * total))
        run, report = folder / f"keep-{wanted}", folder / f"keep-{wanted}-report"
        result = simtool.sparsify(
            states,
            run,
            simtool.SparsifyOptions(**options, eliminate="heuristic", features=wanted),
            engine="serial",
        )
        measured = simtool.evaluate(run, data, baseline=network, output=report, overwrite=True)
        rounds = simtool.inspect(run)["elimination"]["rounds"]
        points.append(
            {
                "features": wanted,
                "eliminated": 1.0 - wanted / total,
                "accuracy": measured["accuracy"],
                "mse": measured["mse"],
                "state_mse": rounds[-1]["mse"],
                "rounds": len(rounds),
                "nnz": result["nnz"],
                "certified": result["certified"],
                "rows": result["rows"],
                "seconds": result["seconds"],
            }
        )
        shown = {k: points[-1][k] for k in ("features", "accuracy", "mse", "nnz")}
        click.echo(f"{folder.name}: {shown}", err=True)
    return {
        "features": total,
        "options": options,
        "baseline_accuracy": measured["baseline_accuracy"],
        "baseline_mse": measured["baseline_mse"],
        "proven_inactive": proven["eliminated_features"],
        "proven_inactive_per_row_mean": proven["eliminated_per_row_mean"],
        "points": points,
    }


def fashion_mnist(folder: Path, samples: int) -> dict[str, Any]:
    """The classification case of the report: its network, and its number of features."""
    weights = folder / "mlp.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        inputs, labels = load(open_data("fashion-mnist", "train"))
        network = mlp()
        train(network, inputs, labels, 12, 128, 2e-3)
        save(network, folder, inputs.shape[1])
    spec = simtool.NetworkSpec(str(folder / "mlp.onnx"))
    states = folder / "states.h5"
    if not states.exists():
        simtool.extract(spec, "fashion-mnist", samples=samples, output=states)
    # The loss is a sum over samples: the penalty grows with their number.
    options = {"objective": "l1", "beta": 3.0 * samples / 2000}
    return curve(states, "fashion-mnist", spec, options, folder)


def diabetes(folder: Path) -> dict[str, Any]:
    """A regression on a real table: 442 patients, ten measurements, the disease's progression after a year."""
    from safetensors.torch import save_file
    from sklearn.datasets import load_diabetes

    folder.mkdir(parents=True, exist_ok=True)
    table = load_diabetes(scaled=False)
    order = np.random.default_rng(0).permutation(len(table.target))
    here, there = order[:342], order[342:]
    mean, deviation = table.data[here].mean(axis=0), table.data[here].std(axis=0)
    inputs = ((table.data - mean) / deviation).astype(np.float32)
    target = ((table.target - table.target[here].mean()) / table.target[here].std()).astype(np.float32)
    for name, rows in (("train", here), ("test", there)):
        np.savez(folder / f"{name}.npz", inputs=inputs[rows], labels=target[rows, None])

    weights = folder / "table.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        network = table_mlp()
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.3)
        u, y = torch.from_numpy(inputs[here]), torch.from_numpy(target[here, None])
        for _ in range(150):
            loss = nn.functional.mse_loss(network(u), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    spec = simtool.NetworkSpec(f"{__file__}:table_mlp", weights=weights)
    states = folder / "states.h5"
    if not states.exists():
        simtool.extract(spec, str(folder / "train.npz"), output=states)
    return curve(states, str(folder / "test.npz"), spec, {"objective": "l1", "beta": 0.05}, folder)


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a case: the score against the percentage eliminated, the baseline dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(found), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, case) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        kind, factor = ("accuracy", 100.0) if case["baseline_accuracy"] is not None else ("mse", 1.0)
        x = [100.0 * point["eliminated"] for point in case["points"]]
        axes.plot(x, [factor * point[kind] for point in case["points"]], "o-", label="implicit model")
        axes.axhline(factor * case[f"baseline_{kind}"], ls="--", color="grey", label="baseline network")
        proven = 100.0 * case["proven_inactive"] / case["features"]
        axes.axvline(proven, ls=":", color="tab:green", label="proven inactive in all rows")
        axes.set_xlabel(f"% of {case['features']} features eliminated")
        axes.set_ylabel("test accuracy, %" if kind == "accuracy" else "test mean square error")
        axes.set_title(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


@click.command()
@click.option(
    "--case", "cases", type=click.Choice(CASES), multiple=True, help="Only this one. [default: both]"
)
@click.option("--samples", type=click.IntRange(1), default=2000, show_default=True, help="Of FashionMNIST.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("curves"), show_default=True)
def main(cases: tuple[str, ...], samples: int, output: Path) -> None:
    """Eliminate features down to a twentieth, and plot what that costs."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name in cases or CASES:
        folder = output / name
        folder.mkdir(exist_ok=True)
        found[name] = fashion_mnist(folder, samples) if name == "fashion-mnist" else diabetes(folder)
    (output / "curves.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, output / "curves.png")
    for name, case in found.items():
        kind = "accuracy" if case["baseline_accuracy"] is not None else "mse"
        click.echo(f"{name}: baseline {kind} {case[f'baseline_{kind}']:.4f}, {case['features']} features")
        for point in case["points"]:
            click.echo(
                f"  {point['eliminated']:6.1%} eliminated  {kind} {point[kind]:.4f}  nnz {point['nnz']}"
            )
    click.echo(f"written to {output / 'curves.json'} and {output / 'curves.png'}")


if __name__ == "__main__":
    main()
