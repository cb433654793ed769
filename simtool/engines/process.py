"""The process engine: workers are plain child processes that speak lines of JSON over their pipes.

Not multiprocessing: a child that is a fresh interpreter has its BLAS threads set before numpy is imported, never
re-imports the user's main module, and ends by itself when this process disappears (its standard input closes),
so even kill -9 leaves no orphans.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simtool import errors
from simtool.engines import Done
from simtool.engines.threads import worker_environment
from simtool.errors import SimtoolError, WorkerError

_log = logging.getLogger("simtool")
_DRAIN_SECONDS = 10
_ROOT = Path(__file__).parents[2]
_WORKER = "import sys; sys.path.append(sys.argv[1]); from simtool.engines.worker import main; main()"

# Which worker, its exit code if it ended, and what it answered.
_Answer = tuple[int, int | None, dict[str, Any]]


@dataclass
class _Crowd:
    """The items of one run: those that wait, those in work (by worker), and those to be tried again with no other beside."""

    waiting: deque[int]
    alone: deque[int] = field(default_factory=deque)
    busy: dict[int, int] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)
    answers: queue.Queue[_Answer] = field(default_factory=queue.Queue)
    failure: SimtoolError | None = None

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting or self.alone or self.busy)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessEngine:
    """``workers`` child processes, started with the first task and kept until :meth:`close`."""

    name = "process"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._children: list[subprocess.Popen[str]] = []

    def prepare(self, task: str, items: int) -> None:
        """See :class:`simtool.engines.Engine`."""
        while len(self._children) < min(self.workers, items):
            self._children.append(self._start())
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):  # the first shard tells of one that has ended already
                child.stdin.write(json.dumps({"prepare": task}) + "\n")
                child.stdin.flush()

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """See :class:`simtool.engines.Engine`. A shard whose worker the system ended is tried once more, on its own."""
        crowd = _Crowd(deque(items))
        while len(self._children) < min(self.workers, len(items)):
            self._children.append(self._start())
        try:
            while crowd.unfinished:
                self._hand_out(crowd, task, folder)
                if not crowd.busy:
                    break
                self._take(crowd, crowd.answers.get(), done)
        except KeyboardInterrupt:
            self._drain(crowd, done)
            raise
        if crowd.failure is not None:
            raise crowd.failure

    def _hand_out(self, crowd: _Crowd, task: str, folder: Path) -> None:
        """Give every idle worker a shard; one that cost a worker its life waits until no other is in work."""
        if crowd.failure is not None:
            return
        for index in range(len(self._children)):
            if index in crowd.busy:
                continue
            if crowd.waiting:
                item = crowd.waiting.popleft()
            elif crowd.alone and not crowd.busy:
                item = crowd.alone.popleft()
            else:
                return
            crowd.busy[index] = item
            self._ask(index, task, folder, item, crowd.answers)

    def _take(self, crowd: _Crowd, answer: _Answer, done: Done) -> None:
        """Account for what a worker answered, or for its end."""
        index, code, content = answer
        item = crowd.busy.pop(index)
        if code is not None:
            _close_pipes(self._children[index])
            self._children[index] = self._start()
        if "error" in content:
            crowd.failure = crowd.failure or rebuild(content)
        elif code is None:
            done(item, content["report"])
        elif code < 0 and item not in crowd.retried:
            _log.warning(
                "the worker solving shard %d %s; it is tried again on its own", item, _ended_by(code)
            )
            crowd.retried.add(item)
            crowd.alone.append(item)
        else:
            crowd.failure = crowd.failure or _death(item, code)

    def _drain(self, crowd: _Crowd, done: Done) -> None:
        """Let the running shards finish for a while: what they have done is then not lost."""
        if not crowd.busy:
            return
        _log.info(
            "interrupted: %d shards in work are let finish, for %d s at most (interrupt again to drop them)",
            len(crowd.busy),
            _DRAIN_SECONDS,
        )
        deadline = time.monotonic() + _DRAIN_SECONDS
        while crowd.busy:
            try:
                answer = crowd.answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            item = crowd.busy.pop(answer[0])
            if "report" in answer[2]:
                done(item, answer[2]["report"])

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
                _close_pipes(child)
        finally:  # a second Ctrl-C comes while we wait
            for child in self._children:
                if child.poll() is None:
                    child.kill()
            self._children.clear()

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own keeps Ctrl-C with this process, which then lets the running shards finish or die
        # whole; they are atomic either way.
        return subprocess.Popen(
            # Not -m: the folder of the call would come first on the path, and a queue.py there instead of Python's own.
            [sys.executable, "-P", "-c", _WORKER, str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(),
            text=True,
            start_new_session=True,
        )

    def _ask(
        self,
        index: int,
        task: str,
        folder: Path,
        item: int,
        answers: queue.Queue[_Answer],
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
                # Half a line is the last word of a worker that was killed while it spoke.
                content = json.loads(line) if line.endswith("\n") else None
            except (OSError, ValueError):
                content = None
            answers.put((index, _end(child), {}) if content is None else (index, None, content))

        threading.Thread(target=talk, daemon=True).start()


def _end(child: subprocess.Popen[str]) -> int:
    """The exit code of a worker that speaks no more."""
    try:
        return child.wait(timeout=_DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _close_pipes(child: subprocess.Popen[str]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def rebuild(answer: dict[str, Any]) -> SimtoolError:
    """The error that a worker reported, as the exception it was."""
    kind = getattr(errors, answer.get("type", ""), WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, SimtoolError)):
        kind = WorkerError
    return kind(answer["error"])


def _ended_by(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _death(item: int, code: int) -> WorkerError:
    if code == -signal.SIGKILL:
        reason = (
            ", on its own too: out of memory is the usual reason. Use fewer --samples in extract, --structure layered, or "
            "a machine with more memory"
        )
    else:
        reason = "" if code < 0 else "; its message is above"
    return WorkerError(
        f"the worker solving shard {item} {_ended_by(code)}{reason}. What was finished is kept: the same command "
        "resumes."
    )
