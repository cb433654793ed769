"""SLURM: readable sbatch files, a chain of jobs, and where it stands; nothing here knows what a job computes.

    phases = [Phase("tiles", (..., "{part}"), 8), Phase("prepare", (...)), Phase("rows", (..., "{part}"), 64)]
    jobs = submit(phases, SlurmOptions(partition="main"), run / "slurm")
    wait(jobs)        # or later: states(Jobs.read(run / "slurm")), cancel(...)

What a job finished is told by the files it leaves, not by SLURM: a task that was killed, lost its node or was cancelled
leaves nothing, and is submitted again.
"""

from __future__ import annotations

from simtool.engines.slurm.jobs import Job, Jobs
from simtool.engines.slurm.options import SlurmOptions
from simtool.engines.slurm.queue import alive, reasons, states, wait
from simtool.engines.slurm.ray_script import render_ray
from simtool.engines.slurm.script import Phase, job_name, render
from simtool.engines.slurm.submission import cancel, submit
from simtool.engines.slurm.tools import require

__all__ = [
    "Job",
    "Jobs",
    "Phase",
    "SlurmOptions",
    "alive",
    "cancel",
    "job_name",
    "reasons",
    "render",
    "render_ray",
    "require",
    "states",
    "submit",
    "wait",
]
