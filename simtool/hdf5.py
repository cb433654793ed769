"""HDF5 files that are written whole or not at all, and read without trusting them.

Every file has the root attributes ``format`` (states, model) and ``format_version``, and a dataset ``header``
holding JSON as bytes. A reader refuses what it does not know: soft and external links, external, virtual,
filtered or object datasets, and shapes that claim more bytes than the file stores.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import mmap
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simtool.errors import FormatError, InputError, OutputError

FORMAT_VERSION = 1
_ALLOWED_KINDS = "iufb"
_MAX_HEADER_BYTES = 64 * 2**20


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
                        write_array(file, "sha256", np.frombuffer(_PLACEHOLDER, dtype=np.uint8))
                        yield file
                    finally:
                        del _OPEN[identifier]
                if sink.error is not None:
                    raise sink.error
            _seal(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


# Stands in the dataset sha256 while the digest of the file is computed, when writing and when checking.
_PLACEHOLDER = hashlib.sha256(b"the digest of this file goes here").hexdigest().encode()


def _seal(path: Path) -> None:
    """Put the digest of the finished file into its dataset ``sha256``, and the file onto the disk."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            position = content.find(_PLACEHOLDER)
            digest = hashlib.sha256(content).hexdigest().encode()
        file.seek(position)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def verify_content(path: Path, file: h5py.File) -> None:
    """Raise FormatError if ``file``, open at ``path``, is not as it was written.

    A file without the dataset ``sha256`` (written by another program) is taken as it is.
    """
    dataset = file.get("sha256")
    if dataset is None:
        return
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape != (len(_PLACEHOLDER),)
        or dataset.dtype != np.uint8
    ):
        raise FormatError(f"{path}: 'sha256' is not a digest. Write the file again.")
    stored = dataset[()].tobytes()
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.find(stored)
        digest = hashlib.sha256(content[: max(position, 0)])
        digest.update(_PLACEHOLDER)
        with memoryview(content) as view, view[max(position, 0) + len(stored) :] as rest:
            digest.update(rest)
    if position < 0 or digest.hexdigest().encode() != stored:
        raise FormatError(
            f"{path} was changed after it was written (its checksum does not match), so nothing it proves holds. "
            "Write it again; a file edited on purpose must lose its dataset sha256."
        )


def write_array(group: h5py.Group, name: str, array: np.ndarray) -> None:
    """A dataset whose bytes depend on ``array`` alone (no time stamps)."""
    group.create_dataset(name, data=array, track_times=False)


def write_header(file: h5py.File, header: dict[str, Any]) -> None:
    """Store ``header`` as JSON bytes."""
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    write_array(file, "header", np.frombuffer(text, dtype=np.uint8))


def read_header(file: h5py.File, path: Path) -> dict[str, Any]:
    """The header of a file opened by :func:`open_checked`."""
    header = file.get("header")
    if not isinstance(header, h5py.Dataset) or header.dtype != np.uint8 or header.nbytes > _MAX_HEADER_BYTES:
        raise FormatError(f"{path} has no readable header. Write it again with simtool.")
    try:
        content = json.loads(header[()].tobytes())
    except ValueError as error:
        raise FormatError(f"the header of {path} is not JSON: {error}. Write the file again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"the header of {path} is not a JSON object. Write the file again.")
    return content


def _refuse(path: Path, name: str, what: str) -> FormatError:
    return FormatError(
        f"{path}: {name!r} {what}; simtool neither writes nor follows such. Do not trust this file."
    )


def _check_dataset(path: Path, name: str, dataset: h5py.Dataset, file_bytes: int) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise _refuse(path, name, "is a virtual dataset")
    if plist.get_external_count():
        raise _refuse(path, name, "keeps its data in an external file")
    if plist.get_nfilters():
        raise _refuse(path, name, "is a filtered (compressed) dataset")
    if dataset.dtype.kind not in _ALLOWED_KINDS:
        raise _refuse(path, name, f"has the element type {dataset.dtype}")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored or stored > file_bytes:
        raise FormatError(
            f"{path}: {name!r} claims shape {dataset.shape} ({dataset.nbytes} bytes), but the file stores "
            f"{min(stored, file_bytes)} bytes of it. It is truncated or tampered with; write it again."
        )


def _check_group(path: Path, group: h5py.Group, file_bytes: int) -> None:
    for name in group:
        link = group.get(name, getlink=True)
        full = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(link, h5py.HardLink):
            raise _refuse(path, full, "is a soft or external link")
        item = group.get(name)
        if isinstance(item, h5py.Group):
            if item == group.file or item.name.count("/") > 4:
                raise _refuse(path, full, "nests groups too deeply")
            _check_group(path, item, file_bytes)
        elif isinstance(item, h5py.Dataset):
            _check_dataset(path, full, item, file_bytes)
        else:
            raise _refuse(path, full, "is neither a group nor a dataset")


def kind_of(path: Path) -> str | None:
    """``states`` or ``model`` for a file of ours, None for anything else."""
    try:
        if not h5py.is_hdf5(path):
            return None
        with h5py.File(path, "r") as file:
            kind = file.attrs.get("format")
            return bytes(kind).decode(errors="replace") if isinstance(kind, bytes | np.bytes_) else None
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


@contextmanager
def open_checked(path: Path, kind: str) -> Iterator[h5py.File]:
    """``path`` opened for reading, after every link, dataset and version in it was checked.

    Raises InputError if the file is missing, FormatError if it is foreign, truncated, tampered with or newer.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a {kind} file is needed.")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise FormatError(
            f"{path} is not a readable HDF5 file ({error}). It is truncated, or not a {kind} file of simtool."
        ) from error
    with file:
        try:
            found = file.attrs.get("format")
            version = file.attrs.get("format_version")
            text = bytes(found).decode(errors="replace") if isinstance(found, bytes | np.bytes_) else None
            if text != kind:
                raise FormatError(f"{path} is not a {kind} file of simtool (its format is {text!r}).")
            if not isinstance(version, np.integer | int) or int(version) != FORMAT_VERSION:
                shown = version.item() if isinstance(version, np.generic) else version
                raise FormatError(
                    f"{path} has format version {shown!r}; this simtool reads version {FORMAT_VERSION}. "
                    "Upgrade simtool, or write the file again with this version."
                )
            _check_group(path, file, path.stat().st_size)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} is damaged ({error}). Write it again.") from error
        yield file
