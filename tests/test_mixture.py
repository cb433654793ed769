"""One run over serial, processes, Ray and SLURM, one after the other: the same bytes as on any of them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, slurm, slurm_session
from test_engine_ray import Nodes, cluster

from simtool.engines import EngineOptions
from simtool.engines.slurm import SlurmOptions
from simtool.progress import Progress
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import plan_of
from simtool.stages.sparsify.stage import resume, sparsify

__all__ = ["cluster", "slurm", "slurm_session"]  # fixtures
pytestmark = pytest.mark.slow

# dag: one Gram matrix of several tiles, and shards of several sizes.
OPTIONS = {
    "lasso": SparsifyOptions(structure="dag", kappa=0.5),
    "l1": SparsifyOptions(objective="l1", beta=4.0),
    "kappa-on-a": SparsifyOptions(objective="l1", structure="free", kappa=0.5, kappa_on="a"),
    "budget": SparsifyOptions(target_sparsity=0.8, sequential=True, weight_samples="fisher"),
}
SLURM = EngineOptions("slurm", slurm=SlurmOptions(array_size=3), wait=True)


class Stop(Exception):
    """Ends an engine's turn."""


class StopAfter(Progress):
    """Raises Stop when the first shard of rows is there."""

    def __init__(self) -> None:
        self._rows = False

    def start(self, total: int, unit: str, label: str) -> None:
        self._rows = label == "rows"

    def advance(self, count: int = 1) -> None:
        if self._rows:
            raise Stop


def _done(run: Path) -> int:
    folder = RunFolder(run)
    return sum(folder.holds(folder.shard(index)) for index in range(len(plan_of(folder).shards)))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_same_bytes_everywhere(
    name: str,
    digits: dict[str, Path],
    cluster: Nodes,
    slurm: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    states, options = digits["states"], OPTIONS[name]
    ray = EngineOptions("ray", ray_address=cluster.address)
    engines = (EngineOptions("serial"), EngineOptions("process", 2), ray, SLURM)
    results = [sparsify(states, tmp_path / e.name, options, engine=e) for e in engines]
    models = [(tmp_path / e.name / "model.h5").read_bytes() for e in engines]
    assert all(model == models[0] for model in models)
    same = ("certified", "nnz", "max_relative_gap", "norm_a_inf")
    assert all(
        {key: result[key] for key in same} == {key: results[0][key] for key in same} for result in results
    )

    mixed, seen = tmp_path / "mixed", []
    for engine in engines[:3]:
        with pytest.raises(Stop):
            sparsify(states, mixed, options, engine=engine, progress=StopAfter())
        seen.append(_done(mixed))
    assert 0 < seen[0] < seen[1] <= seen[2]
    assert resume(mixed, engine=SLURM)["engine"] == "slurm"
    assert (mixed / "model.h5").read_bytes() == models[0]
