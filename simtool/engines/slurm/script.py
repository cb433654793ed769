"""The sbatch file of one job: what a person would write by hand, with every word quoted."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from simtool.engines.slurm.options import SlurmOptions, is_printable, time_seconds
from simtool.engines.threads import WORKER_VARIABLES
from simtool.errors import OptionError

PART = "{part}"  # the word of a command that stands for the number of the array task
_GRACE = 30  # seconds between SIGTERM and the end of the time limit
_SHORTEST = (
    300  # limits below get no SIGTERM: SLURM may send it a minute early, which would be most of the time
)


@dataclass(frozen=True)
class Phase:
    """One job of a chain.

    Parameters
    ----------
    name : a short word such as ``rows``, unique in the chain
    command : argument words; a word that is exactly ``{part}`` becomes the number of the array task, 0..parts-1
    parts : tasks of the array, None for a single job
    title : one line that says what it does, for the reader of the file
    """

    name: str
    command: tuple[str, ...]
    parts: int | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isidentifier()):
            raise ValueError(f"a phase is named by a plain word, got {self.name!r}")
        if not self.command or (self.parts is not None and self.parts < 1):
            raise ValueError(f"phase {self.name} needs a command, and at least one part")
        if self.parts is None and PART in self.command:
            raise ValueError(f"phase {self.name} is a single job, so {PART} has no meaning in its command")


def job_name(folder: Path, phase: str) -> str:
    """``simtool-<8 hexadecimal digits of the folder>-<phase>``: tells the jobs of one run from all others."""
    digest = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()
    return f"simtool-{digest[:8]}-{phase}"


def script_path(folder: Path, phase: str) -> Path:
    """The sbatch file of ``phase``."""
    return folder.resolve() / f"{phase}.sbatch"


def log_folder(folder: Path) -> Path:
    """Where the jobs write what they print."""
    return folder.resolve() / "log"


def render(
    phase: Phase, options: SlurmOptions, folder: Path, directory: Path, after: str | None = None
) -> str:
    """The text of the sbatch file.

    Parameters
    ----------
    folder : RUN/slurm, which holds the file and the logs
    directory : where the command runs, so that what is importable here is importable there
    after : the phase before this one, for the comment

    Raises OptionError for a path that SLURM cannot take.
    """
    array = phase.parts is not None
    log = f"{phase.name}-%A_%a.txt" if array else f"{phase.name}-%j.txt"
    lines = [
        *head(phase, options, folder, log, after),
        *([f"#SBATCH --array=0-{phase.parts - 1}"] if phase.parts is not None else []),
        # bash is replaced by the command (exec), so the signal reaches the command.
        *([f"#SBATCH --signal=B:TERM@{_GRACE}"] if has_grace(options) else []),
        *[f"#SBATCH {directive(word)}" for word in options.extra],
        "",
        "set -eu",
        *setup(directory),
        "exec " + command_line(phase.command, {PART: '"$SLURM_ARRAY_TASK_ID"'}),
    ]
    return "\n".join(lines) + "\n"


def has_grace(options: SlurmOptions) -> bool:
    """Whether the limit is long enough for a warning before it."""
    return options.time is None or (time_seconds(options.time) or 0) >= _SHORTEST


def head(phase: Phase, options: SlurmOptions, folder: Path, log: str, after: str | None = None) -> list[str]:
    """The comment and the #SBATCH lines that every job has."""
    check_path(folder.resolve())
    script = shlex.quote(str(script_path(folder, phase.name)))
    depends = f"--dependency=afterany:JOB_OF_{after.upper()} " if after else ""
    what = phase.title or f"the {phase.name} of a run"
    tasks = "" if phase.parts is None else f", in {phase.parts} array task{'s' if phase.parts > 1 else ''}"
    given = {
        "job-name": job_name(folder, phase.name),
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "cpus-per-task": options.cpus_per_task,
        "mem": None if options.memory is None else f"{options.memory}M",
        # A percent sign begins a replacement in this option, and only there; two stand for one.
        "output": f"{str(log_folder(folder)).replace('%', '%%')}/{log}",
        "open-mode": "append",
    }
    return [
        "#!/bin/bash",
        f"# simtool: {what}{tasks}.",
        f"# By hand: sbatch {depends}{script}",
        *[f"#SBATCH {directive(f'--{name}={value}')}" for name, value in given.items() if value is not None],
        # The tasks of a node that is lost begin again elsewhere; what they had finished is not done twice.
        "#SBATCH --requeue",
    ]


def setup(directory: Path) -> list[str]:
    """Shell lines before the command: one thread for every BLAS, and the folder that the user called from.

    Not ``#SBATCH --chdir``: where that folder is missing on a node, SLURM goes on in /tmp; here the job fails and says so.
    """
    check_path(directory)
    return [
        *[f"export {name}={value}" for name, value in WORKER_VARIABLES.items()],
        f"cd -- {shlex.quote(str(directory))}",
    ]


def command_line(command: tuple[str, ...], stands_for: dict[str, str]) -> str:
    """The words quoted for bash, one option a line where it is long; ``stands_for`` gives the shell text of some."""
    words = [stands_for.get(word) or shlex.quote(word) for word in command]
    if len(" ".join(words)) <= 90:
        return " ".join(words)
    lines = [words[0]]
    for word in words[1:]:
        if word.startswith("-"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n    ".join(lines)


def directive(word: str) -> str:
    """An option as an #SBATCH line takes it: in double quotes, backslashes before what is special, where needed.

    Not shlex.quote: sbatch reads a backslash as an escape inside single quotes too.
    """
    if not any(c in word for c in " \"'\\#"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_path(path: Path) -> None:
    """Refuse the paths that cannot stand in an sbatch file."""
    text = str(path)
    if "\\" in text or not is_printable(text):
        raise OptionError(
            f"SLURM cannot take the path {text!r}: it holds a backslash, a line end or another control character. "
            "Move it, or choose another -o."
        )
