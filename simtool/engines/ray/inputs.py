"""The inputs of a run in Ray's object store, for nodes that do not see the run folder (see :mod:`.task`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from simtool.engines.ray.task import Manifest, Shipment

PIECE_BYTES = 64 * 2**20
# What tasks left, which is numbered as they are, and files of nobody else's business.
_NO_INPUT = re.compile(r"(.*-)?\d{6,}\.\w+|\..*|log\.txt")


class Inputs:
    """What the driver has sent for ``owner``; a file that did not change is sent once for all of its run's phases."""

    def __init__(self, ray: Any, owner: str) -> None:
        self._ray = ray
        self._owner = owner
        self._pieces: dict[str, list[Any]] = {}
        self._count = 0

    def ship(self, folder: Path) -> Shipment:
        """Put the files of ``folder`` that tasks may read into the object store."""
        files: dict[str, tuple[str, list[Any]]] = {}
        folders = ["."]
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                folders.append(name)
            elif not _NO_INPUT.fullmatch(path.name):
                status = path.stat()
                key = f"{name.replace('/', '-')}-{status.st_mtime_ns}-{status.st_size}"
                files[name] = (key, self._pieces.get(key) or self._put(path, status.st_size))
        self._pieces = dict(files.values())  # what is no input any more leaves the store
        self._count += 1
        return Shipment(self._owner, self._count, [self._ray.put(Manifest(files, tuple(folders)))])

    def _put(self, path: Path, size: int) -> list[Any]:
        # Mapped, so that this process never holds a whole file; an empty one cannot be mapped.
        content = np.memmap(path, mode="r") if size else np.empty(0, np.uint8)
        return [
            self._ray.put(np.asarray(content[start : start + PIECE_BYTES]))
            for start in range(0, max(1, size), PIECE_BYTES)
        ]
