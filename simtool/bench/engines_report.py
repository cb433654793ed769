"""The tables and the picture of a comparison of engines, and the folder they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from simtool.bench import table
from simtool.bench.drawing import encode, figure, legend
from simtool.bench.engines_cases import EngineCase
from simtool.bench.engines_measure import Entry, Run
from simtool.bench.engines_targets import Target, speed_up, targets

PICTURE = "time-by-engine"
HEADER = (
    "engine, workers",
    "solve s",
    "total s",
    "speed-up",
    "/worker",
    "overhead",
    "shards",
    "start s",
    "worker MB",
    "workers MB",
    "all MB",
)
_TARGETS = ("target", "at", "reached", "met")
_SOLVING, _STARTING, _REST = "#2f6db5", "#d9822b", "#c4cad2"


@dataclass(frozen=True)
class Outcome:
    """A case as measured; ``origin`` says where its states are from."""

    case: EngineCase
    origin: str
    entries: tuple[Entry, ...]

    @property
    def first(self) -> Run:
        """A run like any other: for what all of them share."""
        return next(entry.runs[0] for entry in self.entries if entry.runs)

    @property
    def others(self) -> list[float]:
        """Cores that other programs used during each run."""
        return [run.others for entry in self.entries for run in entry.runs if run.others is not None]

    def targets(self) -> tuple[Target, ...]:
        return targets(self.entries)

    def facts(self) -> tuple[str, ...]:
        """In words, for under the title."""
        run = self.first
        repeats = max(len(entry.runs) for entry in self.entries)
        runs = "one run each" if repeats == 1 else f"medians of {repeats} interleaved runs"
        return (
            self.origin,
            f"{run.account.tasks} shards and tiles, the longest {run.account.longest:.2f} s serially; {runs}",
            f"{run.certified} of {run.rows} rows certified, largest relative gap {run.max_relative_gap:.1e}",
            f"sha256 of model.h5 on every engine: {run.sha256}",
        )

    def to_json(self) -> dict[str, Any]:
        run = self.first
        return {
            "name": self.case.name,
            "title": self.case.title,
            "origin": self.origin,
            "rows": run.rows,
            "certified": run.certified,
            "model_sha256": run.sha256,
            "engines": [_entry_json(self.entries, entry) for entry in self.entries],
            "targets": [target.to_json() for target in self.targets()],
        }


def _entry_json(entries: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    names = (
        *("solve_seconds", "total_seconds", "before", "joining", "after", "cpu_seconds", "coordinator_bytes"),
        *("worker_bytes", "workers_bytes", "services_bytes", "private_bytes", "pss_bytes", "load", "others"),
    )
    accounts = (
        "overhead",
        "shard_overhead",
        "per_task",
        "first_task",
        "busy",
        "starting",
        "between",
        "waiting",
    )
    found = speed_up(entries, entry)
    return {
        "engine": entry.where.engine,
        "workers": entry.where.workers,
        "reason": entry.reason,
        "speed_up": found,
        "efficiency": None if found is None else found / entry.where.workers,
        **{name: entry.median(attrgetter(name)) for name in names},
        **{name: entry.median(attrgetter(f"account.{name}")) for name in accounts},
        "runs": [run.to_json() for run in entry.runs],
    }


def cells(entries: Sequence[Entry], entry: Entry) -> tuple[str, ...]:
    """The entry as the cells of HEADER."""
    if not entry.runs:
        return (entry.where.name, "none", *("-" for _ in HEADER[2:]))

    def amount(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
        return "-" if value is None else f"{value / scale:{form}}"

    found = speed_up(entries, entry)
    return (
        entry.where.name,
        amount(entry.median(lambda run: run.solve_seconds)),
        amount(entry.median(lambda run: run.total_seconds)),
        amount(found),
        amount(None if found is None else found / entry.where.workers),
        f"{amount(entry.median(lambda run: run.account.overhead), '.1f', 0.01)} %",
        f"{amount(entry.median(lambda run: run.account.shard_overhead), '.1f', 0.01)} %",
        amount(entry.median(lambda run: run.account.first_task)),
        amount(entry.median(lambda run: run.worker_bytes), ".0f", 1e6),
        amount(entry.median(lambda run: run.workers_bytes), ".0f", 1e6),
        amount(entry.median(lambda run: run.private_bytes), ".0f", 1e6),
    )


def rows_of(outcome: Outcome) -> list[tuple[str, ...]]:
    return [HEADER, *(cells(outcome.entries, entry) for entry in outcome.entries)]


def target_rows(found: Sequence[Target]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [_TARGETS]
    for target in found:
        bound = f"{'at least' if target.least else 'at most'} {table.number(target.goal)} {target.unit}"
        reached = (
            "not measured" if target.reached is None else f"{table.number(target.reached)} {target.unit}"
        )
        rows.append((target.name, bound, reached, {True: "yes", False: "no", None: "-"}[target.met]))
    return rows


def notes(outcome: Outcome) -> list[str]:
    """Why a target was not measured, where the table of engines does not say so already."""
    known = {entry.reason for entry in outcome.entries}
    return [f"{t.name}: {t.note}" for t in outcome.targets() if t.reached is None and t.note not in known]


def text(outcomes: Sequence[Outcome], judged: Outcome | None, place: str) -> str:
    """For a terminal."""
    parts = []
    for outcome in outcomes:
        parts.append("\n".join([outcome.case.title, *(f"  {fact}" for fact in outcome.facts())]))
        parts.append(table.aligned(rows_of(outcome)))
        parts += ["\n".join(f"- {note}" for note in _reasons(outcome))] if _reasons(outcome) else []
    if judged is not None:
        parts.append(f"Targets, on {judged.case.title}:\n" + table.aligned(target_rows(judged.targets())))
        parts += ["\n".join(f"- {note}" for note in notes(judged))] if notes(judged) else []
    return "\n\n".join([*parts, place])


def _reasons(outcome: Outcome) -> list[str]:
    return [f"{entry.where.name}: {entry.reason}" for entry in outcome.entries if entry.reason]


def page(outcomes: Sequence[Outcome], judged: Outcome | None, place: str) -> str:
    """The report as Markdown."""
    parts = ["# Engines side by side", f"({place}.)"]
    for outcome in outcomes:
        parts.append(f"## {outcome.case.title}")
        parts.append("\n".join(f"- {fact}" for fact in (*outcome.facts(), *_reasons(outcome))))
        parts.append(table.as_markdown(rows_of(outcome)))
    if judged is not None:
        parts.append(f"## Targets, on {judged.case.title}")
        parts.append(table.as_markdown(target_rows(judged.targets())))
        parts += ["\n".join(f"- {note}" for note in notes(judged))] if notes(judged) else []
    parts.append(_LEGEND)
    parts.append(f"![time by engine and workers]({PICTURE}.png)")
    return "\n\n".join(parts) + "\n"


_LEGEND = (
    "solve: Gram matrices, rows, certificates, and starting the engine. total: the whole call, with reading, checks and "
    "the model. speed-up: serial / engine in solve seconds, within each repetition; /worker: divided by the workers. "
    "overhead: 1 - the tasks' own seconds / (workers x solve); shards: of it, what passes between the tasks of a worker, "
    "beside their seconds; start: from calling the engine to its first task. Memory is private (RssAnon; what is mapped "
    "from files is shared by all): the largest worker, the sum of the workers, and every process together."
)


def draw(outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """Time by engine and workers (SIM, Figure 5), a panel per case; PNG and SVG."""
    drawn, panels = figure(4.2 * len(outcomes), 3.6, len(outcomes))
    for axes, outcome in zip(panels, outcomes, strict=True):
        names = [entry.where.name for entry in outcome.entries if entry.runs]
        shown = [entry for entry in outcome.entries if entry.runs]
        start = [entry.median(lambda run: run.account.first_task) or 0.0 for entry in shown]
        solve = [entry.median(lambda run: run.solve_seconds) or 0.0 for entry in shown]
        whole = [entry.median(lambda run: run.total_seconds) or 0.0 for entry in shown]
        at = range(len(shown))
        working = [a - b for a, b in zip(solve, start, strict=True)]
        rest = [max(0.0, a - b) for a, b in zip(whole, solve, strict=True)]
        axes.bar(at, working, 0.6, color=_SOLVING, label="solving")
        axes.bar(at, start, 0.6, bottom=working, color=_STARTING, label="until the first task")
        axes.bar(at, rest, 0.6, bottom=solve, color=_REST, label="reading, checks, writing")
        axes.set_xticks(list(at), [name.replace(", ", "\n") for name in names], fontsize=8)
        axes.set_ylabel("seconds" if axes is panels[0] else "", fontsize=8)
        axes.set_title(outcome.case.title, fontsize=8)
        axes.set_axisbelow(True)
    drawn.suptitle("Time by engine and number of workers (SIM, Figure 5)", fontsize=9)
    legend(drawn, panels[0])
    return encode(drawn)
