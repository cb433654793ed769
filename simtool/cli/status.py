"""``simtool status``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from simtool.cli.output import common_options, emit, table
from simtool.progress import format_seconds

_MOST_ERRORS = 5


@click.command(epilog="Example: simtool status run", short_help="Where a run stands.")
@click.argument("run", type=click.Path(path_type=Path))
@common_options
def command(run: Path, as_json: bool, quiet: bool) -> None:
    """Shards of RUN that are done, running and failed, how long it will take, and its jobs in the queue."""
    del quiet
    from simtool.stages.sparsify.status import status

    found = status(run)
    emit(found, as_json, describe(found))


def describe(found: dict[str, Any]) -> str:
    """The object of :func:`simtool.status` in a few aligned lines."""
    worker, eta, slowest = found["worker"], found["eta_seconds"], found["slowest"]
    by = f", by process {worker['pid']} on {worker['host']}" if worker else ""
    lines = [
        ("run", found["run"]),
        ("state", f"{found['state']} ({found['engine'] or 'engine unknown'}{by})"),
        (
            "shards",
            f"{found['done']} of {found['shards']} done, {found['running']} running, {found['failed']} failed",
        ),
        ("rows", f"{found['rows_done']} of {found['rows']} done, {found['certified']} certified"),
    ]
    if found["tiles"] and found["rows_done"] < found["rows"]:
        lines.append(("Gram tiles", f"{found['tiles_done']} of {found['tiles']}"))
    if found["paths"] and found["rows_done"] < found["rows"]:
        lines.append(("paths", f"{found['paths_done']} of {found['paths']} shards"))
    if eta is not None:
        lines.append(("ETA", format_seconds(eta)))
    if slowest is not None:
        first, last = slowest["rows"][0], slowest["rows"][1] - 1
        each = f"{1e3 * slowest['seconds_per_row']:.3g} ms a row"
        lines.append(("slowest", f"rows {first} to {last}, {slowest['block']}: {each}"))
    for job in found["jobs"]:
        why = f" ({job['reason']})" if job["reason"] else ""
        lines.append(
            (f"job {job['id']}", f"{job['phase']}: {job['running']} running, {job['pending']} pending{why}")
        )
    errors = found["errors"]
    lines += [("failed", f"{e['phase']} {e['item']}: {e['error']}") for e in errors[:_MOST_ERRORS]]
    if len(errors) > _MOST_ERRORS:
        lines.append(("", f"and {len(errors) - _MOST_ERRORS} more"))
    logs = Path(found["run"]) / "slurm" / "log"
    if found["state"] != "finished" and logs.is_dir():
        lines.append(("jobs' words", str(logs)))
    if found["state"] == "stopped":
        states = "" if found["engine"] else " --states STATES"
        lines.append(("next", f"simtool resume {shlex.quote(found['run'])}{states}"))
    return table(lines)
