"""Run as a program by test_engine_slurm: a private cluster, and Ray on two of its nodes; FOLDER/answer.json is what it leaves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slurm_cluster import SlurmCluster

from simtool.engines import slurm
from simtool.engines.slurm import Phase, SlurmOptions

DRIVER = """
import json, pathlib, sys, time
import ray

ray.init(address=sys.argv[2], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.1)
def square(i):
    time.sleep(0.5)
    return i * i, ray.get_runtime_context().get_node_id()
square = ray.remote(num_cpus=1)(square)
found = ray.get([square.remote(i) for i in range(4)])
answer = {"squares": [f[0] for f in found], "nodes": [n["NodeID"] for n in ray.nodes() if n["Alive"]]}
pathlib.Path(sys.argv[1], "answer.json").write_text(json.dumps(answer))
"""


def main(folder: Path) -> None:
    """Submit, and wait."""
    command = (sys.executable, "-c", DRIVER, str(folder), "{address}")
    with SlurmCluster(nodes=2) as cluster:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        jobs = slurm.submit(
            [Phase("ray", command)],
            SlurmOptions(ray_nodes=2, cpus_per_task=2),
            folder / "slurm",
            folder,
            slurm.render_ray,
        )
        slurm.wait(jobs, 0.5)
        for log in (folder / "slurm" / "log").iterdir():
            print(log.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
