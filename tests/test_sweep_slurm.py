"""A sweep whose points are jobs on a private SLURM cluster, one after the other: the same table as on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from slurm_cluster import SlurmCluster, slurm, slurm_session

from simtool.cli.sweep import command

__all__ = ["slurm", "slurm_session"]  # fixtures
pytestmark = pytest.mark.slow


def test_points_are_solved_by_jobs(digits: dict[str, Path], tmp_path: Path, slurm: SlurmCluster) -> None:
    asked = [str(digits["states"]), "--kappa", "0.2,0.6", "--kappa-relative", "--json", "--quiet"]
    cluster = ["--engine", "slurm", "--partition", "main", "--time", "10", "--array-size", "2"]
    models = []
    for name, engine in (("serial", ["--engine", "serial"]), ("slurm", [*cluster, "--wait"])):
        result = CliRunner().invoke(command, [*asked, *engine, "-o", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        models.append([(Path(point["run"]) / "model.h5").read_bytes() for point in found["points"]])
    assert models[0] == models[1]
    result = CliRunner().invoke(command, [*asked, *cluster, "-o", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "Add --wait" in json.loads(result.stdout)["error"]
