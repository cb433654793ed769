"""Opening files: the guard looks first, then the checks run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from simtool.errors import FormatError, InputError
from simtool.hdf5 import checking, guard

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def has_signature(path: Path) -> bool:
    """Whether ``path`` starts as an HDF5 file does, or holds its signature after a block of the user's, as HDF5 allows."""
    with path.open("rb") as file:
        size, position = path.stat().st_size, 0
        while position + len(_SIGNATURE) <= size:
            file.seek(position)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
            position = max(512, 2 * position)
    return False


def kind_of(path: Path) -> str | None:
    """``states`` or ``model`` for a file of ours, None for anything else."""
    try:
        if not path.is_file() or not has_signature(path):
            return None
        if not guard.is_trusted(path):
            return guard.ask_kind(path)
        with checking.open_raw(path, "one of simtool") as file:
            return checking.format_of(file)
    except (*checking.DAMAGE, FormatError):
        return None


@contextmanager
def open_checked(path: Path, kind: str) -> Iterator[h5py.File]:
    """``path`` opened for reading, after every link, dataset and version in it was checked.

    Raises InputError if the file is missing, FormatError if it is foreign, truncated, tampered with or newer, or if the
    HDF5 library fails on it, in whatever way.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a {kind} file is needed.")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; a {kind} file is needed.")
    guard.check(path, {"task": "ours", "kind": kind})
    with checking.opened(path, kind) as (file, _):
        yield file
