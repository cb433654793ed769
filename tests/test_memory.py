"""What a worker holds beside the arrays it maps: its private memory while it solves, sampled from outside."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from simtool import engines, environment
from simtool.activations import parse
from simtool.blocks import Block, to_json
from simtool.design import SAMPLE_TILE
from simtool.engines.threads import worker_environment
from simtool.progress import NO_PROGRESS
from simtool.solvers.warm import warm
from simtool.stages.sparsify.folder import SPEC_VERSION, RunFolder
from simtool.stages.sparsify.local import run_tasks
from simtool.stages.sparsify.options import SparsifyOptions, resolve
from simtool.stages.sparsify.plan import plan_of
from simtool.stages.sparsify.steps import Steps
from simtool.stages.sparsify.tasks import ROWS, TILES

MIB = 2**20
MOST = 300 * MIB

pytestmark = pytest.mark.skipif(
    not (Path("/proc/self/status").exists() and "RssAnon" in Path("/proc/self/status").read_text()),
    reason="private memory is read from /proc",
)


def _private(pid: int) -> int:
    """Bytes of memory that process ``pid`` shares with no file, 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0
    )


def _children() -> list[int]:
    """Processes that this one started."""
    out = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            out += [int(pid) for pid in (task / "children").read_text().split()]
    return out


class _Peak:
    """The most that ``measure()`` returned while the block ran."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure, self._stop, self.most = measure, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, self._measure())

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _write(folder: Path, d: int, m: int, rows: int, *, gram: bool = True) -> None:
    """A design (d, m) of non-negative numbers, half of them zero, a constant last; targets; and the Gram matrix."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    design = np.lib.format.open_memmap(folder / "design.npy", "w+", np.float32, (d, m))
    targets = np.lib.format.open_memmap(folder / "targets.npy", "w+", np.float32, (rows, m))
    mixed = rng.standard_normal((rows, d)).astype(np.float32) / np.float32(np.sqrt(d))
    total = np.zeros((d, d))
    for start in range(0, m, SAMPLE_TILE):
        size = min(SAMPLE_TILE, m - start)
        tile = np.maximum(rng.random((d, size), np.float32) - np.float32(0.5), np.float32(0.0))
        tile[-1] = 1.0
        noise = rng.random((rows, size), np.float32)
        design[:, start : start + size] = tile
        targets[:, start : start + size] = mixed @ tile + np.float32(0.1) * noise
        if gram:
            wide = tile.astype(np.float64)
            total += wide @ wide.T
    design.flush()
    targets.flush()
    if gram:
        np.save(folder / "gram.npy", total)


_SOLVE = """
import sys
from pathlib import Path
import numpy as np
from simtool.certificate import certify
from simtool.design import Design
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.solvers import native
from simtool.solvers.warm import warm
folder, kappa, states = Path(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[3])
w, z, gram = (np.load(folder / (n + ".npy"), mmap_mode="r") for n in ("design", "targets", "gram"))
inside = np.arange(w.shape[0]) < (states or w.shape[0])
rows = RowSet(Design(w, gram), z, Objective(0.5, Penalty(), kappa), inside)
warm("native")
print("ready", flush=True)
sys.stdin.readline()
print(int(certify(rows, native.solve(rows, 1e-6), 1e-6).certified.sum()))
"""


@pytest.fixture(scope="module")
def many_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many-samples")
    _write(folder, 1000, 60_000, 24)
    return folder


@pytest.fixture(scope="module")
def many_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many-features")
    _write(folder, 4000, SAMPLE_TILE, 24)
    return folder


@pytest.mark.parametrize(
    ("arrays", "kappa", "states"),
    [
        ("many_samples", None, None),
        ("many_samples", 0.9, 400),
        ("many_samples", 0.9, None),
        ("many_features", 0.9, None),
    ],
    ids=["least-squares", "kappa-on-a", "lasso", "lasso-of-many-features"],
)
def test_a_worker_holds_little_beside_what_it_maps(
    arrays: str, kappa: float | None, states: int | None, request: pytest.FixtureRequest
) -> None:
    """The arrays take 240 MB as they are stored and 480 MB as the solver computes; a worker has half of the former."""
    folder: Path = request.getfixturevalue(arrays)
    warm("native")  # as a run does before it starts workers: compiling takes more memory than solving
    child = subprocess.Popen(
        [sys.executable, "-c", _SOLVE, str(folder), str(kappa), str(states)],
        env=worker_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "ready\n"
        before = _private(child.pid)
        with _Peak(lambda: _private(child.pid)) as peak:
            child.stdin.write("\n")
            child.stdin.flush()
            answer = child.stdout.readline()
    assert answer == "24\n"
    assert peak.most < MOST
    assert peak.most - before < 120 * MIB


@pytest.mark.stress
@pytest.mark.parametrize(
    "options",
    [{"objective": "least-squares"}, {"objective": "elastic-net", "kappa": 0.9, "kappa_on": "a"}, {}],
    ids=["least-squares", "kappa-on-a", "lasso"],
)
def test_four_workers_do_not_multiply_four_gigabytes(tmp_path: Path, options: dict[str, object]) -> None:
    """Two layers of 100 on 600 inputs: design and targets of 4 GB on the disk, four processes at once."""
    n, p, q, m = 200, 601, 10, 1_000_000
    path = tmp_path / "run"
    folder = RunFolder(path)
    folder.prepare()
    relu = parse("relu")
    blocks = (
        Block("second", relu, 0, 100, (100,), ("first", "bias")),
        Block("first", relu, 100, 100, (100,), ("input", "bias")),
    )
    spec = {
        "format_version": SPEC_VERSION,
        "options": asdict(resolve(SparsifyOptions(structure="dag", **options), 1.0)),  # type: ignore[arg-type]
        "sizes": {"n": n, "p": p, "q": q, "m": m},
        "blocks": to_json(blocks),
        "output_parents": ["second", "bias"],
        "has_bias": True,
        "environment": environment.fingerprint(),
    }
    folder.spec.write_text(json.dumps(spec))
    _write(folder.work, n + p, m, n + q, gram=False)
    assert sum(f.stat().st_size for f in folder.work.glob("*.npy")) > 4.0e9
    plan = plan_of(folder)
    engine = engines.get(engines.EngineOptions("process", 4))
    warm("native")
    steps = Steps(folder, plan)
    alone = 0

    def total() -> int:
        nonlocal alone
        each = [_private(pid) for pid in _children()]
        alone = max(alone, *each, 0)
        return sum(each)

    try:
        with _Peak(total) as peak:
            run_tasks(folder, plan, engine, TILES, steps.tiles, NO_PROGRESS)
            steps.assemble()
            run_tasks(folder, plan, engine, ROWS, steps.rows, NO_PROGRESS)
    finally:
        engine.close()
    assert not Steps(folder, plan).rows
    assert alone < MOST
    assert peak.most < 4 * MOST
