"""One sparsify in a process of its own, with the times of its phases and tasks.

python -m simtool.bench.engines_child '{"states": ..., "run": ..., "options": {...}, "engine": ..., "workers": ...}'
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simtool.bench.engines_account import Phase, TaskTime
from simtool.errors import SimtoolError
from simtool.progress import Progress
from simtool.stages.sparsify import tracks
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.tasks import ROWS, TILES

_TASKS = {"Gram matrix": TILES, "rows": ROWS}


class Watch(Progress):
    """Notes when an engine is called and has returned; the tracks that tasks leave are read before the run drops them."""

    def __init__(self, run: Path) -> None:
        self._folder = RunFolder(run)
        self._label, self._began = "", 0.0
        self.phases: list[Phase] = []

    def start(self, total: int, unit: str, label: str) -> None:
        self._label, self._began = label, time.time()

    def finish(self) -> None:
        ended = time.time()
        tasks = tuple(
            TaskTime(int(track.owner["pid"]), track.ended - track.seconds, track.ended)
            for track in tracks.read(self._folder, _TASKS[self._label])
            if track.ended is not None
        )
        self.phases.append(Phase(self._label, self._began, ended, tasks))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run sparsify as ``request`` says; returns its result, the phases, and the sha256 of the model."""
    import simtool

    run = Path(request["run"])
    watch = Watch(run)
    address = "local" if request["engine"] == "ray" else None
    where = simtool.EngineOptions(request["engine"], request["workers"], ray_address=address)
    options = simtool.SparsifyOptions(**request["options"])
    sparsify = simtool.sparsify  # imported here, and not inside the time
    began = time.time()
    result = sparsify(request["states"], run, options, engine=where, progress=watch)
    ended = time.time()
    return {
        "began": began,
        "ended": ended,
        "result": result,
        "phases": [asdict(phase) for phase in watch.phases],
        "sha256": hashlib.sha256(RunFolder(run).model.read_bytes()).hexdigest(),
    }


def main(argument: str) -> None:
    """Print one JSON object: the measurement, or the error."""
    try:
        answer = measure(json.loads(argument))
    except SimtoolError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
