"""Whole runs of the command line on a private SLURM cluster: the same bytes as serial, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster, slurm, slurm_session, until

from simtool.engines import slurm as layer
from simtool.engines.slurm import Jobs

__all__ = ["slurm", "slurm_session"]  # fixtures
pytestmark = pytest.mark.slow

# An objective of one's own that is found from the folder of the call; on the cluster it waits until it may go on.
HELD = """
import os, pathlib, time
import cvxpy as cp

def objective(a, b):
    here = pathlib.Path(__file__).parent
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        (here / ("at-work-" + os.environ["SLURM_ARRAY_TASK_ID"])).touch()
        while not (here / "go").exists():
            time.sleep(0.05)
    return 0.5 * (cp.norm1(a) + cp.norm1(b)), []
"""
SPARSIFY = ("sparsify", "states.h5", "--objective", "held:objective")
SLURM = (
    "--engine",
    "slurm",
    "--partition",
    "main",
    "--time",
    "10",
    "--cpus-per-task",
    "1",
    "--array-size",
    "4",
)


@pytest.fixture(scope="module")
def serial(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with states, an objective and the run that every other must equal."""
    folder = tmp_path_factory.mktemp("a folder")
    shutil.copy(digits["states"], folder / "states.h5")
    (folder / "held.py").write_text(HELD)
    assert simtool(folder, *SPARSIFY, "--engine", "serial", "-o", "serial")["certified"] > 0
    return folder


@pytest.fixture
def here(serial: Path, tmp_path: Path, slurm: SlurmCluster) -> Path:
    """A folder to call from, with the files of :func:`serial`."""
    folder = tmp_path / "it's 100%"
    shutil.copytree(serial, folder)
    return folder


def simtool(folder: Path, *words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "simtool", *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _at_work(folder: Path) -> list[Path]:
    return list(folder.glob("at-work-*"))


def _same_model(folder: Path) -> bool:
    return (folder / "run" / "model.h5").read_bytes() == (folder / "serial" / "model.h5").read_bytes()


def test_a_run_that_loses_a_node(here: Path, slurm: SlurmCluster) -> None:
    submitted = simtool(here, *SPARSIFY, *SLURM, "-o", "run")
    assert "model" not in submitted
    jobs = Jobs.read(here / "run" / "slurm")
    rows = next(job for job in jobs.jobs if job.phase == "rows")
    assert rows.parts is not None
    assert rows.id is not None
    until(lambda: len(_at_work(here)) == rows.parts)
    seen = simtool(here, "status", "run")
    assert seen["state"] == "at work"
    assert seen["done"] == 0
    assert {job["phase"]: job["running"] for job in seen["jobs"]} == {"rows": rows.parts, "merge": 0}
    slurm.kill_node(slurm.where(rows.id, 0))
    until(lambda: layer.states(jobs)["rows"]["pending"] > 0)
    (here / "go").touch()
    layer.wait(jobs, 0.5)
    assert simtool(here, "status", "run")["state"] == "finished"
    assert _same_model(here)


def test_a_run_that_is_cancelled_and_resumed(here: Path) -> None:
    simtool(here, *SPARSIFY, *SLURM, "-o", "run")
    jobs = Jobs.read(here / "run" / "slurm")
    until(lambda: bool(_at_work(here)))
    assert simtool(here, "cancel", "run")["jobs"] > 0
    assert not layer.alive(jobs)
    assert simtool(here, "status", "run")["state"] == "stopped"
    (here / "go").touch()
    result = simtool(
        here,
        "resume",
        "run",
        "--objective",
        "held:objective",
        "--engine",
        "slurm",
        "--array-size",
        "2",
        "--wait",
    )
    again = Jobs.read(here / "run" / "slurm")
    # What was finished before is not submitted again.
    assert [job.phase for job in again.jobs] == ["rows", "merge"]
    assert result["engine"] == "slurm"
    assert result["rows"] == simtool(here, "status", "run")["rows_done"]
    assert _same_model(here)
