"""``simtool extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.options import data_options, network_options, network_spec
from simtool.cli.output import common_options, emit, progress_for


@click.command(
    epilog="Example: simtool extract examples/train_mlp.py:mlp --weights mlp.safetensors --data fashion-mnist --samples 2000 "
    "-o states.h5",
    short_help="Run a network over data and store its states.",
)
@click.argument("network")
@data_options("train")
@network_options()
@click.option(
    "--rescale",
    type=click.Choice(["none", "uniform", "layer", "neuron"]),
    default="none",
    show_default=True,
    help="Scale the states so that ||A||_inf < 1 (relu-like activations only; `free` needs it).",
)
@click.option(
    "--gamma", type=float, default=1.1, show_default=True, help="Margin of --rescale uniform, above 1."
)
@click.option(
    "--batch-size", type=int, help="Samples at a time. [default: what fits into 32 MiB, at most 1024]"
)
@click.option(
    "--blocks",
    multiple=True,
    metavar="GLOB",
    help="Blocks whose states are stored (for `dag` and `free`); `none` for none. Repeatable. [default: all; of a network with "
    "shared weights only where they take less than 4 GiB]",
)
@click.option(
    "--positions",
    type=int,
    help="Positions of each sample that become columns of a layer with shared weights. [default: what gives 10 000 columns, or 16 "
    "for each feature of a row]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The states file (.h5) to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing states file.")
@common_options
def command(
    network: str,
    data: str,
    split: str,
    samples: int | None,
    seed: int,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    rescale: str,
    gamma: float,
    batch_size: int | None,
    blocks: tuple[str, ...],
    positions: int | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run NETWORK over DATA and store inputs, pre-activations, states and outputs.

    NETWORK is a .onnx file, package.module:factory or file.py:factory, or a model.h5.
    """
    from simtool.stages.extract import extract

    result = extract(
        network_spec(network, model_arg, weights, input_shape, trust_model),
        data,
        split=split,
        samples=samples,
        seed=seed,
        rescale=rescale,
        gamma=gamma,
        batch_size=batch_size,
        blocks=blocks or None,
        positions=positions,
        output=output,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    lines = [f"  {b['name']:<16} {b['activation']:<16} {b['size']:>8} states" for b in result["blocks"]]
    human = "\n".join(
        [
            f"{result['samples']} samples, {result['inputs']} inputs with the bias, {result['states']} states, "
            f"{result['outputs']} outputs (last hidden layer first):",
            *lines,
            *_layers(result),
            f"||A||_inf {_number(result['norm_a_inf'])} (rescale {result['rescale']}), largest relative error of X = phi(Z) "
            f"{result['max_reconstruction_error']:.2g}",
            f"{result['output']}: {result['bytes'] / 1e6:.1f} MB in {result['seconds']:.1f} s",
        ]
    )
    emit(result, as_json, human)


def _number(value: float | None) -> str:
    return "not known (not all states are stored)" if value is None else f"{value:.4g}"


def _layers(result: dict[str, Any]) -> list[str]:
    """The layers whose weights are shared over positions."""
    if not result["layers"]:
        return []
    width = max(len(layer["name"]) for layer in result["layers"])
    return ["layers of shared weights, whose rows are fitted on positions as samples:"] + [
        f"  {layer['name']:<{width}}  {layer['rows']:>5} rows of {layer['features'] // layer['groups']:>5} features, "
        f"{layer['columns']} columns of {layer['positions']} positions a sample"
        for layer in result["layers"]
    ]
