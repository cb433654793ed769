"""What a file of ours may hold. Runs in the guard's child first, then again where the file is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simtool.errors import FormatError

FORMAT_VERSION = 1
_ALLOWED_KINDS = "iufb"
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_DEPTH = 4
_MAX_OBJECTS = 10_000

# What h5py and numpy raise for a damaged file, and Python for a value in it that no field can hold.
DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)


def read_header(file: h5py.File, path: Path) -> dict[str, Any]:
    """The header of a file opened by :func:`simtool.hdf5.open_checked`."""
    header = file.get("header")
    if not isinstance(header, h5py.Dataset) or header.dtype != np.uint8 or header.nbytes > _MAX_HEADER_BYTES:
        raise FormatError(f"{path} has no readable header. Write it again with simtool.")
    try:
        content = json.loads(header[()].tobytes())
    except DAMAGE as error:
        raise FormatError(f"the header of {path} is not JSON: {error}. Write the file again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"the header of {path} is not a JSON object. Write the file again.")
    return content


def refusal(path: Path, name: str, what: str) -> FormatError:
    """The error for a part of the file that could lead elsewhere."""
    return FormatError(
        f"{path}: {name!r} {what}; simtool neither writes nor follows such. Do not trust this file."
    )


def _check_dataset(path: Path, name: str, dataset: h5py.Dataset, file_bytes: int) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise refusal(path, name, "is a virtual dataset")
    if plist.get_external_count():
        raise refusal(path, name, "keeps its data in an external file")
    if plist.get_nfilters():
        raise refusal(path, name, "is a filtered (compressed) dataset")
    if dataset.dtype.kind not in _ALLOWED_KINDS or dataset.shape is None:
        raise refusal(path, name, f"has the element type {dataset.dtype} and shape {dataset.shape}")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored or stored > file_bytes:
        raise FormatError(
            f"{path}: {name!r} claims shape {dataset.shape} ({dataset.nbytes} bytes), but the file stores "
            f"{min(stored, file_bytes)} bytes of it. It is truncated or tampered with; write it again."
        )


def _datasets(
    path: Path, group: h5py.Group, file_bytes: int, depth: int, seen: list[int]
) -> Iterator[h5py.Dataset]:
    """Every dataset in ``group``, checked; ``seen[0]`` counts the objects of the file."""
    group.attrs.get("shape")  # the only attribute a reader asks for, besides the two of the file
    for name in group:
        seen[0] += 1
        link = group.get(name, getlink=True)
        full = f"{group.name.rstrip('/')}/{name}"
        if seen[0] > _MAX_OBJECTS:
            raise refusal(path, full, f"is object number {seen[0]} of the file")
        if not isinstance(link, h5py.HardLink):
            raise refusal(path, full, "is a soft or external link")
        item = group[name]  # unlike get, it raises if the object is damaged
        if isinstance(item, h5py.Group):
            if depth >= _MAX_DEPTH or item == group.file:
                raise refusal(path, full, "nests groups too deeply")
            yield from _datasets(path, item, file_bytes, depth + 1, seen)
        elif isinstance(item, h5py.Dataset):
            _check_dataset(path, full, item, file_bytes)
            yield item
        else:
            raise refusal(path, full, "is neither a group nor a dataset")


def format_of(file: h5py.File) -> str | None:
    """The kind that an open file says it is."""
    kind = file.attrs.get("format")
    return bytes(kind).decode(errors="replace") if isinstance(kind, bytes | np.bytes_) else None


def _check_kind(path: Path, file: h5py.File, kind: str) -> None:
    text, version = format_of(file), file.attrs.get("format_version")
    if text != kind:
        raise FormatError(
            f"{path} is not a {kind} file of simtool (its format is {text if text is None else text[:80]!r})."
        )
    if not isinstance(version, np.integer | int) or int(version) != FORMAT_VERSION:
        shown = version.item() if isinstance(version, np.generic) else version
        raise FormatError(
            f"{path} has format version {shown!r}; this simtool reads version {FORMAT_VERSION}. "
            "Upgrade simtool, or write the file again with this version."
        )


def open_raw(path: Path, what: str) -> h5py.File:
    """``path`` opened for reading, nothing checked; ``what`` it should be. Raises FormatError."""
    try:
        return h5py.File(path, "r", locking=False)
    except DAMAGE as error:
        raise FormatError(
            f"{path} is not a readable HDF5 file ({error}). It is truncated, or not {what}."
        ) from error


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[h5py.File, list[h5py.Dataset]]]:
    """``path`` opened, every link, dataset and version in it checked, and its datasets. Raises FormatError."""
    with open_raw(path, f"a {kind} file of simtool") as file:
        try:
            _check_kind(path, file, kind)
            datasets = list(_datasets(path, file, path.stat().st_size, 0, [0]))
        except DAMAGE as error:
            raise FormatError(f"{path} is damaged ({error}). Write it again.") from error
        yield file, datasets
