"""What a Ray worker does: carry out one task, in the run folder if its node sees it, else on a copy of its inputs.

Nothing here raises on purpose: failures are returned as words, since a worker may know exceptions that the driver does
not. This module must be importable without loading numpy or ray.

A node that does not see the run folder has, below its temporary folder,

    simtool-run-ID/            removed by the driver at the end, or by the next run that finds nobody holding it
        .lock                  held (shared) by every worker process that uses the folder
        inputs/KEY             the files of the run, laid down once; KEY changes with a file's content
        worker-PID/            the run folder as one worker process sees it: links to inputs, and what a task writes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simtool.engines import resolve
from simtool.errors import OutputError, SimtoolError

PREFIX = "simtool-run-"
MEMORY_LEVERS = "Use fewer --workers, fewer --samples in extract, or --structure layered."


@dataclass(frozen=True)
class Manifest:
    """The files that a run's tasks read: ``files`` maps a path in the run folder to its key and its pieces, which are
    references to arrays of bytes in the object store; ``folders`` are the folders to make."""

    files: dict[str, tuple[str, list[Any]]]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Shipment:
    """A manifest in the object store: ``owner`` names the engine, ``number`` the manifest; ``reference`` is in a list,
    so that Ray does not fetch it for every task."""

    owner: str
    number: int
    reference: list[Any]


def warm(task: str) -> None:
    """Call ``task()``, whatever comes of it."""
    with contextlib.suppress(Exception):
        resolve(task)()


def carry_out(task: str, folder: str, item: int, here: str, shipment: Shipment | None) -> dict[str, Any]:
    """Carry out ``task`` for ``item``, with relative names meant from ``here`` where that folder exists.

    Returns ``report``, or ``error`` and ``type`` and perhaps ``trace``; and ``files``, what the task wrote (path in the
    run folder: bytes), empty where the node sees the run folder.
    """
    with contextlib.suppress(OSError):
        os.chdir(here)
    if shipment is None:
        return {**_attempt(task, Path(folder), item), "files": {}}
    try:
        view = _view(shipment)
    except OutputError as error:
        return {"error": str(error), "type": type(error).__name__, "files": {}}
    return {**_attempt(task, view, item), "files": _take_written(view)}


def _attempt(task: str, folder: Path, item: int) -> dict[str, Any]:
    try:
        return {"report": resolve(task)(folder, item)}
    except SimtoolError as error:
        return {"error": str(error), "type": type(error).__name__}
    except MemoryError as error:
        return {
            "error": f"out of memory in shard {item} on {platform.node()} ({error}). {MEMORY_LEVERS}",
            "type": "WorkerError",
        }
    except Exception as error:
        return {
            "error": f"shard {item} failed: {type(error).__name__}: {error}. This is a fault in simtool; the trace is "
            "above.",
            "type": "WorkerError",
            "trace": traceback.format_exc(),
        }


def probe(note: str, content: str) -> bool:
    """Whether this node reads ``content`` in the file ``note`` and can write beside it."""
    answer = Path(f"{note}-{os.getpid()}-{platform.node()}")
    try:
        if Path(note).read_text() != content:
            return False
        answer.write_text(content)
        answer.unlink()
    except OSError:
        return False
    return True


def remove(owner: str) -> None:
    """Remove the folder of ``owner`` on this node."""
    shutil.rmtree(_root(owner), ignore_errors=True)


def _root(owner: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{PREFIX}{owner}"


_held: dict[str, int] = {}
_laid: dict[str, tuple[int, Manifest]] = {}


def _view(shipment: Shipment) -> Path:
    """The run folder as this process sees it, complete; raises OutputError if this node cannot hold the inputs."""
    root = _root(shipment.owner)
    view = root / f"worker-{os.getpid()}"
    try:
        if shipment.owner not in _held:
            _remove_abandoned()
            _held[shipment.owner] = _hold(root)
        number, manifest = _laid.get(shipment.owner, (-1, None))
        if manifest is None or number != shipment.number:
            import ray

            manifest = ray.get(shipment.reference[0])
            _lay(root, manifest)
            shutil.rmtree(view, ignore_errors=True)
            _laid[shipment.owner] = (shipment.number, manifest)
        for name in manifest.folders:
            (view / name).mkdir(parents=True, exist_ok=True)
        for name, (key, _) in manifest.files.items():
            if not (view / name).is_symlink():
                (view / name).symlink_to(root / "inputs" / key)
    except OSError as error:
        raise OutputError(
            f"{platform.node()} cannot hold the run's inputs in {root}: {error.strerror or error}. Free some space "
            "there, start Ray on that node with TMPDIR set to a larger folder, or use a run folder that every node "
            "sees."
        ) from error
    return view


def _hold(root: Path) -> int:
    """Make ``root`` and hold its lock, by an open file, for as long as this process lives."""
    while True:
        (root / "inputs").mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):  # another process found it abandoned just now
            lock = os.open(root / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if (root / ".lock").stat().st_ino == os.fstat(lock).st_ino:
                return lock


def _remove_abandoned() -> None:
    """Remove what runs whose workers were all killed left on this node."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (root / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root, ignore_errors=True)


def _lay(root: Path, manifest: Manifest) -> None:
    """Write the inputs that are not there yet; the workers of a node take turns."""
    import ray

    with (root / ".laying").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for key, pieces in manifest.files.values():
            if (root / "inputs" / key).exists():
                continue
            temporary = root / "inputs" / f".{key}.tmp"
            with temporary.open("wb") as file:
                for piece in pieces:
                    file.write(ray.get(piece))
            temporary.rename(root / "inputs" / key)


def _take_written(view: Path) -> dict[str, bytes]:
    """The files in ``view`` that are no links, which are removed, those of a broken write unread."""
    found = {}
    for path in sorted(view.rglob("*")):
        if path.is_file() and not path.is_symlink():
            if not path.name.startswith("."):
                found[path.relative_to(view).as_posix()] = path.read_bytes()
            path.unlink()
    return found
