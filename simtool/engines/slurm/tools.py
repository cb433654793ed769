"""SLURM's own programs, called as a person would; a controller that is away for a while is asked again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from simtool.errors import WorkerError

_PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
_TIMEOUT = 180.0  # of one call; SLURM's own time-outs are far below
_AWAY = (
    *("unable to contact", "socket timed out", "connection refused", "connection failure", "zero bytes"),
    *("connection timed out", "transport endpoint", "temporarily", "controller is not responding"),
    *("authentication", "i/o error", "backup controller", "no route to host"),
)
_NOT_CONFIGURED = ("configuration source", "unable to process configuration", "lookup failed")
# A user's defaults for these would take the place of what the sbatch file says.
_OVERRIDE = (
    *(
        "SBATCH_ARRAY_INX",
        "SBATCH_CLUSTERS",
        "SBATCH_ERROR",
        "SBATCH_INPUT",
        "SBATCH_JOB_NAME",
        "SBATCH_NO_REQUEUE",
    ),
    *(
        "SBATCH_OPEN_MODE",
        "SBATCH_OUTPUT",
        "SBATCH_PARTITION",
        "SBATCH_SIGNAL",
        "SBATCH_TIMELIMIT",
        "SBATCH_WAIT",
    ),
    *(
        "SBATCH_MEM_PER_CPU",
        "SBATCH_MEM_PER_NODE",
        "SBATCH_CPUS_PER_TASK",
        "SBATCH_REQUEUE",
        "SLURM_CLUSTERS",
    ),
)


class Away(WorkerError):
    """The controller does not answer."""


class Refused(WorkerError):
    """A program of SLURM answered with an error; ``words`` are its own."""

    def __init__(self, program: str, words: str) -> None:
        super().__init__(f"{program} failed: {words or 'it gave no reason'}")
        self.words = words


def require() -> None:
    """Raises WorkerError unless SLURM's programs are on the PATH."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise WorkerError(
            f"--engine slurm needs {', '.join(missing)}, not found on the PATH of this machine. Run it where jobs are "
            "submitted (a login node of the cluster, or load its SLURM module), or use --engine process or ray."
        )
    conf = os.environ.get("SLURM_CONF")
    if conf and not os.path.exists(conf):  # SLURM's programs would look for it for a minute
        raise WorkerError(
            f"SLURM_CONF names {conf}, which is not there. Unset it, or set it to the cluster's slurm.conf."
        )


def call(argv: Sequence[str], patience: float = 0.0) -> str:
    """What the program prints.

    Raises Refused with its own words; Away if the controller does not answer, nor when asked again, less and less
    often, for ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    pause = 1.0
    while True:
        try:
            return _call_once(argv)
        except Away:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def configuration(patience: float = 0.0) -> tuple[str, int]:
    """Name of the cluster, and how many tasks an array may have; raises as :func:`require` and :func:`call`."""
    require()
    text = call(("scontrol", "show", "config"), patience)
    found = dict(re.findall(r"^(ClusterName|MaxArraySize)\s*=\s*(\S+)", text, re.MULTILINE))
    return found.get("ClusterName", ""), int(found.get("MaxArraySize", "1001"))


def partitions() -> list[str]:
    """Names of the partitions, none if they cannot be had."""
    try:
        return sorted(set(call(("sinfo", "--noheader", "--all", "--format=%R")).split()))
    except WorkerError:
        return []


def _call_once(argv: Sequence[str]) -> str:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in _OVERRIDE and not key.startswith("SQUEUE_")
    }
    try:
        # A session of its own: Ctrl-C must not end sbatch between the submission and its answer.
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=environment,
            timeout=_TIMEOUT,
            start_new_session=True,
            check=False,
        )
    except OSError as error:
        raise WorkerError(
            f"{argv[0]} cannot be run ({error.strerror or error}). Run simtool where jobs are submitted, or use "
            "--engine process or ray."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Away(_away(argv[0], f"no answer in {_TIMEOUT:.0f} s")) from error
    if done.returncode == 0:
        return done.stdout
    words = "; ".join(re.sub(rf"^{argv[0]}: (error: |fatal: )?", "", line) for line in _lines(done.stderr))
    low = words.lower()
    if any(sign in low for sign in _NOT_CONFIGURED):
        raise WorkerError(
            f"SLURM is installed here, but not set up: {words}. Run simtool on a machine of the cluster, set SLURM_CONF, "
            "or use --engine process or ray."
        )
    if any(sign in low for sign in _AWAY):
        raise Away(_away(argv[0], words))
    raise Refused(argv[0], words)


def _away(program: str, words: str) -> str:
    return (
        f"the SLURM controller does not answer {program}: {words}. Jobs that were submitted go on without it; try again "
        "later, or ask the site (scontrol ping)."
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
