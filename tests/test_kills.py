"""kill -9 at random moments, of anything that works on a run: nothing lost, no wrong bytes, no process or memory left.

Every process of a run is known by a mark in its environment, which its children inherit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, slurm, slurm_session

from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

__all__ = ["slurm", "slurm_session"]  # fixtures
MARK = "SIMTOOL_TEST_RUN"
ENGINES = {
    "serial": ("--engine", "serial"),
    "process": ("--engine", "process", "--workers", "2"),
    "ray": ("--engine", "ray", "--ray-address", "local", "--workers", "2"),
    "slurm": ("--engine", "slurm", "--array-size", "2", "--wait"),
}
# As many for CI, and the hundred of `make stress`.
FEW = {"serial": 6, "process": 10, "ray": 2, "slurm": 2}
MANY = {"serial": 25, "process": 40, "ray": 15, "slurm": 20}
_GONE_SECONDS = 60.0


@dataclass
class Killer:
    """Runs one engine again and again, killing one of its processes at a random moment of each run."""

    states: Path
    wanted: bytes
    place: Path
    environment: dict[str, str]
    rng: random.Random
    hits: int = 0
    victims: list[str] = field(default_factory=list)

    def family(self, mark: str) -> dict[int, str]:
        """Process ids and command lines of everything that carries ``mark``."""
        found = {}
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}\0".encode() in (process / "environ").read_bytes() + b"\0":
                    state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state != "Z":
                        words = (
                            (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        )
                        found[int(process.name)] = words
        return found

    def start(self, engine: str, run: Path, mark: str) -> subprocess.Popen[bytes]:
        argv = [
            sys.executable,
            "-m",
            "simtool",
            "sparsify",
            str(self.states),
            "--objective",
            "l1",
            "--beta",
            "4",
        ]
        output = (run.parent / f"{run.name}.out").open("ab")
        with output:
            return subprocess.Popen(
                [*argv, *ENGINES[engine], "-o", str(run), "--json", "--quiet"],
                env={**self.environment, MARK: mark},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def timed(self, engine: str) -> float:
        """How long an undisturbed run takes; its bytes must be right too."""
        run, mark = self.place / f"{engine}-whole", uuid.uuid4().hex
        started = time.perf_counter()
        assert self.start(engine, run, mark).wait() == 0, (run.parent / f"{run.name}.out").read_text()
        duration = time.perf_counter() - started
        assert (run / "model.h5").read_bytes() == self.wanted
        self.await_end(mark)
        return duration

    def kill_once(self, engine: str, number: int, duration: float) -> None:
        """Start a run, kill one of its processes, and run the command to the end."""
        moment = self.rng.random() * duration
        for attempt in range(8):  # a run that was faster than the first one has ended when its moment comes
            run, mark = self.place / f"{engine}-{number}-{attempt}", uuid.uuid4().hex
            process = self.start(engine, run, mark)
            time.sleep(moment)
            family = self.family(mark)
            if process.pid in family:
                break
            process.wait(timeout=300)
            moment /= 2
        else:
            raise AssertionError(f"no run of {engine} was slow enough to be hit")
        # The command itself as often as all it started.
        others = [pid for pid in family if pid != process.pid]
        victim = self.rng.choice(others) if others and self.rng.random() < 0.5 else process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        self.hits += 1
        self.victims.append(f"{engine}: {family.get(victim, '')[:120]}")
        process.wait(timeout=300)
        if engine != "slurm":  # SLURM's jobs go on without the command that waits for them
            self.await_end(mark)
        for _ in range(3):  # a shard that was hit twice may need the command once more
            last = self.start(engine, run, mark).wait(timeout=300)
            if last == 0:
                break
        said = (run.parent / f"{run.name}.out").read_text()
        assert last == 0, f"{self.victims[-1:]}\n{said}"
        assert "Traceback" not in said, f"{self.victims[-1:]}\n{said}"
        assert json.loads(said.splitlines()[-1])["certified"] == 90
        assert (run / "model.h5").read_bytes() == self.wanted, f"{self.victims[-1:]}"
        self.await_end(mark)

    def await_end(self, mark: str) -> None:
        """No process of the run may survive it."""
        deadline = time.monotonic() + _GONE_SECONDS
        while family := self.family(mark):
            assert time.monotonic() < deadline, f"{self.victims[-1:]} left {family}"
            time.sleep(0.05)


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()


@pytest.fixture(scope="module")
def wanted(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("wanted") / "run"
    sparsify(digits["states"], run, SparsifyOptions(objective="l1", beta=4.0), engine="serial")
    return (run / "model.h5").read_bytes()


def _kill(
    engine: str, times: int, digits: dict[str, Path], wanted: bytes, place: Path, conf: Path | None = None
) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is not installed (pip install 'simtool[ray]')")
    environment = dict(os.environ) if conf is None else {**os.environ, "SLURM_CONF": str(conf)}
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    killer = Killer(digits["states"], wanted, place, environment, random.Random(seed))
    before = shared_memory()
    duration = killer.timed(engine)
    for number in range(times):
        killer.kill_once(engine, number, duration)
    assert killer.hits == times, killer.victims
    left = shared_memory() - before
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "process", "ray"])
def test_kills_lose_nothing(engine: str, digits: dict[str, Path], wanted: bytes, tmp_path: Path) -> None:
    _kill(engine, FEW[engine], digits, wanted, tmp_path)


@pytest.mark.slow
def test_kills_under_slurm_lose_nothing(
    digits: dict[str, Path], wanted: bytes, slurm: SlurmCluster, tmp_path: Path
) -> None:
    _kill("slurm", FEW["slurm"], digits, wanted, tmp_path, slurm.conf)


@pytest.mark.stress
@pytest.mark.parametrize("engine", ["serial", "process", "ray"])
def test_a_hundred_kills_lose_nothing(
    engine: str, digits: dict[str, Path], wanted: bytes, tmp_path: Path
) -> None:
    _kill(engine, MANY[engine], digits, wanted, tmp_path)


@pytest.mark.stress
def test_many_kills_under_slurm_lose_nothing(
    digits: dict[str, Path], wanted: bytes, slurm: SlurmCluster, tmp_path: Path
) -> None:
    _kill("slurm", MANY["slurm"], digits, wanted, tmp_path, slurm.conf)
