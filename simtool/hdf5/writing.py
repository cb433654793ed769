"""Writing: a file appears under its name complete and on the disk, or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simtool.errors import OutputError
from simtool.hdf5 import checksum, guard
from simtool.hdf5.checking import FORMAT_VERSION
from simtool.hdf5.reading import kind_of
from simtool.temporary import beside


def writable_target(
    path: Path, overwrite: bool, kind: str | None = None, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Raise OutputError unless ``path`` can be created, or replaced with ``overwrite``.

    Only a regular file of the same ``kind`` is ever replaced (None: any regular file), never one of the command's
    own ``inputs`` and never the model inside a run folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, a file is to be written there. Choose another name.")
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise OutputError(f"{path} exists already. Pass --overwrite to replace it.")
        if path.is_symlink() or not path.is_file():
            raise OutputError(
                f"{path} is not a regular file and is not replaced. Choose another output path."
            )
        if any(other is not None and _same_file(path, Path(other)) for other in inputs):
            raise OutputError(
                f"{path} is read by this very command and is not replaced. Choose another output path."
            )
        if kind is not None and kind_of(path) != kind:
            raise OutputError(
                f"{path} is not a {kind} file, so --overwrite does not replace it. Choose another name."
            )
        if (path.parent / "spec.json").exists():
            raise OutputError(
                f"{path} belongs to a run folder and is not replaced. Choose another output path."
            )
    parent = path.parent
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} does not exist. Create it, or choose another output path.")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the folder {parent} is not writable. Choose another output path.")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return other.exists() and path.samefile(other)
    except OSError:
        return False


def output_error(path: Path, error: OSError) -> OutputError:
    """What went wrong while writing ``path``, in words."""
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return OutputError(
            f"no space left while writing {path}. Free some disk space or choose another disk, "
            "then run the same command again; nothing that was complete is lost."
        )
    return OutputError(f"cannot write {path}: {error}")


class _Sink(io.FileIO):
    """The file HDF5 writes to. A failed write (a full disk) is remembered instead of being reported to HDF5.

    HDF5 cannot close a file whose writes fail: its objects stay open, every later call fails too, and the process may crash
    when it ends. So it is told that all is well, and :func:`create` asks :attr:`error`.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = super().readinto(view) or 0
        if self.error is not None:  # what was not written cannot be read back
            view[done:] = bytes(len(view) - done)
            return len(view)
        return done


class _Deferred:
    """SIGINT and SIGTERM held back: an exception raised inside HDF5's calls to Python would crash the process."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.deliver()

    def _receive(self, number: int, _: object) -> None:
        self._received = number

    def deliver(self) -> None:
        """Raise what the signal that came in between stands for."""
        number, self._received = self._received, None
        if number is not None:
            handler = self._previous[number]
            if callable(handler):
                handler(number, None)
            raise KeyboardInterrupt


def check_written(file: h5py.File) -> None:
    """Raise a failed write to a file of :func:`create`, or an interrupt, now instead of when the block ends."""
    entry = _OPEN.get(file.id.id)
    if entry is not None:
        sink, deferred = entry
        if sink.error is not None:
            raise sink.error
        deferred.deliver()


_OPEN: dict[int, tuple[_Sink, _Deferred]] = {}


@contextmanager
def create(path: Path, kind: str) -> Iterator[h5py.File]:
    """A new file that appears at ``path`` only if the block ends without an error (temporary + fsync + rename)."""
    temporary = beside(path)
    try:
        with _Deferred() as deferred:
            with _Sink(temporary, "w+b") as sink:
                with h5py.File(sink, "w", libver=("v110", "v110"), track_order=False) as file:
                    identifier = file.id.id
                    _OPEN[identifier] = sink, deferred
                    try:
                        file.attrs["format"] = np.bytes_(kind)
                        file.attrs["format_version"] = FORMAT_VERSION
                        # A dataset, not an attribute: HDF5 checksums its metadata, and this is filled in later.
                        write_array(file, checksum.NAME, np.frombuffer(checksum.PLACEHOLDER, dtype=np.uint8))
                        yield file
                    finally:
                        del _OPEN[identifier]
                if sink.error is not None:
                    raise sink.error
            checksum.seal(temporary)
        os.replace(temporary, path)
        guard.trust(path)  # what this process wrote needs no child to read it first
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_array(group: h5py.Group, name: str, array: np.ndarray) -> None:
    """A dataset whose bytes depend on ``array`` alone (no time stamps)."""
    group.create_dataset(name, data=array, track_times=False)


def write_header(file: h5py.File, header: dict[str, Any]) -> None:
    """Store ``header`` as JSON bytes."""
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    write_array(file, "header", np.frombuffer(text, dtype=np.uint8))
