"""A file that appears under its name complete and on the disk, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simtool.hdf5 import output_error
from simtool.temporary import beside


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write ``path``; it gets its name when the block ends without an error. Raises OutputError."""
    temporary = beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
