"""The guard: a child process opens a file of HDF5 first, so that a crash of the C library becomes a message.

The HDF5 library is known to crash, to loop or to ask for absurd amounts of memory on damaged files, and checks in Python come too
late: opening a file is enough. So before this process opens a file that it has neither written nor had checked, the child does,
reads what the readers will read, and says whether it lived. One child serves a process, started when it is first needed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import simtool
from simtool import errors
from simtool.errors import FormatError, SimtoolError

log = logging.getLogger("simtool")

# A file gets this much processor time, and as much again for every 2 MB of it; waiting for a slow disk costs none.
CPU_SECONDS = 20.0
_CPU_BYTES_PER_SECOND = 2e6
# On the clock, only to end at last: a disk that hangs.
_CLOCK_SECONDS = 300.0
_CLOCK_BYTES_PER_SECOND = 1e6
# A change within the same tick of the file system's clock leaves a file's times as they were, so a younger file is not remembered.
_TICK_SECONDS = 0.05

# -P and an explicit path: the child must not import modules that happen to lie in the current folder.
_COMMAND = "import sys; sys.path.append(sys.argv[1]); from simtool.hdf5.child import main; main()"

Identity = tuple[int, int, int, int, int]


class _Died(Exception):
    """The child ended instead of answering, by ``signal`` or by itself (0), or had to be ended (None)."""

    def __init__(self, number: int | None) -> None:
        self.number = number


class _Child:
    """A running child."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        environment["HDF5_PLUGIN_PRELOAD"] = "::"  # HDF5's own switch against loading filters as libraries
        root = str(Path(simtool.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process
        )
        self.served = 0
        self._buffer = b""
        try:
            self.receive(_CLOCK_SECONDS)  # it says that it is ready
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.abandon()
            raise

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise _Died(self._code()) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next answer. Raises _Died if there is none."""
        assert self.process.stdout is not None
        descriptor, end = self.process.stdout.fileno(), time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            if not waiting.poll(max(0.0, end - time.monotonic()) * 1000.0):
                self.process.kill()
                self.process.wait()
                raise _Died(None)
            received = os.read(descriptor, 2**16)
            if not received:
                raise _Died(self._code())
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):  # a child whose memory is no longer its own may write anything
            self.process.kill()
            raise _Died(self._code())
        return answer

    def _code(self) -> int:
        return self.process.wait()

    def close(self) -> None:
        """Close its input, which ends it."""
        process = self.process
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def abandon(self) -> None:
        """Close the pipes of a child that ended, or that is not this process's."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.returncode = self.process.returncode or 0  # nothing to wait for


_lock = threading.Lock()
_child: _Child | None = None
_without = False  # no child can be started here
_known: set[tuple[Identity, str]] = set()
_ANYTHING = "written here"


def _identity(path: Path) -> Identity:
    try:
        found = os.stat(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def trust(path: Path) -> None:
    """Remember that this process wrote ``path``."""
    _known.add((_identity(path), _ANYTHING))


def is_trusted(path: Path) -> bool:
    """Whether ``path`` is as this process wrote it."""
    return (_identity(path), _ANYTHING) in _known


def check(path: Path, request: dict[str, Any]) -> None:
    """Have the child read ``path`` as ``request`` says, unless that is known to be safe.

    Raises what the child's checks raise, and FormatError if the library crashes, loops or runs out of memory.
    """
    before = _identity(path)
    key = (before, json.dumps(request, sort_keys=True))
    if key in _known or is_trusted(path):
        return
    settled = time.time_ns() - before[-1] > _TICK_SECONDS * 1e9
    _ask(path, request)
    if settled and _identity(path) == before:
        _known.add(key)


def ask_kind(path: Path) -> str | None:
    """What kind of file ``path`` says it is. Raises FormatError."""
    kind = _ask(path, {"task": "kind"}).get("kind")
    return kind if isinstance(kind, str) else None


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed; an absolute path still works
        return "/"


def _ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    size = _identity(path)[2]
    message = {
        **request,
        "path": str(path),
        "folder": _folder(),
        "cpu_seconds": CPU_SECONDS + size / _CPU_BYTES_PER_SECOND,
    }
    with _lock:
        answer = _answer(path, message, _CLOCK_SECONDS + size / _CLOCK_BYTES_PER_SECOND)
    if "error" in answer:
        kind = getattr(errors, str(answer.get("type")), FormatError)
        raise kind(answer["error"]) if issubclass(kind, SimtoolError) else FormatError(answer["error"])
    return answer


def _answer(path: Path, message: dict[str, Any], seconds: float) -> dict[str, Any]:
    while True:
        child = _running()
        if child is None:
            return {}
        try:
            child.served += 1
            child.send(message)
            return child.receive(seconds)
        except _Died as death:
            first = child.served == 1
            close()
            if first:  # else an earlier file may have harmed it: ask a new one
                raise FormatError(_epitaph(path, death, seconds)) from None
        except (
            BaseException
        ):  # an interrupt: the answer that is still to come must not be taken for the next one's
            close()
            raise


def _epitaph(path: Path, death: _Died, seconds: float) -> str:
    if death.number is None:
        what = f"did not finish with it in {seconds:.0f} s"
    elif death.number == -signal.SIGXCPU:
        what = "runs without end on it"
    elif death.number < 0:
        what = f"crashes on it ({signal.Signals(-death.number).name})"
    else:
        what = f"ends the process that reads it (exit code {death.number})"
    return f"{path} is damaged: the HDF5 library {what}. Write it again, or get another copy."


def _running() -> _Child | None:
    """The child of this process, started if there is none; None if that cannot be."""
    global _child, _without
    if _child is None and not _without:
        try:
            _child = _Child()
        except (OSError, _Died) as error:
            _without = True
            log.warning(
                "no child process can be started to look at HDF5 files first (%s): a damaged one may crash this process.",
                error,
            )
    return _child


def close() -> None:
    """End the child, if there is one."""
    global _child
    child, _child = _child, None
    if child is not None:
        child.close()


def _forget() -> None:
    """In a fork of this process: the child is its parent's, and its input must close when that one ends."""
    global _child, _lock
    child, _child, _lock = _child, None, threading.Lock()
    if child is not None:
        child.abandon()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
