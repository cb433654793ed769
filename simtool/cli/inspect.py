"""``simtool inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.options import network_options, network_spec
from simtool.cli.output import common_options, emit


@click.command(
    epilog="Example: simtool inspect run --row 3", short_help="What a network, states, run or model holds."
)
@click.argument("file")
@click.option("--row", type=int, help="Show this row of a run or model, with its certificate.")
@click.option("--dump", type=click.Path(path_type=Path), help="Write the problem of --row to this .npz file.")
@click.option("--states", type=click.Path(path_type=Path), help="The states file of the run, for --dump.")
@click.option("--solver", help="Solve a dumped row again with this solver. [default: the run's own]")
@network_options()
@common_options
def command(
    file: str,
    row: int | None,
    dump: Path | None,
    states: Path | None,
    solver: str | None,
    model_arg: Any,
    weights: Path | None,
    input_shape: Any,
    trust_model: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what FILE holds: a network, a states file, a run folder or a model.

    Of a network: whether all of it is a graph of affine forms and activations, its linear layers with their rows, features and positions,
    and every operator as taken, passed through, glue (computed by the network's own runtime) or left, with the reason.

    One row of a run can be written to a file with --dump; that file, as FILE, is solved again and its certificate shown.
    """
    del quiet
    from simtool.stages.inspect import inspect

    spec = network_spec(file, model_arg, weights, input_shape, trust_model)
    result = inspect(file, row=row, network=spec, dump=dump, states=states, solver=solver)
    emit(result, as_json, describe(result))


def describe(result: dict[str, Any]) -> str:
    """The facts, one a line; blocks and operators as tables."""
    lines: list[str] = []
    tables: list[str] = []
    _collect(result, "", lines, tables)
    return "\n".join([*_aligned(lines), *tables])


def _collect(facts: dict[str, Any], prefix: str, lines: list[str], tables: list[str]) -> None:
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            _collect(value, f"{prefix}{key}.", lines, tables)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append(_table(name, value))
        elif isinstance(value, list) and len(value) > 12:
            shown = ", ".join(_text(item) for item in value[:12])
            lines.append(f"{name}\t{shown}, ... ({len(value)} in all)")
        else:
            lines.append(f"{name}\t{_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) if value else "-"
    return str(value)


def _aligned(lines: list[str]) -> list[str]:
    pairs = [line.split("\t", 1) for line in lines]
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {value}" for name, value in pairs]


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    header = list(rows[0])
    cells = [header, *([_text(row[key]) for key in header] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    body = "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return f"\n{title}\n{body}"
