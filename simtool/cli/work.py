"""``simtool work``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.output import common_options, emit, progress_for
from simtool.cli.sparsify import describe


@click.command(
    epilog="Example: simtool work run --phase rows --part 3 --parts 8",
    short_help="One part of a run, for batch systems.",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--phase",
    type=click.Choice(["tiles", "prepare", "paths", "rows", "merge", "all"]),
    required=True,
    help="In this order; all is the whole run.",
)
@click.option("--part", type=int, default=0, show_default=True, help="Which part, from 0.")
@click.option("--parts", type=int, default=1, show_default=True, help="Of how many.")
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    help="A JSON list of the tiles or shards to divide. [default: all]",
)
@click.option(
    "--objective", metavar="MODULE:FUNCTION", help="Repeats an objective of your own, whose code is run."
)
@click.option("--workers", type=int, default=1, show_default=True, help="Processes of this part.")
@click.option("--ray-address", metavar="ADDRESS", help="Solve on this Ray cluster instead; for --phase all.")
@common_options
def command(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Do one part of one phase of RUN: what the jobs of --engine slurm call, and those of any other batch system can.

    A phase begins when all parts of the one before have ended. What is there already is skipped.
    """
    from simtool.stages.sparsify.batch import work

    found = work(run, progress=progress_for(quiet), **options)
    if "model" in found:
        emit(found, as_json, describe(found))
    else:
        emit(found, as_json, f"{found['phase']}: {found['done']} done")
