"""Few bytes for a sparse matrix: gaps instead of columns, the smallest integers, bytes of a kind together, zlib.

SIM (appendix B) counts ceil(log2 nnz) bits a row and ceil(log2 columns) bits an entry for the positions of a CSR matrix.
No code that knows nothing of the pattern but the number of its entries can do better, on average over all patterns, than
log2 of their number, log2 C(rows * columns, nnz). Gaps between the columns of a random row are geometric, so that the Huffman code
inside zlib comes close to that bound. Values are stored beside the positions, as float32 or float16.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import ceil, lgamma, log, log2
from typing import Any

import numpy as np
from scipy import sparse

from simtool.errors import FormatError, InputError, OptionError

VALUE_TYPES = ("float32", "float16")
_MAGIC = b"simcsr1\0"
# magic, rows, columns, entries; then for each stream its kind, count and packed bytes
_HEADER, _STREAM = struct.Struct("<8sQQQ"), struct.Struct("<2sQQ")
_INTEGERS = ("u1", "u2", "u4", "u8")
_FLOATS = {"float16": "f2", "float32": "f4"}
_STREAMS = ("counts", "firsts", "gaps", "values")
_LIMIT = 2**31  # entries and rows that a reader believes in


@dataclass(frozen=True)
class Compressed:
    """A matrix as ``payload``; of it ``index_bytes`` and ``value_bytes`` hold positions and values, the rest is header."""

    payload: bytes
    index_bytes: int
    value_bytes: int


def compress(matrix: Any, value_type: str = "float32") -> Compressed:
    """``matrix`` with its values rounded to ``value_type``; :func:`decompress` gives exactly those back.

    Stored zeros are dropped, and so is what rounds to zero. Raises OptionError for an unknown type, InputError where a
    value is not finite or too large for it.
    """
    if value_type not in VALUE_TYPES:
        raise OptionError(f"the values' type must be one of {', '.join(VALUE_TYPES)}, got {value_type!r}.")
    stored = sparse.csr_array(matrix, copy=True)
    stored.sum_duplicates()
    with np.errstate(over="ignore"):
        stored.data = stored.data.astype(value_type).astype(np.float64)
    if not np.isfinite(stored.data).all():
        raise InputError(
            f"the matrix holds values that are not finite in {value_type}. "
            + ("Use float32." if value_type == "float16" else "Remove or repair them.")
        )
    stored.eliminate_zeros()
    stored.sort_indices()
    counts = np.diff(stored.indptr)
    columns = stored.indices.astype(np.int64)
    start = stored.indptr[:-1][counts > 0]
    inside = np.ones(columns.size, dtype=bool)
    inside[start] = False
    gaps = np.diff(columns, prepend=0)[inside] - 1
    streams = [_integers(counts), _integers(columns[start]), _integers(gaps)]
    streams.append(stored.data.astype(f"<{_FLOATS[value_type]}"))
    head = _HEADER.pack(_MAGIC, *stored.shape, columns.size)
    packed = [_pack(stream) for stream in streams]
    return Compressed(
        payload=head + b"".join(packed),
        index_bytes=sum(map(len, packed[:3])),
        value_bytes=len(packed[3]),
    )


def decompress(payload: bytes) -> sparse.csr_array:
    """The matrix in float64. Raises FormatError for anything that :func:`compress` did not write."""
    if len(payload) < _HEADER.size:
        raise FormatError(f"a compressed matrix has a header of {_HEADER.size} bytes, got {len(payload)}.")
    magic, rows, columns, nnz = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise FormatError(f"the data begin with {magic!r}, a compressed matrix with {_MAGIC!r}.")
    if max(rows, columns, nnz) > _LIMIT:
        raise FormatError(
            f"the header names {rows} rows, {columns} columns and {nnz} entries, too many to be true."
        )
    at, streams = _HEADER.size, {}
    for name in _STREAMS:
        streams[name], at = _unpack(payload, at, name, max(rows, nnz))
    if at != len(payload):
        raise FormatError(f"{len(payload) - at} bytes follow the last stream of the compressed matrix.")
    counts, firsts, gaps, values = (streams[name] for name in _STREAMS)
    used = counts > 0
    if (
        counts.size != rows
        or firsts.size != int(used.sum())
        or int(counts.sum()) != nnz
        or gaps.size != nnz - firsts.size
        or values.size != nnz
    ):
        raise FormatError("the streams of the compressed matrix do not fit together: it is damaged.")
    indptr = np.concatenate([[0], np.cumsum(counts.astype(np.int64))])
    first = np.zeros(nnz, dtype=bool)
    first[indptr[:-1][used]] = True
    steps = np.empty(nnz, dtype=np.int64)
    steps[~first] = gaps.astype(np.int64) + 1
    steps[first] = firsts.astype(np.int64)
    running = np.cumsum(steps)
    # Each row's sum begins anew: take off what stood before its first entry.
    before = running[first] - steps[first]
    found = running - np.repeat(before, counts[used].astype(np.int64))
    if nnz and (found.min() < 0 or found.max() >= columns or (steps < 0).any()):
        raise FormatError(f"the compressed matrix names columns outside 0..{columns - 1}: it is damaged.")
    data = values.astype(np.float64)
    if not np.isfinite(data).all():
        raise FormatError("the compressed matrix holds values that are not finite: it is damaged.")
    return sparse.csr_array((data, found.astype(np.int32), indptr), shape=(rows, columns))


# --- streams: the smallest type, bytes of equal weight side by side, zlib ----------------------------------------------


def _integers(array: np.ndarray) -> np.ndarray:
    largest = int(array.max(initial=0))
    kind = next(kind for kind in _INTEGERS if largest <= np.iinfo(kind).max)
    return np.asarray(array.astype(f"<{kind}"))


def _pack(array: np.ndarray) -> bytes:
    shuffled = np.ascontiguousarray(array.view(np.uint8).reshape(array.size, array.itemsize).T).tobytes()
    # Matches of strings help with repeated patterns and hurt in random ones, where a Huffman code alone is better.
    smallest = min((_deflate(shuffled, s) for s in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)), key=len)
    return _STREAM.pack(array.dtype.str[1:].encode(), array.size, len(smallest)) + smallest


def _deflate(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(data) + packer.flush()


def _unpack(payload: bytes, at: int, name: str, most: int) -> tuple[np.ndarray, int]:
    """The stream at ``at`` and where the next begins; no more is unpacked than its ``most`` numbers take."""
    if len(payload) - at < _STREAM.size:
        raise FormatError(f"the compressed matrix ends before its {name}: it is truncated.")
    kind, count, length = _STREAM.unpack_from(payload, at)
    at += _STREAM.size
    allowed = tuple(_FLOATS.values()) if name == "values" else _INTEGERS
    if kind.decode("ascii", "replace") not in allowed or count > most or length > len(payload) - at:
        raise FormatError(f"the {name} of the compressed matrix are damaged or truncated.")
    dtype = np.dtype(f"<{kind.decode()}")
    size = count * dtype.itemsize
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(payload[at : at + length], size + 1)
    except zlib.error as error:
        raise FormatError(f"the {name} of the compressed matrix cannot be unpacked: {error}.") from error
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"the {name} of the compressed matrix are damaged: they unpack to a wrong length.")
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(count), at + length


# --- how few they could be ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Bytes and bits of one matrix, or of several added up.

    ``dense_bytes`` and ``csr_bytes`` are in float32 with 4-byte indices; ``sim_index_bits`` is the count of SIM's appendix
    B; ``entropy_bits`` is log2 C(entries, nnz) and ``row_entropy_bits`` the sum of log2 C(columns, nnz of the row), which is
    told the number of entries of every row. ``index_bytes``, ``float32_bytes``, ``float16_bytes`` are ours: positions, and values.
    """

    entries: int = 0
    nnz: int = 0
    dense_bytes: int = 0
    csr_bytes: int = 0
    sim_index_bits: int = 0
    entropy_bits: float = 0.0
    row_entropy_bits: float = 0.0
    index_bytes: int = 0
    float32_bytes: int = 0
    float16_bytes: int = 0

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sizes(matrices: Iterable[Any]) -> Sizes:
    """The sizes of ``matrices``, added up; each is counted with its own shape."""
    total = Sizes()
    for matrix in matrices:
        stored = sparse.csr_array(matrix, copy=True)
        stored.sum_duplicates()
        stored.eliminate_zeros()
        rows, columns = stored.shape
        single = compress(stored)
        half = compress(stored, "float16")
        total += Sizes(
            entries=rows * columns,
            nnz=int(stored.nnz),
            dense_bytes=4 * rows * columns,
            csr_bytes=8 * int(stored.nnz) + 4 * (rows + 1),
            sim_index_bits=sim_index_bits(rows, columns, int(stored.nnz)),
            entropy_bits=log2_binomial(rows * columns, int(stored.nnz)),
            row_entropy_bits=sum(log2_binomial(columns, int(count)) for count in np.diff(stored.indptr)),
            index_bytes=single.index_bytes,
            float32_bytes=single.value_bytes,
            float16_bytes=half.value_bytes,
        )
    return total


def sim_index_bits(rows: int, columns: int, nnz: int) -> int:
    """rows * ceil(log2 nnz) + nnz * ceil(log2 columns) (SIM, appendix B); 0 without entries."""
    return rows * ceil(log2(nnz)) + nnz * ceil(log2(columns)) if nnz else 0


def log2_binomial(n: int, k: int) -> float:
    """log2 of the number of ways to choose ``k`` of ``n``."""
    return max(0.0, (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2.0))
