"""``simtool convert``."""

from __future__ import annotations

from pathlib import Path

import click

from simtool.cli.options import network_options, network_spec
from simtool.cli.output import common_options, emit


@click.command(
    epilog="Example: simtool convert net.onnx -o model.h5",
    short_help="The exact implicit form of a network.",
)
@click.argument("network")
@network_options()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The model file (.h5) to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common_options
def command(
    network: str,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the exact implicit form (A, B, C, D) of NETWORK; its outputs are the network's own."""
    from simtool.stages.convert import convert

    spec = network_spec(network, model_arg, weights, input_shape, trust_model)
    result = convert(spec, output, overwrite=overwrite)
    by = f"well-posed ({result['well_posed_by']})" if result["well_posed"] else "well-posedness not proven"
    human = (
        f"{result['states']} states, {result['inputs']} inputs with the bias, {result['outputs']} outputs, {result['nnz']} "
        f"non-zeros (the network has {result['baseline_nnz']} non-zero parameters), {by}\n"
        f"{result['model']}: {result['bytes'] / 1e6:.1f} MB in {result['seconds']:.1f} s"
    )
    emit(result, as_json, human)
