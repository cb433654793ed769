"""``simtool cancel``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from simtool.cli.output import common_options, emit


@click.command(epilog="Example: simtool cancel run", short_help="Stop a run; what is finished is kept.")
@click.argument("run", type=click.Path(path_type=Path))
@common_options
def command(run: Path, as_json: bool, quiet: bool) -> None:
    """Take the jobs of RUN out of SLURM's queue, or stop the process of this machine that works on it."""
    del quiet
    from simtool.stages.sparsify.status import cancel

    found, again = cancel(run), shlex.quote(str(run))
    if found["jobs"]:
        words = f"{found['jobs']} task{'s' if found['jobs'] > 1 else ''} taken from the queue. simtool resume {again} goes on with it."
    elif found["stopped"]:
        words = f"process {found['stopped']} stopped. simtool resume {again} goes on with it."
    else:
        words = "nothing works on it."
    emit(found, as_json, f"{run}: {words}")
