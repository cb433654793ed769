"""The process engine: workers are plain child processes that speak lines of JSON over their pipes.

Not multiprocessing: a child that is a fresh interpreter has its BLAS threads set before numpy is imported, never
re-imports the user's main module, and ends by itself when this process disappears (its standard input closes),
so even kill -9 leaves no orphans.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtool import errors
from simtool.engines import Done
from simtool.engines.threads import single_threaded_environment
from simtool.errors import SimtoolError, WorkerError


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessEngine:
    """``workers`` child processes, started with the first task and kept until :meth:`close`."""

    name = "process"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._children: list[subprocess.Popen[str]] = []

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """See :class:`simtool.engines.Engine`."""
        waiting = list(items)
        answers: queue.Queue[tuple[int, int | None, dict[str, Any]]] = queue.Queue()
        while len(self._children) < min(self.workers, len(waiting)):
            self._children.append(self._start())
        busy: dict[int, int] = {}
        failure: SimtoolError | None = None
        cursor = 0
        for index in range(len(self._children)):
            if cursor < len(waiting):
                busy[index] = waiting[cursor]
                self._ask(index, task, folder, waiting[cursor], answers)
                cursor += 1
        while busy:
            index, code, answer = answers.get()
            item = busy.pop(index)
            if "error" in answer:
                failure = failure or _rebuild(answer)
            elif code is not None:
                failure = failure or _death(item, code)
            else:
                done(item, answer["report"])
            if failure is None and cursor < len(waiting):
                busy[index] = waiting[cursor]
                self._ask(index, task, folder, waiting[cursor], answers)
                cursor += 1
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the workers' input, which ends them, and wait; a worker in the middle of a task is terminated."""
        for child in self._children:
            if child.stdin and not child.stdin.closed:
                with contextlib.suppress(OSError):
                    child.stdin.close()
        try:
            for child in self._children:
                try:
                    child.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    child.terminate()
                    child.wait()
                if child.stdout:
                    child.stdout.close()
        finally:  # a second Ctrl-C comes while we wait
            for child in self._children:
                if child.poll() is None:
                    child.kill()
            self._children.clear()

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own keeps Ctrl-C with this process, which then lets the running shards finish or die
        # whole; they are atomic either way.
        return subprocess.Popen(
            [sys.executable, "-m", "simtool.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=single_threaded_environment(),
            text=True,
            start_new_session=True,
        )

    def _ask(
        self,
        index: int,
        task: str,
        folder: Path,
        item: int,
        answers: queue.Queue[tuple[int, int | None, dict[str, Any]]],
    ) -> None:
        child = self._children[index]
        request = json.dumps({"task": task, "folder": str(folder), "item": item})

        def talk() -> None:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(request + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except (OSError, ValueError):
                line = ""
            if line:
                answers.put((index, None, json.loads(line)))
            else:
                answers.put((index, child.wait(), {}))

        threading.Thread(target=talk, daemon=True).start()


def _rebuild(answer: dict[str, Any]) -> SimtoolError:
    """The error a worker reported, as the exception it was."""
    kind = getattr(errors, answer.get("type", ""), WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, SimtoolError)):
        kind = WorkerError
    return kind(answer["error"])


def _death(item: int, code: int) -> WorkerError:
    if code < 0:
        name = signal.Signals(-code).name
        cause = f"was ended by {name}" + (
            " (out of memory is the usual reason: use fewer --workers)" if name == "SIGKILL" else ""
        )
    else:
        cause = f"ended with exit code {code}; its message is above"
    return WorkerError(
        f"the worker solving shard {item} {cause}. What was finished is kept: run the same command again."
    )
