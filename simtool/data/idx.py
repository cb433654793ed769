"""IDX files (the format of MNIST), plain or gzipped, streamed."""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from simtool.data.source import DataSource
from simtool.data.stream import StreamSource, check_end, read_exactly
from simtool.errors import FormatError, InputError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


class IdxFile:
    """One IDX file; its header is checked against the bytes that are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open_raw() as stream:
            magic = read_exactly(stream, 4, str(path))
            if magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 8:
                raise FormatError(f"{path} is not an IDX file (it starts with {magic.hex()}).")
            sizes = np.frombuffer(read_exactly(stream, 4 * magic[3], str(path)), dtype=">u4")
        self.dtype = np.dtype(_TYPES[magic[2]])
        self.shape = tuple(int(size) for size in sizes)
        self._start = 4 + 4 * magic[3]
        self._check_size()

    def _open_raw(self) -> BinaryIO:
        try:
            if self.path.suffix == ".gz":
                return cast(BinaryIO, gzip.open(self.path, "rb"))
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}.") from error

    def _check_size(self) -> None:
        claimed = self._start + prod(self.shape) * self.dtype.itemsize
        stored = self.path.stat().st_size
        if self.path.suffix == ".gz":
            # The last four bytes of a gzip file are its length modulo 2^32.
            with self.path.open("rb") as file:
                file.seek(max(0, stored - 4))
                length = int.from_bytes(file.read(4), "little")
            fits = length == claimed % 2**32 and claimed <= 1100 * stored  # deflate shrinks by 1032 at most
        else:
            length, fits = stored, stored == claimed
        if not fits:
            raise FormatError(
                f"{self.path} claims shape {self.shape} ({claimed} bytes with its header) but holds {length} bytes. It is "
                "truncated or tampered with; get it again."
            )

    def open(self) -> BinaryIO:
        """A stream at the first value."""
        stream = self._open_raw()
        read_exactly(stream, self._start, str(self.path))
        return stream

    def read(self) -> np.ndarray:
        """The whole array."""
        with self.open() as stream:
            content = read_exactly(stream, prod(self.shape) * self.dtype.itemsize, str(self.path))
            check_end(stream, str(self.path))
        return np.frombuffer(content, dtype=self.dtype).reshape(self.shape)


def _find(folder: Path, prefixes: tuple[str, ...], word: str) -> Path | None:
    def fits(name: str) -> bool:
        return any(name.startswith(p) for p in prefixes) and word in name and "idx" in name

    found = sorted(path for path in folder.iterdir() if path.is_file() and fits(path.name.lower()))
    return found[0] if found else None


def open_idx(folder: Path, split: str | None, name: str | None = None) -> DataSource:
    """The images and labels of ``split`` (train, test) in ``folder``; a folder without such prefixes has no splits."""
    label = name or str(folder)
    train, test = (_find(folder, _PREFIXES[key], "images") for key in ("train", "test"))
    if train is None and test is None:
        images, labels, found = _find(folder, ("",), "images"), _find(folder, ("",), "labels"), None
        if images is None:
            raise InputError(
                f"the folder {folder} holds no IDX images (train-images-idx3-ubyte, t10k-images-idx3-ubyte, .gz too). "
                "Check the path."
            )
    else:
        found = split or "train"
        if found not in _PREFIXES:
            raise InputError(f"{label} has the splits train and test, got {found!r}.")
        images = train if found == "train" else test
        if images is None:
            raise InputError(
                f"the folder {folder} holds no images of the split {found!r} (t10k-... is test)."
            )
        labels = _find(folder, _PREFIXES[found], "labels")
    file = IdxFile(images)
    if len(file.shape) < 2:
        raise InputError(f"{images} has shape {file.shape}; (samples, values...) is needed.")
    classes = IdxFile(labels).read() if labels is not None else None
    return StreamSource(label, found, file.shape, file.dtype, classes, file.open)
