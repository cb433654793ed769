"""The serial engine: tasks one after the other in this process, with BLAS held to one thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from simtool.engines import Done, resolve


class SerialEngine:
    """One worker: this process."""

    name = "serial"
    workers = 1

    def prepare(self, task: str, items: int) -> None:
        """Nothing to start."""

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """See :class:`simtool.engines.Engine`."""
        if not items:
            return
        function = resolve(task)
        with threadpool_limits(limits=1):
            for item in items:
                done(item, function(folder, item))

    def close(self) -> None:
        """Nothing to release."""
