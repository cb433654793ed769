"""Shards: small files of named arrays that are there whole, with a matching checksum, or not at all.

Layout: ``SIMSHARD1\\n``, the hexadecimal sha256 of the owner's name and the payload, a newline, and the payload (npz, no pickles).
The owner says whose shard it is: one that is read in the name of another is as good as damaged.
Written to a temporary name, flushed to disk, renamed: a killed writer leaves at most a temporary file.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from simtool.errors import FormatError, OutputError
from simtool.temporary import beside

_MAGIC = b"SIMSHARD1\n"
_DIGEST_BYTES = 64


def write_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` atomically and durably."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Check that the folder exists, and has space and "
            "rights to write, then run the same command again; finished shards are kept."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(path: Path, arrays: dict[str, np.ndarray], owner: str = "") -> None:
    """Store ``arrays`` of ``owner`` at ``path``."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    payload = buffer.getvalue()
    write_bytes(path, _MAGIC + _digest(owner, payload) + b"\n" + payload)


def _digest(owner: str, payload: bytes) -> bytes:
    return hashlib.sha256(owner.encode() + payload).hexdigest().encode()


def read_shard(path: Path, owner: str = "") -> dict[str, np.ndarray]:
    """The arrays of ``owner`` at ``path``; raises FormatError unless the checksum matches."""
    content = path.read_bytes()
    start = len(_MAGIC) + _DIGEST_BYTES + 1
    payload = content[start:]
    digest = content[len(_MAGIC) : start - 1]
    if not content.startswith(_MAGIC) or _digest(owner, payload) != digest:
        raise FormatError(f"{path} is damaged (its checksum does not match). Delete it and run again.")
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}
    except Exception as error:  # numpy and zip raise many types for a damaged file
        raise FormatError(f"{path} is damaged ({error}). Delete it and run again.") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; nothing larger than what is stored is ever allocated, and nothing is unpickled."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename!r} is compressed, which a shard never is")
    stream = io.BytesIO(archive.read(info))
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{info.filename!r} has the .npy format version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{info.filename!r} claims {dtype} of shape {shape}")
    flat = np.frombuffer(stream.getbuffer()[stream.tell() :], dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="F" if fortran else "C")


def is_valid(path: Path, owner: str = "") -> bool:
    """There, whole, and of ``owner``."""
    try:
        read_shard(path, owner)
    except (FormatError, OSError):
        return False
    return True
