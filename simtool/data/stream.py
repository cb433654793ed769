"""Samples that lie one after the other in a byte stream (an IDX file, a member of an .npz), read forward only."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from math import prod
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from simtool.data.source import DataSource
from simtool.errors import FormatError

_SKIP_BYTES = 2**22


def _read(stream: BinaryIO, size: int, what: str) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error, BadZipFile, NotImplementedError, RuntimeError) as error:
        raise FormatError(f"{what} is damaged or truncated ({error}). Get the file again.") from error


def check_end(stream: BinaryIO, what: str) -> None:
    """FormatError unless ``stream`` ends here; only at its end does a gzip file check what was read."""
    if _read(stream, 1, what):
        raise FormatError(f"{what} goes on where its data should end. Get the file again.")


def read_exactly(stream: BinaryIO, size: int, what: str) -> bytes:
    """``size`` bytes of ``stream``; FormatError if it ends before or cannot be decompressed."""
    content = _read(stream, size, what)
    if len(content) != size:
        raise FormatError(
            f"{what} is truncated: {size} more bytes were announced, {len(content)} are there. Get the file again."
        )
    return content


def _skip(stream: BinaryIO, size: int, what: str) -> None:
    while size > 0:
        size -= len(read_exactly(stream, min(size, _SKIP_BYTES), what))


class StreamSource(DataSource):
    """Inputs in C order behind ``open_stream``, which gives a stream that stands at the first sample."""

    def __init__(
        self,
        name: str,
        split: str | None,
        shape: tuple[int, ...],
        dtype: np.dtype,
        labels: np.ndarray | None,
        open_stream: Callable[[], BinaryIO],
    ) -> None:
        super().__init__(name, split, shape[0], shape[1:], dtype, labels)
        self._open_stream = open_stream

    def _raw(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        width = prod(self.sample_shape) * self.dtype.itemsize
        position = 0
        with self._open_stream() as stream:
            for start in range(0, indices.size, size):
                wanted = indices[start : start + size]
                parts = []
                # Runs of neighbouring samples are read at once, gaps are skipped.
                for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
                    _skip(stream, (int(run[0]) - position) * width, self.name)
                    parts.append(read_exactly(stream, run.size * width, self.name))
                    position = int(run[-1]) + 1
                if position == self.count:
                    check_end(stream, self.name)
                flat = np.frombuffer(b"".join(parts), dtype=self.dtype)
                yield flat.reshape(len(wanted), *self.sample_shape)
