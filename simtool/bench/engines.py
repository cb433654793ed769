"""``simtool bench engines``: serial, process and Ray side by side, on the same rows and to the same bytes."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from simtool.bench import engines_cases as cases
from simtool.bench import engines_report as report
from simtool.bench import machine
from simtool.bench.arrays import DATA, Source
from simtool.bench.engines_measure import BUSY, Where, side_by_side
from simtool.bench.engines_report import Outcome
from simtool.bench.report_folder import ReportFolder
from simtool.bench.run_case import Settings
from simtool.errors import InputError, OptionError
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers.warm import warm

_log = logging.getLogger("simtool")
ENGINES = ("serial", "process", "ray")


@dataclass(frozen=True)
class EngineBenchOptions:
    """What ``simtool bench engines`` is asked for.

    Attributes
    ----------
    names : of engines_cases.NAMES; empty for all
    engines : of ENGINES, empty for all; serial always runs, as the others are compared with it
    workers : counts of workers; empty for 1, 2, 4 and so on up to the cores, and the cores
    repeats : runs of every engine
    wait : seconds that each run waits at most until other programs leave the machine alone
    states, network, data : a states file in place of the cases, or the network of case F and its data
    quick : sizes of a test, and one run
    """

    names: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    workers: tuple[int, ...] = ()
    repeats: int = 3
    wait: float = 0.0
    states: Path | None = None
    network: NetworkSpec | None = None
    data: str | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in ("all", *cases.NAMES):
                raise OptionError(f"--case must be one of all, {', '.join(cases.NAMES)}, got {name!r}.")
        for engine in self.engines:
            if engine not in ENGINES:
                raise OptionError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}.")
        for count in self.workers:
            if count < 1:
                raise OptionError(f"--workers must be at least 1, got {count}.")
        if self.repeats < 1:
            raise OptionError(f"--repeats must be at least 1, got {self.repeats}.")
        if not 0.0 <= self.wait < float("inf"):
            raise OptionError(f"--wait must be a number of seconds from 0 on, got {self.wait!r}.")
        if self.states is not None and (self.network is not None or self.data is not None or self.names):
            raise OptionError("--states holds the states already: leave out --case, --network and --data.")
        if self.states is not None and not self.states.is_file():
            raise InputError(f"the states file {self.states} does not exist. Make one with simtool extract.")

    def places(self) -> tuple[Where, ...]:
        """The engines with their workers, in the order of the tables."""
        counts = sorted(set(self.workers)) or worker_counts(_cores())
        parallel = [engine for engine in ENGINES[1:] if not self.engines or engine in self.engines]
        return (Where("serial", 1), *(Where(engine, count) for engine in parallel for count in counts))


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4 and so on below ``cores``, and ``cores``."""
    counts = {2**k for k in range(cores.bit_length()) if 2**k <= cores}
    return sorted(counts | {cores})


def bench_engines(
    options: EngineBenchOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Run every engine on the cases, and write the report to the folder ``output`` if one is given.

    Returns the JSON object of the command: machine, quick, repeats, workers, load, cases (each with its engines and
    targets), targets, seconds, report; and ``text`` and ``markdown``, the tables as printed. Raises WorkerError if the
    models of two engines differ; OptionError, InputError or OutputError.
    """
    started = time.perf_counter()
    if output is not None:
        _folder(output).check(overwrite)
    places, repeats = options.places(), 1 if options.quick else options.repeats
    asked = cases.chosen(options.names)
    if options.states is not None:
        asked = (cases.of_states(options.states.name),)
    warm("native")  # fills the cache of the kernel: no engine pays for compiling
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="simtool-bench-") as scratch:
        data = options.data or ("digits" if options.quick and options.states is None else DATA)
        settings = Settings(Source(options.states, options.network, data), Path(scratch), quick=options.quick)
        for case in asked:
            small = case.quick() if options.quick else case
            states, origin = settings.states_file(small.sizes, small.samples)
            progress.start(len(places) * repeats, "runs", case.name)

            def ended(name: str) -> None:
                progress.note(name)
                progress.advance()

            entries = side_by_side(states, small.options, places, repeats, Path(scratch), ended, options.wait)
            progress.finish()
            outcomes.append(Outcome(case, origin, entries))
        described = machine.describe()
    judged = next((o for o in outcomes if o.case.name in (cases.JUDGED, "states")), None)
    load = _load(outcomes)
    content = {
        "machine": described,
        "quick": options.quick,
        "repeats": repeats,
        "workers": sorted({place.workers for place in places}),
        "load": load,
        "cases": [outcome.to_json() for outcome in outcomes],
        "targets": [] if judged is None else [target.to_json() for target in judged.targets()],
        "seconds": time.perf_counter() - started,
    }
    place = _place(described, load, options.quick)
    markdown = report.page(outcomes, judged, place)
    if output is not None:
        drawn = {f"{report.PICTURE}.{kind}": data for kind, data in report.draw(outcomes).items()}
        _folder(output).write(content, markdown, drawn)
    where = None if output is None else str(output)
    return {
        **content,
        "report": where,
        "text": report.text(outcomes, judged, place),
        "markdown": markdown,
    }


def _load(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Cores that other programs used during the runs: the median, and the most."""
    others = [value for outcome in outcomes for value in outcome.others]
    return {
        "others_median": median(others) if others else None,
        "others_most": max(others) if others else None,
    }


def _place(described: dict[str, Any], load: dict[str, float | None], quick: bool) -> str:
    place = machine.one_line(described).replace("one thread", "one BLAS thread a worker")
    typical, most = load["others_median"], load["others_most"]
    if typical is None or most is None:
        place += "; what other programs did meanwhile is not known"
    elif most > BUSY:
        place += f"; not idle: other programs used {typical:.1f} cores (median of the runs; up to {most:.1f})"
    else:
        place += "; idle otherwise"
    return f"--quick: sizes of a test, whatever the cases are called; {place}" if quick else place


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folder(output: Path) -> ReportFolder:
    return ReportFolder(output, "bench.json", "engines.md")
