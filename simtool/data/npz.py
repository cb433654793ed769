"""``.npz`` data: members are streamed out of the zip file, and never unpickled."""

from __future__ import annotations

import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from simtool.data.source import ArraySource, DataSource
from simtool.data.stream import StreamSource, read_exactly
from simtool.errors import FormatError, InputError

# What zipfile raises for a damaged file.
_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, zlib.error, EOFError),
    *(OSError, RuntimeError, ValueError, LookupError, ArithmeticError),
)
_Header = tuple[tuple[int, ...], bool, np.dtype]


def _header(stream: BinaryIO, what: str) -> _Header:
    """(shape, fortran_order, dtype) of the .npy stream, which then stands at the data."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # numpy and zip raise many types for a damaged header
        raise FormatError(
            f"{what} is not a readable array: {error}. Write it again with numpy.savez."
        ) from error
    raise FormatError(f"{what} has the .npy format version {version}; 1.0 and 2.0 are read.")


class _Member:
    """One array of an .npz file, its size checked against the file before anything is read."""

    def __init__(self, path: Path, name: str) -> None:
        self.what = f"{path}:{name}"
        self._path = path
        with zipfile.ZipFile(path) as archive:
            names = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
            if name not in names:
                raise InputError(
                    f"{path} has no array {name!r}; it has {', '.join(names) or 'none'}. Name them as {path}:inputs,labels."
                )
            self._member = names[name]
            info = archive.getinfo(self._member)
            with archive.open(info) as stream:
                self.shape, self.fortran, self.dtype = _header(cast(BinaryIO, stream), self.what)
                self._start = stream.tell()
        if self.dtype.hasobject:
            raise InputError(
                f"{self.what} holds Python objects, which would have to be unpickled. Store plain numbers."
            )
        claimed = prod(self.shape) * self.dtype.itemsize
        if self._start + claimed != info.file_size or min(self.shape, default=0) < 0:
            raise FormatError(
                f"{self.what} claims shape {self.shape} ({claimed} bytes), the file holds {info.file_size - self._start}. "
                "It is truncated or tampered with; write it again."
            )

    def open(self) -> BinaryIO:
        """A stream at the first value."""
        with zipfile.ZipFile(self._path) as archive:
            stream = archive.open(self._member)  # keeps the file open after the archive is closed
        read_exactly(cast(BinaryIO, stream), self._start, self.what)
        return cast(BinaryIO, stream)

    def read(self) -> np.ndarray:
        """The whole array."""
        with self.open() as stream:
            content = read_exactly(stream, prod(self.shape) * self.dtype.itemsize, self.what)
        return np.frombuffer(content, dtype=self.dtype).reshape(
            self.shape, order="F" if self.fortran else "C"
        )


def open_npz(path: Path, inputs: str, labels: str | None, labels_asked: bool) -> DataSource:
    """The arrays ``inputs`` and ``labels`` (None: not read) of ``path``; labels may be missing unless they were asked for."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.removesuffix(".npy") for entry in archive.namelist()}
        member = _Member(path, inputs)
        wanted = labels if labels_asked or labels in names else None
        found = _Member(path, wanted).read() if wanted is not None else None
    except _DAMAGE as error:
        raise FormatError(
            f"{path} is not a readable .npz file ({error}). Write it again with numpy.savez."
        ) from error
    if len(member.shape) < 2:
        raise InputError(
            f"{member.what} has shape {member.shape}; (samples, values...) is needed. Add an axis."
        )
    if member.fortran:  # samples are not contiguous: such a file cannot be streamed
        return ArraySource(str(path), None, member.read(), found)
    return StreamSource(str(path), None, member.shape, member.dtype, found, member.open)
