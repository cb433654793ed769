"""``simtool demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.output import common_options, emit, progress_for


@click.command(epilog="Example: simtool demo", short_help="The whole path on the digits data.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("simtool-demo"),
    show_default=True,
    help="The folder for everything the demo makes; an earlier demo there is replaced.",
)
@common_options
def command(output: Path, as_json: bool, quiet: bool) -> None:
    """Train a small network on scikit-learn's digits, turn it into a sparse implicit model, and report on it."""
    from simtool.demo import demo

    result = demo(output, progress=progress_for(quiet))
    emit(result, as_json, describe(result))


def describe(result: dict[str, Any]) -> str:
    """What the demo did, as a table."""
    extracted, sparse, measured = result["extract"], result["sparsify"], result["evaluate"]
    epsilons = list(measured["robust_accuracy"])
    rows = [
        ("", "network", "implicit model"),
        ("test accuracy", f"{measured['baseline_accuracy']:.2%}", f"{measured['accuracy']:.2%}"),
        (
            "non-zero parameters",
            f"{sparse['baseline_nnz']}",
            f"{sparse['nnz']} ({sparse['sparsity']:.1%} sparse)",
        ),
        *(
            (
                f"accuracy under FGSM {epsilon}",
                f"{measured['baseline_robust_accuracy'][epsilon]:.2%}",
                f"{measured['robust_accuracy'][epsilon]:.2%}",
            )
            for epsilon in epsilons
        ),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )
    proof = (
        f"{sparse['certified']} of {sparse['rows']} rows certified optimal "
        f"(largest relative gap {sparse['max_relative_gap']:.1e}), well-posed: {sparse['well_posed_by']}"
    )
    return (
        f"{table}\n\n{proof}\n"
        f"matched on {extracted['samples']} samples without their labels, in {sparse['solve_seconds']:.2f} s; "
        f"everything in {result['seconds']:.0f} s\n"
        f"report: {result['report']}"
    )
