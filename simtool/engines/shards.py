"""Shards: small files of named arrays that are there whole, with a matching checksum, or not at all.

Layout: ``SIMSHARD1\\n``, the hexadecimal sha256 of the payload, a newline, and the payload (npz, no pickles).
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

_MAGIC = b"SIMSHARD1\n"
_DIGEST_BYTES = 64


def write_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def write_shard(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Store ``arrays`` at ``path``."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    payload = buffer.getvalue()
    write_bytes(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """The arrays at ``path``; raises FormatError unless the checksum matches."""
    content = path.read_bytes()
    start = len(_MAGIC) + _DIGEST_BYTES + 1
    payload = content[start:]
    digest = content[len(_MAGIC) : start - 1]
    if not content.startswith(_MAGIC) or hashlib.sha256(payload).hexdigest().encode() != digest:
        raise FormatError(f"{path} is damaged (its checksum does not match). Delete it and run again.")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is damaged ({error}). Delete it and run again.") from error


def is_valid(path: Path) -> bool:
    """There, and whole."""
    try:
        read_shard(path)
    except (FormatError, OSError):
        return False
    return True
