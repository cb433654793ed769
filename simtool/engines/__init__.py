"""Engines decide where the tasks of a run are carried out; they know nothing of what a task computes.

A task is a function ``f(folder, item) -> dict`` named by ``package.module:function``, a pure function of the
files in the run folder that leaves its result there as a shard. Every engine gives the same bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from simtool.errors import OptionError

ENGINES = ("serial", "process")

Done = Callable[[int, dict[str, Any]], None]


class Engine(Protocol):
    """Carries out tasks; ``workers`` is how many run at once."""

    name: str
    workers: int

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """Carry out ``task`` for every item, calling ``done(item, report)`` in this process as each ends.

        Raises the SimtoolError of the first task that fails, after the running ones were let finish.
        """

    def close(self) -> None:
        """Release workers; the engine cannot be used afterwards."""


def resolve(task: str) -> Callable[[Path, int], dict[str, Any]]:
    """The function named by ``package.module:function``."""
    module, _, name = task.partition(":")
    function: Callable[[Path, int], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def get(name: str, workers: int | None = None) -> Engine:
    """The engine called ``name``; ``workers`` defaults to the number of usable cores (serial: 1)."""
    if workers is not None and workers < 1:
        raise OptionError(f"--workers must be at least 1, got {workers}. Leave it out to use every core.")
    if name == "serial":
        from simtool.engines.serial import SerialEngine

        if workers not in (None, 1):
            raise OptionError(
                f"the serial engine has one worker, got --workers {workers}. Use --engine process."
            )
        return SerialEngine()
    if name == "process":
        from simtool.engines.process import ProcessEngine, usable_cores

        return ProcessEngine(workers or usable_cores())
    raise OptionError(f"unknown engine {name!r}; known are {', '.join(ENGINES)}.")
