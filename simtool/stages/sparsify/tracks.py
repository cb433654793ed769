"""What became of each task, for people: who works on it since when, how long it took, why it failed.

A track is a small file beside the shards. No answer depends on tracks and nothing waits for them: one that is lost or
cannot be written only leaves ``simtool status`` with less to say. Times of day are compared across machines for display
alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from simtool.errors import SimtoolError
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.lock import is_gone, read_process, this_process
from simtool.temporary import beside

RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass
class Track:
    """One task: ``state``, the process and SLURM job that had it, ``seconds`` it took, and its report or error."""

    phase: str
    index: int
    state: str = RUNNING
    owner: dict[str, Any] = field(default_factory=this_process)
    job: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    seconds: float = 0.0
    ended: float | None = None
    report: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def abandoned(self) -> bool:
        """Whether it says running, but its process is known to be gone."""
        return self.state == RUNNING and is_gone(self.owner)


@contextlib.contextmanager
def tracked(folder: RunFolder, phase: str, index: int) -> Iterator[dict[str, Any]]:
    """Track a task while the block runs; the block puts its report into the dict it is given."""
    track = Track(phase, index)
    _write(folder, track)
    started = time.perf_counter()
    try:
        yield track.report
    except Exception as error:
        track.state = FAILED
        track.error = str(error) if isinstance(error, SimtoolError) else f"{type(error).__name__}: {error}"
        raise
    else:
        track.state = DONE
    finally:
        track.seconds, track.ended = time.perf_counter() - started, time.time()
        _write(folder, track)


def read(folder: RunFolder, phase: str) -> list[Track]:
    """The tracks of ``phase``, in the order of their indices."""
    found = []
    for file in sorted(folder.tracks.glob(f"{phase}-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            track = Track(**json.loads(file.read_bytes()))
            read_process(track.owner)
            found.append(track)
    return found


def _write(folder: RunFolder, track: Track) -> None:
    target = folder.tracks / f"{track.phase}-{track.index:06d}.json"
    temporary = beside(target)
    with contextlib.suppress(OSError):
        folder.tracks.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(asdict(track)))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
