"""``simtool resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.engine import engine_options, taken_engine
from simtool.cli.output import common_options, progress_for
from simtool.cli.sparsify import show


@click.command(
    epilog="Example: simtool resume run --engine process", short_help="Go on with a run that was interrupted."
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--states", type=click.Path(path_type=Path), help="The states file, if it has moved.")
@click.option(
    "--objective", metavar="MODULE:FUNCTION", help="Repeats an objective of your own, whose code is run."
)
@engine_options(None)
@common_options
def command(run: Path, states: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Solve what is missing of RUN, on the engine it was started with or another; with slurm, submit only that."""
    from simtool.stages.sparsify.folder import RunFolder
    from simtool.stages.sparsify.stage import resume

    objective = options.pop("objective")
    where, allow_mixed = taken_engine(options)
    result = resume(
        run,
        states=states,
        objective=objective,
        engine=where,
        allow_mixed=allow_mixed,
        progress=progress_for(quiet),
    )
    show(result, as_json, float(RunFolder(run).read_spec()["options"]["tol"]))
