"""Progress of a long stage: a bar with an ETA on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def format_seconds(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Silent; the base that stages call. The command line passes a :class:`TextProgress`."""

    def start(self, total: int, unit: str, label: str) -> None:
        """Begin a phase of ``total`` units."""

    def advance(self, count: int = 1) -> None:
        """``count`` more units are done."""

    def note(self, text: str) -> None:
        """Attach a short remark (shown beside the count)."""

    def finish(self) -> None:
        """End the phase."""


NO_PROGRESS = Progress()


class TextProgress(Progress):
    """Writes to ``stream`` (stderr): a redrawn line on a terminal, else a line every ``interval`` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else interval
        self._total = self._done = 0
        self._label = self._unit = self._remark = ""
        self._started = self._shown = 0.0

    def start(self, total: int, unit: str, label: str) -> None:
        self._total, self._done, self._unit, self._label, self._remark = total, 0, unit, label, ""
        self._started = self._shown = time.monotonic()
        if self._terminal:
            self._show()

    def advance(self, count: int = 1) -> None:
        self._done += count
        if time.monotonic() - self._shown >= self._interval:
            self._show()

    def note(self, text: str) -> None:
        self._remark = text

    def finish(self) -> None:
        self._show(last=True)

    def _show(self, last: bool = False) -> None:
        now = time.monotonic()
        self._shown = now
        elapsed = now - self._started
        text = f"{self._label}: {self._done}/{self._total} {self._unit}"
        if last:
            text += f" in {elapsed:.1f} s"
        elif self._done:
            text += f", {self._done / max(elapsed, 1e-9):.3g} {self._unit}/s"
            text += f", ETA {format_seconds(elapsed / self._done * (self._total - self._done))}"
        if self._remark:
            text += f", {self._remark}"
        if not self._terminal:
            self._stream.write(text + "\n")
        else:
            width = 24
            filled = width if not self._total else int(width * min(1.0, self._done / self._total))
            self._stream.write(
                f"\r\x1b[K[{'#' * filled}{'.' * (width - filled)}] {text}" + ("\n" if last else "")
            )
        self._stream.flush()
