"""The jobs that were submitted for a run, as RUN/slurm/jobs.json keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, InputError

FORMAT_VERSION = 1
_NAME = re.compile(r"simtool-[0-9a-f]{8}-[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """One submitted job: ``id`` is None between asking sbatch and its answer, ``parts`` for a job without an array."""

    phase: str
    name: str
    parts: int | None
    submitted: str
    id: int | None = None


@dataclass(frozen=True)
class Jobs:
    """The chain that was submitted last, in its order."""

    folder: Path
    cluster: str
    jobs: tuple[Job, ...] = ()

    @staticmethod
    def path(folder: Path) -> Path:
        """The file that keeps them."""
        return folder / "jobs.json"

    @staticmethod
    def exist(folder: Path) -> bool:
        """Whether anything was submitted for this run."""
        return Jobs.path(folder).exists()

    @staticmethod
    def read(folder: Path) -> Jobs:
        """Raises InputError if nothing was submitted, FormatError if the file is damaged or of another version."""
        path = Jobs.path(folder)
        try:
            content: Any = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"no jobs were submitted for this run: there is no {path}. Submit it by --engine slurm."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read ({error}). {_REMEDY}") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{path} has format version {version!r}; this simtool reads {FORMAT_VERSION}. {_REMEDY}"
            )
        try:
            jobs = tuple(_job(entry) for entry in content["jobs"])
            return Jobs(folder, str(content["cluster"]), jobs)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is damaged ({error}). {_REMEDY}") from error

    def write(self) -> None:
        """Store them, atomically; raises OutputError."""
        content = {
            "format_version": FORMAT_VERSION,
            "cluster": self.cluster,
            "jobs": [asdict(job) for job in self.jobs],
        }
        write_bytes(self.path(self.folder), (json.dumps(content, indent=2) + "\n").encode())

    def with_job(self, job: Job) -> Jobs:
        """One more at the end, or in the place of the one of the same phase."""
        if any(known.phase == job.phase for known in self.jobs):
            return replace(
                self, jobs=tuple(job if known.phase == job.phase else known for known in self.jobs)
            )
        return replace(self, jobs=(*self.jobs, job))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that SLURM knows them by."""
        return tuple(job.name for job in self.jobs)


_REMEDY = "squeue --me lists your jobs, scancel ends them; delete the file and submit again."


def _job(entry: Any) -> Job:
    job = Job(**entry)
    # These end up as arguments of scancel: nothing but our own names and numbers may.
    if not isinstance(job.name, str) or not _NAME.fullmatch(job.name):
        raise ValueError(f"job name {job.name!r}")
    if job.id is not None and (type(job.id) is not int or job.id < 1):
        raise ValueError(f"job id {job.id!r}")
    if not isinstance(job.phase, str) or (job.parts is not None and type(job.parts) is not int):
        raise ValueError(f"phase {job.phase!r} of {job.parts!r} parts")
    return job
