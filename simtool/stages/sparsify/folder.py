"""The files of a run, and the only place that knows their names.

RUN/spec.json     everything that defines the answer: options, states, sizes, versions
RUN/work/         inputs as plain arrays and Gram tiles; removed when the run is finished
RUN/constraints.shard  mask and sample weights, where asked for
RUN/rows/         one shard per piece of rows; before them, what a heuristic elimination keeps, or the supports of a budget
RUN/model.h5      the answer
RUN/elimination.json  what --eliminate found, with the numbers of the states file's rows
RUN/timing.json   times, engine, workers, memory, and the result that is printed again on a rerun
RUN/request.json  how the run was asked for: the states file, the engine and its options; no effect on the answer
RUN/mixed/        there with --allow-mixed: the environments that worked on the run and differ from the spec's
RUN/slurm/        scripts, jobs and logs of --engine slurm
RUN/log.txt       what was logged
RUN/validation/, RUN/recipe.json   how a recipe is chosen, and which was: simtool.stages.tune
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simtool.engines.shards import is_valid, read_shard, write_bytes, write_shard
from simtool.errors import FormatError, InputError, OutputError, SpecChanged
from simtool.stages.sparsify.lock import locked
from simtool.temporary import beside

SPEC_VERSION = 1
VALIDATION, RECIPE = "validation", "recipe.json"
_SHOWN = 200  # characters of a value in a message


class RunFolder:
    """The folder ``path`` of one sparsify run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.work = path / "work"
        self.rows = path / "rows"
        self.model = path / "model.h5"
        self.elimination = path / "elimination.json"
        self.kept = self.rows / "kept.shard"
        self.supports = self.rows / "supports.shard"
        self.timing = path / "timing.json"
        self.log = path / "log.txt"
        self.constraints = path / "constraints.shard"
        self.request = path / "request.json"
        self.mixed = path / "mixed"
        self.slurm = path / "slurm"
        self.tracks = self.work / "tracks"

    def shard(self, index: int) -> Path:
        return self.rows / f"{index:06d}.shard"

    def tile(self, index: int) -> Path:
        return self.work / f"tile-{index:06d}.shard"

    def array(self, name: str) -> Path:
        return self.work / f"{name}.npy"

    def store(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Write ``arrays`` as the shard ``path`` of this run. Raises OutputError."""
        write_shard(path, arrays, self._owner(path))

    def load(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of the shard ``path``. Raises FormatError if it is damaged, of another run, or of another place."""
        return read_shard(path, self._owner(path))

    def holds(self, path: Path) -> bool:
        """Whether the shard ``path`` is there, whole, and of this run and place."""
        return is_valid(path, self._owner(path))

    def _owner(self, path: Path) -> str:
        return f"{hashlib.sha256(self.spec.read_bytes()).hexdigest()} {path.name} "

    def prepare(self) -> None:
        """Create the folder and its parts; raises OutputError if that cannot be."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; a run is a folder. Choose another -o.")
        # A run killed before it wrote its spec leaves only these; it may begin again.
        begun = {"work", "rows", ".lock", ".owner", "log.txt", "request.json", VALIDATION, RECIPE}
        if self.path.is_dir() and not self.spec.exists():
            foreign = [p.name for p in self.path.iterdir() if p.name not in begun and p.suffix != ".tmp"]
        else:
            foreign = []
        if not self.spec.exists() and any(self.rows.glob("*.shard")):
            raise OutputError(
                f"{self.path} holds shards of a run, but not its spec.json, which says of which. Choose another -o."
            )
        if foreign:
            raise OutputError(
                f"{self.path} exists and is not a run of simtool (it has no spec.json). Choose another -o."
            )
        try:
            for folder in (self.path, self.work, self.rows):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the run folder {self.path}: {error.strerror}. Choose another -o."
            ) from error

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder; see :mod:`simtool.stages.sparsify.lock`."""
        return locked(self.path)

    def claim(self, spec: dict[str, Any]) -> None:
        """Store ``spec``, or check that the folder was started with the same one, in whatever environment."""
        if not self.spec.exists():
            write_bytes(self.spec, (json.dumps(spec, indent=2, sort_keys=True) + "\n").encode())
            return
        stored = self.read_spec()
        for key, section in spec.items():
            if key == "environment":  # of whoever works on the run: see agreement.py
                continue
            old = stored.get(key)
            if old == section:
                continue
            if key == "layers":
                raise SpecChanged(changed(self.path, "states", "other ones", "these"))
            if isinstance(section, dict) and isinstance(old, dict):
                field = next(k for k in {**old, **section} if old.get(k) != section.get(k))
                raise SpecChanged(changed(self.path, f"{key}.{field}", old.get(field), section.get(field)))
            raise SpecChanged(changed(self.path, key, old, section))

    def read_spec(self) -> dict[str, Any]:
        """The stored spec; raises FormatError if it is not readable or of another version."""
        try:
            spec = json.loads(self.spec.read_text())
        except FileNotFoundError as error:
            if (self.path / VALIDATION).is_dir():
                raise InputError(
                    f"the recipe of the run in {self.path} is still being chosen. Run the same simtool sparsify command again to go on; where "
                    f"its parts stand says simtool status {self.path / VALIDATION}/NAME."
                ) from error
            raise InputError(f"{self.path} is not a run folder: it has no spec.json.") from error
        except NotADirectoryError as error:
            raise InputError(f"{self.path} is a file; a run is a folder.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(
                f"{self.spec} cannot be read ({error}). Start again in a new folder."
            ) from error
        if not isinstance(spec, dict) or spec.get("format_version") != SPEC_VERSION:
            raise FormatError(
                f"{self.spec} has format version {spec.get('format_version') if isinstance(spec, dict) else None!r}"
                f"; this simtool reads {SPEC_VERSION}. Use the version that wrote it, or a new folder."
            )
        return spec

    def read_timing(self) -> dict[str, Any] | None:
        """The stored timing and result, None if the run has not finished."""
        try:
            content = json.loads(self.timing.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    @contextlib.contextmanager
    def new_array(self, name: str, shape: tuple[int, ...], dtype: type) -> Iterator[np.ndarray]:
        """A plain .npy to be filled, for workers to map; it is there once the block ends without an error."""
        path = self.array(name)
        temporary = beside(path)
        try:
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            # A hole filled through a map that the disk cannot hold would end the process: claim the space first.
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            yield mapped
            mapped.flush()
            # Rows are proven against these numbers: they must be on the disk before they have their name.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}. Free some space, then run again."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def seal(self, name: str) -> None:
        """Store the checksum of array ``name``, for :meth:`is_sealed`."""
        write_bytes(self._checksum(name), self._sha256(name).encode())

    def is_sealed(self, name: str) -> bool:
        """Whether array ``name`` is there as it was when it was sealed; reads all of it."""
        try:
            return self._checksum(name).read_bytes() == self._sha256(name).encode()
        except OSError:
            return False

    def was_sealed(self, name: str) -> bool:
        """Whether array ``name`` was sealed once, whatever has become of it."""
        return self._checksum(name).exists()

    def _checksum(self, name: str) -> Path:
        return self.work / f"{name}.sha256"

    def _sha256(self, name: str) -> str:
        with self.array(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def map_array(self, name: str) -> np.ndarray:
        """The array written by :meth:`new_array`, mapped read-only."""
        mapped: np.ndarray = np.load(self.array(name), mmap_mode="r", allow_pickle=False)
        return mapped

    def remove_temporary(self) -> None:
        """Drop what killed writers left; for who holds the folder."""
        for place in (self.path, self.rows, self.work):
            for file in place.glob(".*.tmp"):
                file.unlink(missing_ok=True)

    def remove_work(self) -> None:
        """Drop what only a running run needs."""
        shutil.rmtree(self.work, ignore_errors=True)


def changed(path: Path, field: str, old: Any, new: Any) -> str:
    """The words of SpecChanged."""
    before, now = (
        text if len(text := repr(value)) <= _SHOWN else f"{text[:_SHOWN]} ..." for value in (old, new)
    )
    return (
        f"the run in {path} was started with {field} = {before}, now it is {now}. Use the same command to resume, "
        "or another -o for a new run."
    )
