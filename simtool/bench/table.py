"""The speed table: one line per promise, with what was reached; and the side-by-side table of peers. Plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simtool.bench.compare import Compared


@dataclass(frozen=True)
class Line:
    """One promise. ``least`` and ``aim`` and ``reached`` are in ``unit``; ``against`` names the peer of a
    speed-up, where more is better; ``gap`` is the largest certified relative gap of what was timed. ``reached`` None: not measured, ``note`` says why."""

    work: str
    unit: str
    least: float
    aim: float | None
    reached: float | None
    gap: float | None = None
    note: str = ""
    against: str = ""

    @property
    def name(self) -> str:
        """What was measured, in full."""
        return f"{self.work}, beside {self.against}" if self.against else self.work

    @property
    def met(self) -> bool | None:
        return self._reaches(self.least)

    @property
    def aim_met(self) -> bool | None:
        return None if self.aim is None else self._reaches(self.aim)

    def _reaches(self, goal: float) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= goal if self.against else self.reached <= goal

    @property
    def verdict(self) -> str:
        """yes, no, aim (better than asked for) or -."""
        if self.met is None:
            return "-"
        if not self.met:
            return "no"
        return "aim" if self.aim_met else "yes"


HEADER = ("work", "at least", "aim", "reached", "met", "largest gap")


def cells(line: Line) -> tuple[str, ...]:
    """The line as the cells of HEADER."""

    def amount(value: float | None) -> str:
        return "-" if value is None else f"{number(value)} {line.unit}"

    reached = "not measured" if line.reached is None else amount(line.reached)
    gap = "-" if line.gap is None else f"{line.gap:.0e}"
    return line.name, amount(line.least), amount(line.aim), reached, line.verdict, gap


def number(value: float) -> str:
    """Three digits, no exponent up to a million."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def markdown(lines: Sequence[Line], machine: str) -> str:
    """The README's table, and the machine under it."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(cells(line) for line in lines)]
    notes = _notes(lines)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join(part for part in (table, "\n".join(notes), f"({machine}.)") if part) + "\n"


def text(lines: Sequence[Line]) -> str:
    """The table with aligned columns, for 100 characters: units stand with the target only, notes under the table."""
    rows, above = [HEADER], ""
    for line in lines:
        work, least, _, reached, met, gap = cells(line)
        if line.against and line.work == above:
            work = f"  beside {line.against}"
        above = line.work
        short = "-" if line.aim is None else number(line.aim)
        rows.append((work, least, short, reached if line.reached is None else number(line.reached), met, gap))
    return "\n".join([aligned(rows), *_notes(lines)])


def _notes(lines: Sequence[Line]) -> list[str]:
    return [f"- {line.name}: {line.note}" for line in lines if line.note]


PEERS = ("solver", "rows", "a row", "x ours", "x (G+B)", "largest gap", "")


def peer_rows(compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The side-by-side table as cells of PEERS; a failure keeps its line, with its reason."""
    rows: list[tuple[str, ...]] = [PEERS]
    for entry in compared:
        name = entry.name if entry.version is None else f"{entry.name} {entry.version}"
        rows.append(
            (
                name + ("" if entry.tolerance == 1e-6 else f" at {entry.tolerance:g}"),
                str(entry.rows) if entry.rows else "-",
                "-" if entry.row is None else duration(entry.row),
                "-" if entry.to_ours is None else number(entry.to_ours),
                "-" if entry.to_reference is None else number(entry.to_reference),
                "-" if entry.gap is None else f"{entry.gap:.0e}",
                entry.reason or "",
            )
        )
    return rows


def duration(seconds: float) -> str:
    """``.0012`` as 1.2 ms."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell, but for the last."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """``rows``, the first a header, as a Markdown table."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
