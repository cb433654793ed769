"""Engines decide where the tasks of a run are carried out; they know nothing of what a task computes.

A task is a function ``f(folder, item) -> dict`` named by ``package.module:function``, a pure function of the
files in the run folder that leaves its result there as a shard. Every engine gives the same bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from simtool.errors import OptionError

if TYPE_CHECKING:
    from simtool.engines.slurm import SlurmOptions

ENGINES = ("serial", "process", "ray", "slurm")
# Carried out by a batch system, not by an Engine of this process.
BATCH = ("slurm",)

Done = Callable[[int, dict[str, Any]], None]


class Engine(Protocol):
    """Carries out tasks; ``workers`` is how many run at once."""

    name: str
    workers: int

    def prepare(self, task: str, items: int) -> None:
        """Get ready for ``items`` items, while the caller does other things: workers may start, and call ``task()`` each."""

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """Carry out ``task`` for every item, calling ``done(item, report)`` in this process as each ends.

        Raises the SimtoolError of the first task that fails, after the running ones were let finish.
        """

    def close(self) -> None:
        """Release workers; the engine cannot be used afterwards."""


def resolve(task: str) -> Callable[..., Any]:
    """The function named by ``package.module:function``."""
    module, _, name = task.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


@dataclass(frozen=True)
class EngineOptions:
    """Where the tasks of a run are carried out; no answer depends on it.

    Parameters
    ----------
    name : serial, process, ray or slurm
    workers : how many tasks run at once; None for every core (serial: 1; ray: every CPU of the cluster)
    ray_address : auto (a cluster that is running), local (one of its own), or an address; None for auto
    slurm : what is asked of SLURM; None for the site's defaults
    wait : with slurm, return when the run has ended, not when it is submitted

    Raises OptionError for options that do not belong to the engine.
    """

    name: str = "process"
    workers: int | None = None
    ray_address: str | None = None
    slurm: SlurmOptions | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise OptionError(f"unknown engine {self.name!r}; known are {', '.join(ENGINES)}.")
        if self.workers is not None and self.workers < 1:
            raise OptionError(
                f"--workers must be at least 1, got {self.workers}. Leave it out to use every core."
            )
        if self.name == "serial" and self.workers not in (None, 1):
            raise OptionError(
                f"the serial engine has one worker, got --workers {self.workers}. Use --engine process."
            )
        if self.name == "slurm" and self.workers is not None:
            raise OptionError(
                f"with --engine slurm the workers are the array tasks and their cores, got --workers {self.workers}. Use "
                "--array-size and --cpus-per-task."
            )
        if self.ray_address is not None and self.name != "ray":
            raise OptionError(
                f"--ray-address {self.ray_address} belongs to --engine ray, got --engine {self.name}. Leave it out, or "
                "choose that engine."
            )
        if (self.slurm is not None or self.wait) and self.name != "slurm":
            raise OptionError(
                "--wait and what describes SLURM jobs (--partition, --time, --cpus-per-task, --array-size, --memory, "
                f"--account, --sbatch, --ray-nodes) belong to --engine slurm, got --engine {self.name}."
            )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EngineOptions:
        """The inverse of ``dataclasses.asdict``. Raises TypeError, ValueError or OptionError."""
        slurm = content["slurm"]
        if slurm is not None:
            from simtool.engines.slurm import SlurmOptions

            slurm = SlurmOptions(**{**slurm, "extra": tuple(slurm["extra"])})
        return cls(**{**content, "slurm": slurm})


def get(options: EngineOptions) -> Engine:
    """The engine of ``options``, which is none of BATCH. Raises OptionError or WorkerError where it cannot be used."""
    if options.name == "serial":
        from simtool.engines.serial import SerialEngine

        return SerialEngine()
    if options.name == "ray":
        from simtool.engines.ray import RayEngine

        return RayEngine(options.workers, options.ray_address or "auto")
    from simtool.engines.process import ProcessEngine, usable_cores

    return ProcessEngine(options.workers or usable_cores())
