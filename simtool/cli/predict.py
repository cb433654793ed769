"""``simtool predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.options import data_options, network_options, optional_network
from simtool.cli.output import common_options, emit, progress_for


@click.command(
    epilog="Example: simtool predict run --data fashion-mnist -o y.npz",
    short_help="Outputs of a model on data.",
)
@click.argument("model", type=click.Path(path_type=Path))
@data_options("test")
@click.option(
    "--network",
    metavar="NETWORK",
    help="The network that MODEL came from, where it holds sparse layers alone.",
)
@network_options()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz file to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common_options
def command(
    model: Path,
    data: str,
    split: str,
    samples: int | None,
    seed: int,
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the outputs of MODEL (a run folder or its model.h5) on data: arrays outputs, indices, and classes and
    labels where they apply.
    """
    from simtool.stages.predict import predict

    result = predict(
        model,
        data,
        output=output,
        network=optional_network(network, model_arg, weights, input_shape, trust_model),
        split=split,
        samples=samples,
        seed=seed,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    emit(result, as_json, _describe(result))


def _describe(result: dict[str, Any]) -> str:
    return (
        f"{result['samples']} samples, {result['outputs']} outputs each ({', '.join(result['arrays'])}) "
        f"-> {result['output']}"
    )
