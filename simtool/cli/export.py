"""``simtool export``."""

from __future__ import annotations

from pathlib import Path

import click

from simtool.cli.options import network_options, optional_network
from simtool.cli.output import common_options, emit


@click.command(
    epilog="Example: simtool export run -o net.onnx",
    short_help="A model for other runtimes: ONNX, PyTorch, sparse safetensors.",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="net.onnx, net.safetensors (sparse), or net.pt2 (acyclic models).",
)
@click.option(
    "--network",
    metavar="NETWORK",
    help="The network that MODEL came from: write it with the sparse weights in the place of its own (.onnx, .safetensors, .pt).",
)
@network_options()
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="Type of the exported weights.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@common_options
def command(
    model: Path,
    output: Path,
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    dtype: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL (a RUN folder or its model.h5) for another runtime, run the file there and compare its outputs."""
    from simtool.stages.export import export

    spec = optional_network(network, model_arg, weights, input_shape, trust_model)
    result = export(model, output, network=spec, dtype=dtype, overwrite=overwrite)
    share = (
        f", {100 * result['sparsity']:.1f} % of the baseline's {result['baseline_nnz']} are gone"
        if result["baseline_nnz"]
        else ""
    )
    human = (
        f"{result['output']}: {result['bytes'] / 1e3:.1f} kB, {result['dtype']}, {result['nnz']} non-zeros{share}\n"
        f"outputs on {result['samples_checked']} samples differ from the model's by at most {result['max_difference']:.2g}\n"
        f"weights stored densely {result['dense_bytes'] / 1e3:.1f} kB, sparsely {result['sparse_bytes'] / 1e3:.1f} kB (float32)\n"
        f"{result['speed_note']}"
    )
    emit(result, as_json, human)
