"""The files of a sweep, and the only place that knows their names; see :mod:`simtool.stages.sweep.stage`."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, OutputError, SpecChanged
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.lock import locked


class SweepFolder:
    """The folder ``path`` of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.grid = path / "grid.json"
        self.json = path / "sweep.json"
        self.csv = path / "sweep.csv"
        self.points = path / "points"
        self.results = path / "results"
        self.shared = path / "shared"

    def point(self, name: str) -> RunFolder:
        """The run of a point."""
        return RunFolder(self.points / name)

    def result_file(self, name: str) -> Path:
        """Where it stands what a point is worth."""
        return self.results / f"{name}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """What is stored there; None for nothing, or nothing that can be read."""
        try:
            content = json.loads(self.result_file(name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) and isinstance(content.get("line"), dict) else None

    def prepare(self) -> None:
        """Create the folder. Raises OutputError where it is something else, or cannot be."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; a sweep is a folder. Choose another -o.")
        begun = {"points", "results", "shared", ".lock", ".owner"}
        present = list(self.path.iterdir()) if self.path.is_dir() and not self.grid.exists() else []
        if any(p.name not in begun and p.suffix != ".tmp" for p in present):
            raise OutputError(
                f"{self.path} exists and is not a sweep of simtool (it has no grid.json). Choose another -o."
            )
        try:
            for folder in (self.path, self.points, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the folder {self.path}: {error.strerror}. Choose another -o."
            ) from error

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder; see :mod:`simtool.stages.sparsify.lock`."""
        return locked(self.path)

    def claim(self, content: dict[str, Any]) -> None:
        """Store what defines the sweep, or check that the folder was begun with the same. Raises SpecChanged or FormatError."""
        if not self.grid.exists():
            write_bytes(self.grid, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
            return
        try:
            stored = json.loads(self.grid.read_bytes())
            if stored["format_version"] != content["format_version"]:
                raise ValueError(f"format version {stored['format_version']!r}")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{self.grid} cannot be read ({error}). Start again in a new folder."
            ) from error
        here = json.loads(json.dumps(content))
        changed = next((key for key in here if stored.get(key) != here[key]), None)
        if changed is None:
            return
        old, new = stored.get(changed), here[changed]
        if isinstance(old, dict) and isinstance(new, dict):
            inner = next(key for key in {**old, **new} if old.get(key) != new.get(key))
            changed, old, new = f"{changed}.{inner}", old.get(inner), new.get(inner)
        elif isinstance(old, list) and isinstance(new, list):
            at = next(
                (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
                min(len(old), len(new)),
            )
            words = [str(items[at]) if at < len(items) else "none" for items in (old, new)]
            changed, old, new = f"point {at:03d}", *words
        raise SpecChanged(
            f"the sweep in {self.path} was started with {changed} = {old}, now it is {new}. Use the same command to go on, or another -o "
            "for a new sweep."
        )

    def write(self, name: str, content: bytes) -> Path:
        """Put ``content`` into the file ``name`` of the folder, whole or not at all. Raises OutputError."""
        write_bytes(self.path / name, content)
        return self.path / name

    def finish(self, result: dict[str, Any], csv: str) -> dict[str, Any]:
        """Write sweep.csv and sweep.json, and drop what points shared. A sweep that was finished stays as it was written: its time
        is that of the call that did the work. Returns what sweep.json holds."""
        with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):
            stored = json.loads(self.json.read_bytes())
            other_times = {"seconds": result["seconds"], "sweep": result["sweep"], "states": result["states"]}
            if {**stored, **other_times} == result:
                result = {**stored, "sweep": result["sweep"], "states": result["states"]}
        write_bytes(self.csv, csv.encode())
        write_bytes(self.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        shutil.rmtree(self.shared, ignore_errors=True)
        return result
