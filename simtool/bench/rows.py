"""``simtool bench rows``: the chosen cases one after the other, the pictures, and the report of both."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simtool.bench import cases, machine, table
from simtool.bench.arrays import DATA, Source
from simtool.bench.report_folder import ReportFolder
from simtool.bench.run_case import Result, Settings, run, uncertified
from simtool.errors import InputError, OptionError
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers.warm import warm

_log = logging.getLogger("simtool")
FIGURES = ("gap", "thesis")
_QUICK_PEER_SECONDS = 2.0


@dataclass(frozen=True)
class BenchOptions:
    """What ``simtool bench rows`` is asked for.

    Attributes
    ----------
    names : cases to run, as :data:`simtool.bench.cases.NAMES`; empty for all
    states, network, data : a states file for every case but conv, or the network of case F and its data
    rows : how many rows every peer solves; ``seconds`` : about how long it may take over them (one row at least)
    tol : the relative gap that all are asked for and certified at
    figures : of FIGURES
    quick : sizes of a test
    """

    names: tuple[str, ...] = ()
    states: Path | None = None
    network: NetworkSpec | None = None
    data: str | None = None
    rows: int = 5
    seconds: float = 60.0
    tol: float = 1e-6
    figures: tuple[str, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        known = ("all", "conv", *cases.NAMES)
        for name in self.names:
            if name not in known:
                raise OptionError(f"--case must be one of {', '.join(known)}, got {name!r}.")
        for figure in self.figures:
            if figure not in FIGURES:
                raise OptionError(f"--figure must be one of {', '.join(FIGURES)}, got {figure!r}.")
        if self.rows < 1:
            raise OptionError(f"--rows must be at least 1, got {self.rows}.")
        if not 0.0 < self.seconds < float("inf"):
            raise OptionError(f"--seconds must be a positive number, got {self.seconds!r}.")
        if not 1e-10 <= self.tol <= 1e-2:
            raise OptionError(f"--tol must lie in [1e-10, 1e-2], got {self.tol!r}. The table is for 1e-6.")
        if self.states is not None and (self.network is not None or self.data is not None):
            raise OptionError("--states holds the states already: leave out --network and --data.")
        if self.states is not None and not self.states.is_file():
            raise InputError(f"the states file {self.states} does not exist. Make one with simtool extract.")


def bench_rows(
    options: BenchOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Run the cases, and write the report to the folder ``output`` if one is given.

    Returns the JSON object of the command: machine, lines (the speed table), cases, uncertified, seconds, report; and
    ``text`` and ``markdown``, the tables as printed. Raises OptionError, InputError or OutputError.
    """
    started = time.perf_counter()
    if output is None and options.figures:
        raise OptionError("--figure draws into the report: name a folder for it with -o REPORT.")
    if output is not None:
        _folder(output).check(overwrite)
    _log.info("every figure is CPU time of one thread; %s", "quick sizes" if options.quick else "full sizes")
    with tempfile.TemporaryDirectory(prefix="simtool-bench-") as scratch, machine.one_thread():
        warm("native")
        data = options.data or ("digits" if options.quick and options.states is None else DATA)
        settings = Settings(
            source=Source(options.states, options.network, data),
            folder=Path(scratch),
            tolerance=options.tol,
            peer_rows=options.rows,
            peer_seconds=min(options.seconds, _QUICK_PEER_SECONDS) if options.quick else options.seconds,
            quick=options.quick,
        )
        described = machine.describe()
        results = _cases(options, settings, progress)
        drawn = _Drawn()
        # Cases may take most of an hour, and so may pictures: what is done is on disk before the next begins.
        for figure in (None, *options.figures):
            if figure is not None:
                _figure(figure, options, settings, drawn)
            content = _content(options, results, described, drawn.numbers)
            content["seconds"] = time.perf_counter() - started
            lines = [line for result in results for line in result.lines]
            place = machine.one_line(described)
            if options.quick:
                place = f"--quick: sizes of a test, whatever the lines are called; {place}"
            tables = {"text": _text(results, lines, place), "markdown": table.markdown(lines, place)}
            if output is not None:
                page = _page(results, tables["markdown"], drawn)
                named = {
                    f"{name}.{kind}": data
                    for name, kinds in drawn.pictures.items()
                    for kind, data in kinds.items()
                }
                _folder(output).write(content, page, named)
    return {**content, "report": None if output is None else str(output), **tables}


@dataclass
class _Drawn:
    """Pictures as PNG and SVG by name, and their numbers by figure."""

    pictures: dict[str, dict[str, bytes]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def _cases(options: BenchOptions, settings: Settings, progress: Progress) -> list[Result]:
    # Pictures alone need no case.
    names = () if options.figures and not options.names else cases.chosen(options.names)
    results = []
    progress.start(len(names), "cases", "bench rows")
    for name in names:
        progress.note(name)
        results.append(run(name, settings))
        progress.advance()
    progress.finish()
    return results


def _figure(name: str, options: BenchOptions, settings: Settings, drawn: _Drawn) -> None:
    """Add the pictures and numbers of one of FIGURES to ``drawn``."""
    if name == "gap":
        from simtool.bench import curves

        drawn.numbers["gap"], drawn.pictures["gap"] = curves.gap_against_time(settings, options.names)
    else:
        from simtool.bench import thesis

        drawn.numbers["thesis"], pictures = thesis.reproduce(settings)
        drawn.pictures.update(pictures)


def _content(
    options: BenchOptions, results: Sequence[Result], described: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    lines = [line for result in results for line in result.lines]
    return {
        "machine": described,
        "quick": options.quick,
        "tol": options.tol,
        "lines": [{**asdict(line), "met": line.met, "aim_met": line.aim_met} for line in lines],
        "uncertified": uncertified(results),
        "cases": [{k: v for k, v in asdict(result).items() if k != "lines"} for result in results],
        "figures": extra,
    }


def _text(results: Sequence[Result], lines: Sequence[table.Line], place: str) -> str:
    parts = []
    for result in results:
        head = f"{result.title}  ({result.seconds:.0f} s)"
        body = "\n".join(f"  {fact}" for fact in result.facts)
        parts.append(f"{head}\n{body}")
        if result.peers:
            parts.append(table.aligned(table.peer_rows(result.peers)))
    if lines:
        parts.append(table.text(lines))
    parts.append(place)
    return "\n\n".join(parts)


def _page(results: Sequence[Result], speed: str, drawn: _Drawn) -> str:
    """The report as Markdown: first the README's table, then every case, then the pictures."""
    parts = ["# The row solver beside its peers", speed.strip()] if results else ["# The row solver"]
    for result in results:
        parts.append(f"## {result.title}")
        parts.append("\n".join(f"- {fact}" for fact in result.facts))
        if result.peers:
            parts.append(table.as_markdown(table.peer_rows(result.peers)))
    if "thesis" in drawn.numbers:
        parts.append("## Bisection as in the thesis\n\n" + drawn.numbers["thesis"]["markdown"])
    parts += [f"![{name}]({name}.png)" for name in drawn.pictures]
    return "\n\n".join(parts) + "\n"


def _folder(output: Path) -> ReportFolder:
    return ReportFolder(output, "bench.json", "rows.md")
