"""The Ray engine: addresses, shipped inputs, lost workers and nodes, and that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simtool.engines.ray import RayEngine
from simtool.engines.ray import cluster as ray_cluster
from simtool.engines.ray import task as ray_task
from simtool.engines.ray.inputs import Inputs
from simtool.engines.serial import SerialEngine
from simtool.engines.shards import read_shard, write_shard
from simtool.errors import InputError, OptionError, WorkerError
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.stage import sparsify

SOLVE = "simtool.stages.sparsify.tasks:shard"
HERE = str(Path(__file__).parent)


def make_folder(path: Path) -> Path:
    """A folder with the parts that every run has, and one input."""
    for part in ("work", "rows"):
        (path / part).mkdir(parents=True)
    np.save(path / "work" / "numbers.npy", np.arange(100.0))
    (path / "spec.json").write_text("{}")
    return path


def task(folder: Path, item: int) -> dict[str, Any]:
    """A shard that depends on an input; fails, or waits, in the way ``item`` says."""
    from threadpoolctl import threadpool_info

    if item == 91:
        raise InputError("a user's mistake")
    if item == 92:
        raise RuntimeError("a fault")
    if item == 93:
        os.kill(os.getpid(), signal.SIGKILL)
    if item >= 1000:
        (Path(tempfile.gettempdir()) / f"{folder.name}-{item}.pid").write_text(str(os.getpid()))
        time.sleep(120)
    if item >= 200:
        time.sleep(0.3)
    numbers = np.load(folder / "work" / "numbers.npy", mmap_mode="r")
    write_shard(folder / "rows" / f"{item:06d}.shard", {"x": np.asarray(numbers[: item % 100])})
    print("noise on stdout")
    return {
        "pid": os.getpid(),
        "threads": max((entry["num_threads"] for entry in threadpool_info()), default=1),
        "loaded": [name for name in ("torch", "cvxpy") if name in sys.modules],
    }


NAME = "test_engine_ray:task"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- without a cluster -------------------------------------------------------------------------------------------------


def test_importing_the_engine_leaves_ray_alone() -> None:
    code = "import simtool.engines.ray, sys; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'simtool\[ray\]', or use --engine process"):
        RayEngine(2, "local")


def test_auto_without_a_cluster_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(OptionError, match=r"no running Ray cluster.*`ray start --head`.*--ray-address local"):
        RayEngine(None)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{_free_port()}")
    with pytest.raises(OptionError, match=r"nothing answers at 127.0.0.1.*cluster noted in"):
        RayEngine(None)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{_free_port()}")
    with pytest.raises(OptionError, match=r"nothing answers at 127.0.0.1.*RAY_ADDRESS"):
        RayEngine(None)


def test_an_address_where_nothing_answers_is_named() -> None:
    port = _free_port()
    with pytest.raises(OptionError, match=rf"nothing answers at 127.0.0.1:{port}"):
        RayEngine(None, f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "address", ["here", "ray://127.0.0.1:10001", "127.0.0.1:", ":6379", "a:b", "127.0.0.1:70000"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(OptionError, match="is not an address"):
        RayEngine(None, address)


def test_what_listens_but_is_no_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "CLUSTER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = RayEngine(None, f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(OptionError, match="did not answer as a Ray cluster within 3 s"):
            engine.run(NAME, Path("unused"), [0], print)
        engine.close()


@pytest.fixture
def no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A stand-in for ray whose object store is the objects themselves, and a node's temporary folder."""
    stand_in = SimpleNamespace(put=lambda value: value, get=lambda value: value)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    monkeypatch.setattr(ray_task, "_held", {})
    monkeypatch.setattr(ray_task, "_laid", {})
    yield stand_in
    for lock in ray_task._held.values():
        os.close(lock)


def test_shipped_inputs_give_the_same_shard_and_outcomes_stay(no_ray: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    task(folder, 3)
    whole = (folder / "rows" / "000003.shard").read_bytes()
    (folder / "work" / "empty.npy").touch()
    (folder / "rows" / "kept.shard").write_bytes(b"kept")
    inputs = Inputs(no_ray, "owner")
    shipment = inputs.ship(folder)
    assert set(shipment.reference[0].files) == {
        *("spec.json", "work/numbers.npy", "work/empty.npy", "rows/kept.shard")
    }
    for _ in range(2):
        answer = ray_task.carry_out(NAME, str(folder), 3, os.getcwd(), shipment)
        assert answer["files"] == {"rows/000003.shard": whole}
    # A later phase sees what changed, and sends that alone.
    laid = {path.name: path.stat().st_ino for path in (tmp_path / "node").glob("*/inputs/*")}
    np.save(folder / "work" / "numbers.npy", np.arange(200.0) + 1)
    answer = ray_task.carry_out(NAME, str(folder), 3, os.getcwd(), inputs.ship(folder))
    (folder / "again").write_bytes(answer["files"]["rows/000003.shard"])
    assert read_shard(folder / "again")["x"].tolist() == [1.0, 2.0, 3.0]
    after = {path.name: path.stat().st_ino for path in (tmp_path / "node").glob("*/inputs/*")}
    assert laid.items() < after.items()
    assert len(after) == len(laid) + 1
    ray_task.remove("owner")
    assert list((tmp_path / "node").iterdir()) == []


def test_inputs_come_in_pieces(no_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simtool.engines.ray.inputs.PIECE_BYTES", 100)
    folder = make_folder(tmp_path / "run")
    shipment = Inputs(no_ray, "owner").ship(folder)
    assert len(shipment.reference[0].files["work/numbers.npy"][1]) == 10
    assert "files" in ray_task.carry_out(NAME, str(folder), 3, os.getcwd(), shipment)


def test_what_killed_runs_left_on_a_node_is_removed(no_ray: Any, tmp_path: Path) -> None:
    left, held = (ray_task._root(name) for name in ("left", "held"))
    os.close(ray_task._hold(left))
    lock = ray_task._hold(held)
    folder = make_folder(tmp_path / "run")
    ray_task.carry_out(NAME, str(folder), 3, os.getcwd(), Inputs(no_ray, "new").ship(folder))
    assert (left.exists(), held.exists()) == (False, True)
    os.close(lock)


def test_a_node_without_room_is_named(no_ray: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    shipment = Inputs(no_ray, "owner").ship(folder)
    (tmp_path / "node").rmdir()
    (tmp_path / "node").touch()
    answer = ray_task.carry_out(NAME, str(folder), 3, os.getcwd(), shipment)
    assert answer["type"] == "OutputError"
    assert "cannot hold the run's inputs" in answer["error"]


# --- a cluster of three nodes ------------------------------------------------------------------------------------------


# In a process of its own, which removes nodes without being connected to one of them.
_CLUSTER = """
import os, sys
from simtool.engines.ray import cluster as ray_cluster
ray_cluster.quieten(loopback=True)
from ray.cluster_utils import Cluster

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
nodes = Cluster(shutdown_at_exit=False)
for _ in range(3):
    nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
print(nodes.address, file=answers)
for line in sys.stdin:
    command, _, socket = line.strip().partition(" ")
    if command == "add":
        nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    else:
        nodes.remove_node(next(node for node in nodes.worker_nodes if node._raylet_socket_name != socket))
    print("ok", file=answers)
nodes.shutdown()
"""


class Nodes:
    """Three nodes of one CPU each on loopback."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        """``add`` a node, or ``remove SOCKET``: one other than that with this socket."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ok\n"

    def close(self) -> None:
        self.process.communicate()
        for pid in _session(self.process.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    kept = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="simray-", dir="/tmp")
    os.environ.update(RAY_TMPDIR=folder, PYTHONPATH=HERE)
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(kept)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run_folder(digits: dict[str, Path]) -> Path:
    """A real sparsify run whose Gram matrices are there and whose rows are not."""
    run = digits["folder"] / "ray-run"
    original = SerialEngine.run

    def stop_at_rows(self: SerialEngine, name: str, *arguments: Any) -> None:
        if name == SOLVE:
            raise WorkerError("stopped")
        original(self, name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SerialEngine, "run", stop_at_rows)
        with pytest.raises(WorkerError, match="stopped"):
            sparsify(digits["states"], run, SparsifyOptions(objective="l1", beta=4.0), engine="serial")
    return run


def _solved(run: Path, copy: Path, engine: Any) -> dict[str, bytes]:
    shutil.copytree(run, copy)
    shards = range(len(Plan(RunFolder(copy).read_spec()).shards))
    seen: list[int] = []
    try:
        engine.run(SOLVE, copy, shards, lambda item, _: seen.append(item))
    finally:
        engine.close()
    assert sorted(seen) == list(shards)
    assert not list(copy.glob(".ray-*"))
    return {path.name: path.read_bytes() for path in (copy / "rows").glob("*.shard")}


@pytest.mark.slow
def test_nodes_give_the_bytes_of_the_serial_engine(cluster: Nodes, run_folder: Path, tmp_path: Path) -> None:
    serial = _solved(run_folder, tmp_path / "serial", SerialEngine())
    assert serial
    assert _solved(run_folder, tmp_path / "mapped", RayEngine(None, cluster.address)) == serial


@pytest.mark.slow
def test_nodes_give_the_same_bytes_on_shipped_inputs(
    cluster: Nodes, run_folder: Path, tmp_path: Path
) -> None:
    serial = _solved(run_folder, tmp_path / "serial", SerialEngine())
    assert _solved(run_folder, tmp_path / "shipped", RayEngine(2, "auto", mapped=False)) == serial
    assert not list(Path(tempfile.gettempdir()).glob(f"{ray_task.PREFIX}*/worker-*"))


@pytest.mark.slow
def test_workers_are_bounded_and_errors_come_back_as_they_were(cluster: Nodes, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    reports: dict[int, dict[str, Any]] = {}
    engine = RayEngine(None, cluster.address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        engine.run(NAME, folder, [200, 201, 202, 203, 204, 205], reports.__setitem__)
        assert engine.workers == 3
        assert signal.getsignal(signal.SIGTERM) == handler
        assert {report["threads"] for report in reports.values()} == {1}
        assert all(report["loaded"] == [] for report in reports.values())
        with pytest.raises(InputError, match="a user's mistake"):
            engine.run(NAME, folder, [0, 1, 91], reports.__setitem__)
        assert {0, 1} <= set(reports)
        with pytest.raises(WorkerError, match=r"shard 92 failed: RuntimeError: a fault"):
            engine.run(NAME, folder, [92], print)
        with pytest.raises(
            WorkerError, match=r"worker of shard 93 or its node died, 4 times.*--structure layered"
        ):
            engine.run(NAME, folder, [93], print)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [True, False])
def test_a_killed_worker_and_a_removed_node_lose_nothing(
    cluster: Nodes, mapped: bool, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "run")
    cluster.tell("add")
    reports: dict[int, dict[str, Any]] = {}

    def done(item: int, report: dict[str, Any]) -> None:
        reports[item] = report
        if len(reports) == 3:
            os.kill(report["pid"], signal.SIGKILL)
        if len(reports) == 6:
            # All nodes have one address here: Ray may have connected this process to any of them.
            from ray._private.worker import global_worker

            cluster.tell(f"remove {global_worker.node._raylet_socket_name}")

    engine = RayEngine(None, cluster.address)
    items = range(200, 220)
    try:
        engine.run(NAME, folder, items, done)
    finally:
        engine.close()
    assert sorted(reports) == list(items)
    # A file that a killed worker had begun keeps its dotted name until the next start of the run.
    whole = [path.name for path in (folder / "rows").iterdir() if not path.name.startswith(".")]
    assert sorted(whole) == [f"{k:06d}.shard" for k in items]


# --- a private cluster -------------------------------------------------------------------------------------------------

_DRIVER = """
import signal, sys
from pathlib import Path
from simtool.engines.ray import RayEngine

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
engine = RayEngine(2, "local", mapped=None if sys.argv[2] == "mapped" else False)
try:
    engine.run("test_engine_ray:task", Path(sys.argv[1]), [int(k) for k in sys.argv[3:]], lambda *_: None)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    engine.close()
"""


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def _child(parent: int, word: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == parent and word.encode() in command:
                return int(entry.name)
    raise AssertionError(f"no {word} among the children of {parent}")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _driver(folder: Path, temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": HERE, "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _DRIVER, str(folder), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mapped", "shipped"])
def test_a_private_cluster_is_silent_and_leaves_nothing(how: str, short: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    driver = _driver(folder, short, how, "1", "2", "3", "4")
    out, err = driver.communicate()
    assert (driver.returncode, out, err) == (0, "", "")
    assert len(list((folder / "rows").glob("*.shard"))) == 4
    assert list(short.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_stopped_driver_leaves_no_process_and_no_files(sent: str, short: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    memory = set(os.listdir("/dev/shm"))
    driver = _driver(folder, short, "shipped", "1000", "1001", "1002")
    pids = "*-100[01].pid"
    _until(lambda: driver.poll() is not None or len(list(short.glob(pids))) == 2, "the tasks did not start")
    assert driver.poll() is None, driver.communicate()[1]
    keeper = _child(driver.pid, "engines.ray.keeper")
    assert len(_session(keeper)) > 5
    driver.send_signal(signal.Signals[sent])
    out, err = driver.communicate()
    assert driver.returncode == (-signal.SIGKILL if sent == "SIGKILL" else 130), err
    assert out == ""
    _until(lambda: not _session(keeper), "a process of the cluster outlived its driver")
    # What the killed workers held is left, and is removed by the next run there.
    left = {path.name for path in short.iterdir() if not path.name.endswith(".pid")}
    assert all(sent == "SIGKILL" and name.startswith(ray_task.PREFIX) for name in left)
    assert not [name for name in set(os.listdir("/dev/shm")) - memory if "plasma" in name or "ray" in name]
