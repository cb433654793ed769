"""What a user asks of SLURM, checked before anything is written or submitted."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simtool.errors import OptionError

# The forms of --time that sbatch takes; a zero ("no limit") is left out, as few sites allow it by accident.
_TIMES = (
    re.compile(r"(?P<m>\d+)(:(?P<s>\d+))?"),
    re.compile(r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"),
    re.compile(r"(?P<d>\d+)-(?P<h>\d+)(:(?P<m>\d+)(:(?P<s>\d+))?)?"),
)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FURTHER = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)

# Written by simtool itself: another value would lose the parts, the chain, or the answer of sbatch.
_OURS = {
    "--array": "--array-size",
    "--partition": "--partition",
    "--time": "--time",
    "--cpus-per-task": "--cpus-per-task",
    "--nodes": "--ray-nodes",
    "--account": "--account",
}
_NEVER = (
    *(
        "--chdir",
        "--clusters",
        "--dependency",
        "--error",
        "--export",
        "--export-file",
        "--get-user-env",
        "--gid",
        "--uid",
        "--job-name",
        "--open-mode",
        "--output",
        "--parsable",
    ),
    *("--signal", "--test-only", "--wait", "--wrap", "--ntasks", "--ntasks-per-node"),
)


@dataclass(frozen=True)
class SlurmOptions:
    """What every job of a run asks of the scheduler; None leaves the choice to the site's defaults.

    Parameters
    ----------
    partition : name of the partition, or several with commas between
    time : limit of one array task as sbatch takes it (minutes, MM:SS, H:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS)
    cpus_per_task : cores of one array task
    array_size : how many tasks an array is cut into at most
    memory : MiB of one array task
    account : whom to charge
    extra : further sbatch options, each as one word such as ``--qos=short``
    ray_nodes : nodes of the one allocation that Ray is started in

    Raises OptionError with the value seen, what is allowed and what to do.
    """

    partition: str | None = None
    time: str | None = None
    cpus_per_task: int = 1
    array_size: int = 16
    memory: int | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()
    ray_nodes: int | None = None

    def __post_init__(self) -> None:
        _check_count("--cpus-per-task", self.cpus_per_task, "the cores of one task")
        _check_count("--array-size", self.array_size, "the tasks of one array")
        if self.memory is not None:
            _check_count("--memory", self.memory, "the MiB of one task")
        if self.ray_nodes is not None:
            _check_count("--ray-nodes", self.ray_nodes, "the nodes of one allocation")
        if self.time is not None and not time_seconds(self.time):
            raise OptionError(
                f"--time must be a positive limit as sbatch takes it, got {self.time!r}. Allowed are minutes, MM:SS, "
                "H:MM:SS, D-HH, D-HH:MM and D-HH:MM:SS: pass --time 1:30:00 for an hour and a half."
            )
        _check_name("--partition", self.partition, "sinfo lists the partitions")
        _check_name(
            "--account", self.account, "sacctmgr show associations lists the accounts, where it is used"
        )
        for word in self.extra:
            _check_further(word)


def time_seconds(text: str) -> int | None:
    """Seconds of a time limit as sbatch takes it, None if it is not one."""
    for form in _TIMES:
        match = form.fullmatch(text) if text.isascii() else None
        if match:
            found = {unit: value for unit, value in match.groupdict().items() if value}
            return sum(int(value) * _UNITS[unit] for unit, value in found.items())
    return None


def is_printable(text: str) -> bool:
    """No control characters, no line ends, nothing that is not a character (such as half of a surrogate pair)."""
    return text.isprintable()


def _check_count(option: str, value: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{option} must be a whole number of at least 1, got {value!r}. It is {what}.")


def _check_name(option: str, value: str | None, hint: str) -> None:
    if value is None:
        return
    if not value or value.startswith("-") or " " in value or not is_printable(value):
        raise OptionError(
            f"{option} must be a name without spaces or control characters that does not begin with '-', "
            f"got {value!r}. {hint}."
        )


def _check_further(word: str) -> None:
    if not _FURTHER.fullmatch(word) or not is_printable(word):
        raise OptionError(
            f"a further sbatch option must be one word such as --qos=short, without control characters, got {word!r}. "
            "Write its long form, and an equals sign before its value."
        )
    name = word.partition("=")[0]
    if name in _OURS:
        raise OptionError(
            f"{word!r} cannot be passed on to sbatch: simtool writes {name}. Use {_OURS[name]}."
        )
    if name in _NEVER:
        raise OptionError(
            f"{word!r} cannot be passed on to sbatch: simtool writes {name} itself. Leave it out, or edit and submit "
            "the sbatch files by hand."
        )
