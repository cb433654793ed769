"""One coordinator per run folder. The lock vanishes with the process that holds it, however it ends.

flock does that, also across the clients of most network file systems. Where a file system has no locks, a file that
names its owner does: it is taken over once the owner is known to be gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simtool.errors import OutputError
from simtool.temporary import beside

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder ``path``. Raises OutputError if another process holds it, or it cannot be written."""
    file = path / ".lock"
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            f"{path} is not writable ({error.strerror}), and its run is not finished. Make it writable, or choose "
            "another -o."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _in_use(path, _read(file)) from error
            with _owned(path):
                yield
            return
        _write(handle, this_process())
        try:
            yield
        finally:
            _write(handle, {})
    finally:
        os.close(handle)


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the run folder ``path``: pid, host, since; None if nobody does (as far as this machine can tell)."""
    owner = _read(path / ".owner")
    if owner is not None and not is_gone(owner):
        return owner
    found = _read(path / ".lock")
    return None if found is None or is_gone(found) or _is_free(path / ".lock") else found


def _is_free(file: Path) -> bool:
    """Whether a lock can be had: what the file says may be the last word of a process that was killed, on any machine."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def this_process() -> dict[str, Any]:
    """This process, as it is written down: its pid, host, when it started, and now."""
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "born": _born(pid), "since": time.time()}


def read_process(content: Any) -> dict[str, Any]:
    """What :func:`this_process` wrote; raises KeyError, TypeError or ValueError if ``content`` is something else."""
    return {
        "pid": int(content["pid"]),
        "host": str(content["host"]),
        "born": str(content["born"]),
        "since": float(content["since"]),
    }


def _born(pid: int) -> str:
    """When a process of this machine started, in the kernel's words: tells it from a later one of the same number.

    Nothing for one that has ended, also where its parent has not noticed yet, and where the system does not say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether ``owner`` is known to have ended; never so on another machine."""
    if owner["host"] != platform.node():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return bool(owner["born"]) and _born(owner["pid"]) != owner["born"]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return read_process(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(handle: int, content: dict[str, Any]) -> None:
    """What the lock file says is for people: a full disk must not stop the run here."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(content).encode(), 0)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """The lock of a file system that has none: a file created by exactly one process."""
    file = path / ".owner"
    while True:
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            owner = _read(file)
            if owner is None or not is_gone(owner):
                raise _in_use(path, owner, f" If that has ended, delete {file}.") from None
            _take_away(file, owner)
    mine = os.fstat(handle)
    try:
        _write(handle, this_process())
        os.close(handle)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(file.stat(), mine):
                file.unlink()


def _take_away(file: Path, owner: dict[str, Any]) -> None:
    """Remove the file of an ``owner`` that is gone. What is renamed may be another's by now: it is then put back."""
    aside = beside(file)
    with contextlib.suppress(FileNotFoundError):
        file.rename(aside)
        if _read(aside) == owner:
            aside.unlink()
        else:
            with contextlib.suppress(FileExistsError):
                os.link(aside, file)
            aside.unlink()


def _in_use(path: Path, owner: dict[str, Any] | None, hint: str = "") -> OutputError:
    who = "" if owner is None else f" (process {owner['pid']} on {owner['host']})"
    return OutputError(
        f"{path} is in use by another simtool{who}. Wait for it, choose another -o, or stop it with simtool cancel "
        f"{path}.{hint}"
    )
