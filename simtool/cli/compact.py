"""``simtool compact``."""

from __future__ import annotations

from pathlib import Path

import click

from simtool.cli.output import common_options, emit


@click.command(
    epilog="Example: simtool compact run -o small.h5",
    short_help="The same model without states that nothing needs.",
)
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The model file (.h5) to write."
)
@click.option(
    "--keep-constants",
    is_flag=True,
    help="Leave states that are constant where they are: no row that is kept changes, and all keep their certificates.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common_options
def command(
    model: str, output: Path, keep_constants: bool, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Write MODEL, a run or a model.h5, without states that no output depends on and without states that no input moves.

    The latter become part of the biases. Outputs stay what they are, and are compared before anything is written. The
    inputs keep their number, so that the same data fit; those that nothing reads are counted and, with --json, listed.
    """
    from simtool.stages.compact import compact

    result = compact(model, output, fold_constants=not keep_constants, overwrite=overwrite)
    by = f"well-posed ({result['well_posed_by']})" if result["well_posed"] else "well-posedness not proven"
    lines = [
        f"{result['states']} of {result['states_before']} states are left: no output depends on {result['dead_states']}, "
        f"{result['constant_states']} are constant; {by}",
        f"{result['nnz']} of {result['nnz_before']} non-zeros; {result['inputs_unread']} of {result['sample_size']} inputs are read by nothing",
    ]
    if result["certified"] is not None:
        lines.append(
            f"{result['certified']} of {result['rows']} rows are certified; {result['rows_changed']} took constants into their "
            "biases, so that their certificates no longer hold"
        )
    if result["layers_dropped"]:
        lines.append(
            "the sparse layers, and the certificates of their rows, belong to the network and are left out"
        )
    if result["not_compared"] is not None:
        lines.append(f"outputs could not be compared: {result['not_compared']}")
    else:
        lines.append(
            f"outputs differ by at most {result['max_output_difference']:.1e}, relative to max(1, |y|)"
        )
    lines.append(f"{result['model']}: {result['bytes'] / 1e3:.1f} kB in {result['seconds']:.1f} s")
    emit(result, as_json, "\n".join(lines))
