"""What only a process of its own can tell: peak memory of a sparsify, and how long the first row takes.

python -m simtool.bench.children load STATES | sparsify STATES RUN | first-row
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from simtool.errors import WorkerError

_STARTS = 5


def memory_above_states(states: Path, run: Path) -> tuple[int, dict[str, Any]]:
    """Bytes that a serial, free sparsify of ``states`` peaks above a process that only holds the states; its result."""
    loaded = _child("load", str(states))
    solved = _child("sparsify", str(states), str(run))
    return int(solved["peak"] - loaded["peak"]), dict(solved["result"])


def first_row_seconds() -> float:
    """Seconds from the start of a Python to its first solved and certified row, kernels cached; the median of five."""
    _child("first-row")  # fills the cache
    times = []
    for _ in range(_STARTS):
        started = perf_counter()
        _child("first-row")
        times.append(perf_counter() - started)
    return median(times)


def _child(*arguments: str) -> dict[str, Any]:
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    done = subprocess.run(
        [sys.executable, "-m", "simtool.bench.children", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **threads},
        check=False,
    )
    if done.returncode:
        raise WorkerError(
            f"the child process {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-400:]}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak() -> int:
    """Peak resident bytes of this process. Not ru_maxrss where there is better: a child begins with its parent's."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _load(states: Path) -> dict[str, Any]:
    """Hold X, U, Z, Y in memory, with the packages imported that sparsify imports."""
    import simtool.stages.sparsify.stage
    import simtool.stages.sparsify.work
    from simtool.states import open_states

    del simtool
    with open_states(states) as source:
        held = [part[:] for part in (source.X, source.U, source.Z, source.Y)]
    return {"peak": _peak(), "bytes": sum(part.nbytes for part in held)}


def _sparsify(states: Path, run: Path) -> dict[str, Any]:
    from simtool.stages.sparsify.options import SparsifyOptions
    from simtool.stages.sparsify.stage import sparsify

    options = SparsifyOptions(structure="free", kappa=0.99, kappa_outputs=0.99)
    result = sparsify(states, run, options, engine="serial")
    return {"peak": _peak(), "result": {k: result[k] for k in ("rows", "certified", "max_relative_gap")}}


def _first_row() -> dict[str, Any]:
    import numpy as np

    from simtool.certificate import certify
    from simtool.design import Design
    from simtool.penalty import Penalty
    from simtool.problem import Objective, RowSet
    from simtool.solvers import get

    w = np.maximum(np.random.default_rng(0).standard_normal((200, 500)), 0.0).astype(np.float32)
    z = (0.5 * w[:1] - w[1:2]).astype(np.float32)
    rows = RowSet(Design(w), z, Objective(0.5, Penalty(), 0.99), np.ones(200, dtype=bool))
    _ = rows.design.gram
    proof = certify(rows, get("native")(rows, 1e-6), 1e-6)
    return {"certified": bool(proof.certified.all())}


def main(arguments: list[str]) -> None:
    """Print the JSON object of the task that ``arguments`` name."""
    task, *paths = arguments
    result = {
        "load": lambda: _load(Path(paths[0])),
        "sparsify": lambda: _sparsify(Path(paths[0]), Path(paths[1])),
        "first-row": _first_row,
    }[task]()
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
