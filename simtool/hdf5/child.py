"""The guard's child: opens files of HDF5 before anyone else does, so that what the library does to them it does here.

It reads requests as lines of JSON on its standard input, answers each by one line, and ends when that input closes, so that it
cannot outlive its parent. Limits on memory, processor time and core files hold for every request.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simtool.errors import FormatError, SimtoolError
from simtool.hdf5 import checking, foreign

_PIECE_BYTES = 16 * 2**20
_SMALL_BYTES = 64 * 2**20
_MEMORY_BYTES = 2**30  # beside what the interpreter has when it starts, and twice the file
_MESSAGE_CHARACTERS = 2000

Slices = tuple[slice, ...]


def _pieces(shape: tuple[int, ...], itemsize: int, start: tuple[int, ...] | None = None) -> Iterator[Slices]:
    """Boxes of at most _PIECE_BYTES that cover ``shape``."""
    start = start or (0,) * len(shape)
    if prod(shape) * itemsize <= _PIECE_BYTES:
        yield tuple(slice(low, low + size) for low, size in zip(start, shape, strict=True))
        return
    axis = int(np.argmax(shape))
    half = shape[axis] // 2
    for low, size in ((0, half), (half, shape[axis] - half)):
        yield from _pieces(
            (*shape[:axis], size, *shape[axis + 1 :]),
            itemsize,
            (*start[:axis], start[axis] + low, *start[axis + 1 :]),
        )


def _read(dataset: h5py.Dataset) -> None:
    """Read all of ``dataset``; of a big one that is stored as it is, one number of each chunk, which finds them all."""
    native = dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype))
    plain = native and not dataset.id.get_create_plist().get_nfilters()
    if plain and dataset.nbytes > _SMALL_BYTES:
        if dataset.chunks is None:
            _ = dataset[tuple(size - 1 for size in dataset.shape)]
            return
        if prod(dataset.chunks) * dataset.dtype.itemsize >= 2**16:
            for chunk in dataset.iter_chunks():
                _ = dataset[tuple(part.start for part in chunk)]
            return
    for piece in _pieces(dataset.shape, dataset.dtype.itemsize):
        _ = dataset[piece]


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    if request["task"] == "kind":
        with checking.open_raw(path, "one of simtool") as file:
            return {"kind": checking.format_of(file)}
    if request["task"] == "foreign":
        with foreign.opened(path, request["names"], request["optional"]) as found:
            for dataset in found.values():
                _read(dataset)
        return {}
    with checking.opened(path, request["kind"]) as (_, datasets):
        for dataset in datasets:
            _read(dataset)
    return {}


def _address_space() -> int:
    """Bytes that the interpreter and its libraries take."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _limit(base: int, request: dict[str, Any]) -> None:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + request["cpu_seconds"]) + 1)
    _lower(resource.RLIMIT_AS, base + _MEMORY_BYTES + 2 * os.stat(request["path"]).st_size)


def _serve(line: str, base: int) -> dict[str, Any]:
    request = json.loads(line)
    path = request["path"]
    try:
        os.chdir(request["folder"])  # the path is the one that messages show
        _limit(base, request)
        return _answer(request)
    except SimtoolError as error:
        return {"error": str(error)[:_MESSAGE_CHARACTERS], "type": type(error).__name__}
    except checking.DAMAGE as error:
        shown = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]
        return {"error": f"{path} is damaged ({shown}). Write it again.", "type": FormatError.__name__}


def main() -> None:
    """Answer requests until the input closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, does not print among the answers
    base = _address_space()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(line, base)), file=answers, flush=True)
