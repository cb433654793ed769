"""The digest that a file holds of itself, in its dataset ``sha256``."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import h5py
import numpy as np

from simtool.errors import FormatError

NAME = "sha256"
# Stands in the dataset while the digest of the file is computed, when writing and when checking.
PLACEHOLDER = hashlib.sha256(b"the digest of this file goes here").hexdigest().encode()


def seal(path: Path) -> None:
    """Put the digest of the finished file into its dataset, and the file onto the disk."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            position = content.find(PLACEHOLDER)
            digest = hashlib.sha256(content).hexdigest().encode()
        file.seek(position)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def verify_content(path: Path, file: h5py.File) -> None:
    """Raise FormatError if ``file``, open at ``path``, is not as it was written; reads all of it once, without HDF5.

    A file without the dataset (written by another program) is taken as it is.
    """
    dataset = file.get(NAME)
    if dataset is None:
        return
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape != (len(PLACEHOLDER),)
        or dataset.dtype != np.uint8
    ):
        raise FormatError(f"{path}: {NAME!r} is not a digest. Write the file again.")
    stored = dataset[()].tobytes()
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.find(stored)
        digest = hashlib.sha256(content[: max(position, 0)])
        digest.update(PLACEHOLDER)
        with memoryview(content) as view, view[max(position, 0) + len(stored) :] as rest:
            digest.update(rest)
    if position < 0 or digest.hexdigest().encode() != stored:
        raise FormatError(
            f"{path} was changed after it was written (its checksum does not match), so nothing it proves holds. "
            "Write it again; a file edited on purpose must lose its dataset sha256."
        )
