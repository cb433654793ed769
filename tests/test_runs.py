"""Runs as a whole: who may work on one, what it says of itself, resuming, cancelling, estimating, and batch parts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simtool import environment
from simtool.cli import main
from simtool.engines import EngineOptions
from simtool.engines.process import ProcessEngine
from simtool.engines.slurm import SlurmOptions
from simtool.errors import (
    FormatError,
    InputError,
    OptionError,
    OutputError,
    SpecChanged,
    WorkerError,
)
from simtool.model import load_model
from simtool.stages.sparsify import agreement, estimate, lock, tracks
from simtool.stages.sparsify.batch import work
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import plan_of
from simtool.stages.sparsify.request import Request
from simtool.stages.sparsify.stage import dry_run, resume, sparsify
from simtool.stages.sparsify.status import cancel, status

L1 = SparsifyOptions(objective="l1", beta=4.0)


@pytest.fixture(scope="module")
def whole(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; only to be read."""
    run = tmp_path_factory.mktemp("whole") / "run"
    sparsify(digits["states"], run, L1, engine="serial")
    return run


class Stop(Exception):
    """What ends a run in the middle of it."""


def interrupted(states: Path, run: Path, after: int = 2, options: SparsifyOptions = L1) -> RunFolder:
    """A run that stopped when ``after`` shards were solved."""
    from simtool.progress import Progress

    class Stopping(Progress):
        shards = 0
        rows = False

        def start(self, total: int, unit: str, label: str) -> None:
            self.rows = unit == "rows"

        def advance(self, count: int = 1) -> None:
            self.shards += self.rows
            if self.shards == after:
                raise Stop

    with pytest.raises(Stop):
        sparsify(states, run, options, engine="serial", progress=Stopping())
    folder = RunFolder(run)
    assert 0 < sum(folder.holds(folder.shard(i)) for i in range(4)) < 4
    return folder


# --- what is left of an interrupted run is compared before it is trusted -------------------------------------------------


@pytest.mark.parametrize("name", ["design", "targets", "gram-0", "gram-2"])
def test_damaged_inputs_are_made_again(
    name: str, digits: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    array = folder.array(name)
    content = bytearray(array.read_bytes())
    content[-5] ^= 0x10
    array.write_bytes(bytes(content))
    for index in range(4):
        folder.shard(index).unlink(missing_ok=True)
    resume(folder.path, engine="serial")
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


@pytest.mark.parametrize("damage", ["empty", "flipped", "foreign"])
def test_a_damaged_shard_is_solved_again(
    damage: str, digits: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    shard = folder.shard(0)
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes({"empty": b"", "flipped": bytes(content), "foreign": b"PK\x03\x04"}[damage])
    resume(folder.path, engine="serial")
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


# --- environments ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another version of numpy, as it would be on another machine."""
    real = environment.fingerprint

    def other(packages: tuple[str, ...] = ()) -> dict[str, Any]:
        return {**real(packages), "numpy": "0.0"}

    monkeypatch.setattr(environment, "fingerprint", other)
    agreement._differences.cache_clear()
    yield
    agreement._differences.cache_clear()


def test_another_environment_is_refused(digits: dict[str, Path], tmp_path: Path, elsewhere: None) -> None:
    with pytest.MonkeyPatch.context() as here:
        here.setattr(environment, "fingerprint", _real_fingerprint)
        agreement._differences.cache_clear()
        folder = interrupted(digits["states"], tmp_path / "run")
    agreement._differences.cache_clear()
    with pytest.raises(SpecChanged, match=rf"numpy {np.__version__}, here it is 0\.0.*--allow-mixed"):
        sparsify(digits["states"], folder.path, L1)
    with pytest.raises(SpecChanged, match=r"0\.0"):
        work(folder.path, "rows")


_real_fingerprint = environment.fingerprint


def test_a_mixed_run_is_recorded(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    monkeypatch.setattr(environment, "fingerprint", lambda _=(): {**_real_fingerprint(), "numpy": "0.0"})
    agreement._differences.cache_clear()
    try:
        resume(folder.path, engine="serial", allow_mixed=True)
    finally:
        agreement._differences.cache_clear()
    (other,) = load_model(folder.model).header_extra["mixed_environments"]
    assert other["numpy"] == "0.0"


def test_a_finished_run_is_returned_anywhere(
    digits: dict[str, Path], whole: Path, tmp_path: Path, elsewhere: None
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert sparsify(digits["states"], run, L1)["certified"] == 90


def test_a_worker_of_another_environment_is_refused(digits: dict[str, Path], tmp_path: Path) -> None:
    """The check is the worker's own: here a worker process with a BLAS kernel of another name."""
    folder = interrupted(digits["states"], tmp_path / "run")
    spec = json.loads(folder.spec.read_text())
    spec["environment"]["blas"] = ["another blas"]
    folder.spec.write_text(json.dumps(spec))
    engine = ProcessEngine(1)
    try:
        with pytest.raises(SpecChanged, match="blas another blas, here it is"):
            engine.run("simtool.stages.sparsify.tasks:shard", folder.path, [3], lambda *_: None)
    finally:
        engine.close()


# --- the lock ----------------------------------------------------------------------------------------------------------------


def test_the_lock_names_its_holder_and_vanishes_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from simtool.stages.sparsify.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    with (
        pytest.raises(OutputError, match=rf"process {process.pid} on {platform.node()}"),
        lock.locked(tmp_path),
    ):
        pass
    holder = lock.holder(tmp_path)
    assert holder is not None
    assert holder["pid"] == process.pid
    process.kill()
    process.wait()
    process.stdout.close()
    assert lock.holder(tmp_path) is None
    with lock.locked(tmp_path):
        assert lock.holder(tmp_path) is not None
    assert lock.holder(tmp_path) is None


def _no_flock(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _no_flock)
    with lock.locked(tmp_path), pytest.raises(OutputError, match="delete"), lock.locked(tmp_path):
        pass
    dead = {**lock.this_process(), "born": "1"}  # of this number, but an earlier one
    (tmp_path / ".owner").write_text(json.dumps(dead))
    with lock.locked(tmp_path):
        pass
    (tmp_path / ".owner").write_text(json.dumps({**dead, "host": "another-machine"}))
    with pytest.raises(OutputError, match="on another-machine"), lock.locked(tmp_path):
        pass
    (tmp_path / ".owner").write_text("")
    with pytest.raises(OutputError, match="If that has ended, delete"), lock.locked(tmp_path):
        pass


# --- resume, status, cancel --------------------------------------------------------------------------------------------------


def test_resume_goes_on_where_a_run_stopped(digits: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    found = status(folder.path)
    assert (found["state"], found["done"], found["running"], found["failed"]) == ("stopped", 2, 0, 0)
    assert found["shards"] == 4
    assert found["engine"] == "serial"
    times = [folder.shard(i).stat().st_mtime_ns for i in range(2)]
    result = resume(folder.path, engine="process", workers=2)
    assert (result["certified"], result["engine"], result["workers"]) == (90, "process", 2)
    assert [folder.shard(i).stat().st_mtime_ns for i in range(2)] == times
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()
    after = status(folder.path)
    assert (after["state"], after["done"], after["certified"]) == ("finished", 4, 90)
    assert after["slowest"]["seconds_per_row"] > 0
    assert resume(folder.path) == result


def test_resume_finds_states_that_have_moved(digits: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    states = tmp_path / "states.h5"
    shutil.copy(digits["states"], states)
    folder = interrupted(states, tmp_path / "run")
    moved = states.rename(tmp_path / "moved.h5")
    with pytest.raises(InputError, match=r"states\.h5, does not exist\. Pass where it is with --states"):
        resume(folder.path)
    folder.request.unlink()
    with pytest.raises(InputError, match="Pass --states"):
        resume(folder.path)
    resume(folder.path, states=moved)
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


def test_resume_refuses_other_states(digits: dict[str, Path], tmp_path: Path) -> None:
    from simtool.demo import NETWORK
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    folder = interrupted(digits["states"], tmp_path / "run")
    other = tmp_path / "other.h5"
    extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=299, output=other)
    with pytest.raises(InputError, match="is not the states file"):
        resume(folder.path, states=other)
    with pytest.raises(InputError, match="no spec"):
        resume(tmp_path)


def test_resume_keeps_mask_and_weights(digits: dict[str, Path], tmp_path: Path) -> None:
    mask = np.ones((90, 145), dtype=np.uint8)
    mask[:, ::7] = 0
    np.save(tmp_path / "mask.npy", mask)
    options = SparsifyOptions(objective="l1", beta=4.0, mask=str(tmp_path / "mask.npy"))
    sparsify(digits["states"], tmp_path / "whole", options, engine="serial")
    folder = interrupted(digits["states"], tmp_path / "run", options=options)
    (tmp_path / "mask.npy").unlink()
    resume(folder.path, engine="serial")
    assert folder.model.read_bytes() == (tmp_path / "whole" / "model.h5").read_bytes()


def test_a_damaged_request_is_named(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    for content in (
        b"",
        b"[]",
        b'{"format_version": 9}',
        b'{"format_version": 1, "states": "x", "engine": {}}',
    ):
        folder.request.write_bytes(content)
        with pytest.raises(FormatError, match=r"request\.json"):
            Request.read(folder)


def test_requests_keep_the_engine(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    slurm = SlurmOptions(partition="main", time="1:00:00", extra=("--qos=short",))
    for engine in (
        EngineOptions(),
        EngineOptions("ray", 3, "local"),
        EngineOptions("slurm", slurm=slurm, wait=True),
    ):
        Request(digits["states"], engine).write(folder)
        assert Request.read(folder) == Request(digits["states"].resolve(), engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cloud"}, "unknown engine"),
        ({"name": "slurm", "workers": 4}, "--array-size"),
        ({"name": "serial", "workers": 2}, "one worker"),
        ({"name": "process", "ray_address": "local"}, "belongs to --engine ray"),
        ({"name": "process", "wait": True}, "belong to --engine slurm"),
        ({"name": "ray", "slurm": SlurmOptions()}, "belong to --engine slurm"),
    ],
)
def test_options_belong_to_their_engine(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineOptions(**options)


def test_cancel_stops_a_run_and_resume_ends_it(digits: dict[str, Path], tmp_path: Path) -> None:
    """A run at work in another process: status sees it, cancel ends it, nothing is lost."""
    (tmp_path / "own.py").write_text(
        "import time\nimport cvxpy as cp\ndef slow(a, b):\n    return cp.norm1(a) + cp.norm1(b), []\n"
    )
    run = tmp_path / "run"
    argv = [sys.executable, "-m", "simtool", "sparsify", str(digits["states"]), "--objective", "own.py:slow"]
    process = subprocess.Popen(
        [*argv, "--workers", "2", "-o", str(run), "--quiet"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        found = status(run) if (run / "spec.json").exists() else {"running": 0}
        if found["running"]:
            break
        time.sleep(0.05)
    assert found["state"] == "at work"
    assert found["worker"] == {"pid": process.pid, "host": platform.node()}
    stopped = cancel(run)
    assert stopped["stopped"] == process.pid
    process.communicate()
    assert process.returncode == 143
    assert status(run)["state"] == "stopped"
    assert cancel(run)["stopped"] is None


def test_failures_are_kept_for_status(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    folder.array("targets").unlink()
    with pytest.raises(FileNotFoundError), tracks.tracked(folder, "rows", 3):
        folder.map_array("targets")
    found = status(folder.path)
    assert found["failed"] == 1
    assert "FileNotFoundError" in found["errors"][0]["error"]
    resume(folder.path, engine="serial")
    assert status(folder.path)["failed"] == 0


def test_a_track_of_a_process_that_is_gone_is_not_running(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from simtool.stages.sparsify import tracks; from simtool.stages.sparsify.folder import RunFolder\n"
        "with tracks.tracked(RunFolder(Path(sys.argv[1])), 'rows', 3):\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False)
    (track,) = [t for t in tracks.read(folder, "rows") if t.index == 3]
    assert track.state == tracks.RUNNING
    assert track.abandoned
    with folder.locked():
        assert status(folder.path)["running"] == 0


def test_a_clock_that_jumps_changes_nothing(
    digits: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    monkeypatch.setattr(time, "time", lambda: 1.0)
    status(folder.path)
    for file in folder.path.rglob("*"):
        os.utime(file, (0, 0))
    result = resume(folder.path, engine="serial")
    assert result["seconds"] >= 0
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


# --- parts, for batch systems ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_every_phase_make_the_same_model(
    parts: int, digits: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run", after=1)
    plan = plan_of(folder)
    for index in range(len(plan.tiles)):
        folder.tile(index).unlink()
    for array in folder.work.glob("gram-*"):
        array.unlink()
    with pytest.raises(WorkerError, match="Gram matrices"):
        work(folder.path, "rows")
    with pytest.raises(WorkerError, match="Gram tiles are missing"):
        work(folder.path, "prepare")
    with pytest.raises(WorkerError, match=r"3 of 4 shards .* are missing.*simtool resume"):
        work(folder.path, "merge")
    done = sum(work(folder.path, "tiles", part=k, parts=parts)["done"] for k in range(parts))
    needed = {plan.groups[plan.shards[k].group].gram for k in range(4) if not folder.holds(folder.shard(k))}
    assert done == sum(tile[0] in needed for tile in plan.tiles)
    work(folder.path, "prepare")
    done = sum(work(folder.path, "rows", part=k, parts=parts)["done"] for k in range(parts))
    assert done == 3
    result = work(folder.path, "merge")
    assert (result["certified"], result["engine"]) == (90, "slurm")
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()
    assert work(folder.path, "merge") == result


def test_all_of_a_run_as_one_job(digits: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    assert work(folder.path, "all", workers=2)["engine"] == "process"
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phase": "rows", "part": 3, "parts": 3}, r"\[0, --parts - 1\]"),
        ({"phase": "rows", "parts": 0}, "--parts"),
        ({"phase": "cols"}, "--phase must be one of"),
    ],
)
def test_parts_are_checked(
    arguments: dict[str, Any], message: str, digits: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        work(tmp_path, **arguments)


@pytest.mark.parametrize("content", ["", "{}", "[99]", "[-1]", "[true]", '["1"]'])
def test_items_are_checked(content: str, digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    (tmp_path / "items.json").write_text(content)
    with pytest.raises(InputError, match="--items"):
        work(folder.path, "rows", items=tmp_path / "items.json")


# --- estimates ---------------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(digits: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["sparsify", str(digits["states"]), "--dry-run", "-o", str(tmp_path / "run"), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["rows"], found["shards"], found["fits"]) == (90, 4, True)
    assert 0 < found["seconds"] < 60
    assert not (tmp_path / "run").exists()


def test_an_estimate_of_disk_is_what_a_run_takes(digits: dict[str, Path], tmp_path: Path) -> None:
    predicted = dry_run(digits["states"], tmp_path / "run", L1, engine="serial")["disk_bytes"]
    folder = interrupted(digits["states"], tmp_path / "run")
    taken = sum(file.stat().st_size for file in folder.work.rglob("*.npy"))
    taken += sum(file.stat().st_size for file in folder.work.rglob("*.shard"))
    assert 0.4 * taken <= predicted <= 2.0 * taken


def test_workers_that_memory_cannot_hold_are_refused(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 300 * 2**20)
    with pytest.raises(InputError, match=r"4 workers need about .* Use fewer --workers"):
        sparsify(digits["states"], tmp_path / "run", L1, engine="process", workers=4)
    found = dry_run(digits["states"], tmp_path / "run", L1, engine="process", workers=4)
    assert not found["fits"]
    assert "fewer --workers" in found["lack"]


# --- what a folder says is not trusted -----------------------------------------------------------------------------------------


def test_code_that_a_folder_names_is_not_run(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    spec = json.loads(folder.spec.read_text())
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef f(a, b):\n    return 0, []\n")
    spec["options"] |= {"objective": f"{evil}:f", "solver": "clarabel", "beta": None}
    spec["objective"] = {"source_sha256": "0" * 64}
    folder.spec.write_text(json.dumps(spec))
    for call in (lambda: resume(folder.path), lambda: work(folder.path, "rows")):
        with pytest.raises(OptionError, match="if you trust it"):
            call()
    assert not (tmp_path / "pwned").exists()


def test_a_ray_address_that_a_folder_names_is_not_called(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    Request(digits["states"], EngineOptions("ray", None, "10.1.2.3:6379")).write(folder)
    with pytest.raises(OptionError, match=r"--ray-address 10\.1\.2\.3:6379"):
        resume(folder.path)


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_cancel_signals_no_process_that_it_is_talked_into(
    pid: int, digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent") if _[1] else None)
    content = json.dumps({"pid": pid, "host": platform.node(), "born": "", "since": 0})
    (folder.path / ".lock").write_text(content)
    assert cancel(folder.path)["stopped"] is None  # nobody holds the lock
    (folder.path / ".owner").write_text(content)
    with pytest.raises(OutputError, match="does not say which process"):
        cancel(folder.path)


def test_a_holder_that_was_killed_elsewhere_is_not_at_work(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    content = {**lock.this_process(), "host": "another-machine"}
    (folder.path / ".lock").write_text(json.dumps(content))
    assert status(folder.path)["state"] == "stopped"


def test_a_copy_of_a_run_has_no_jobs_of_its_own(tmp_path: Path) -> None:
    from simtool.engines.slurm import Job, Jobs, job_name
    from simtool.stages.sparsify.remote import own_jobs

    folder = RunFolder(tmp_path / "run")
    folder.slurm.mkdir(parents=True)
    job = Job("rows", job_name(folder.slurm, "rows"), 4, "2026-01-01T00:00:00Z", 7)
    Jobs(folder.slurm, "cluster", (job,)).write()
    assert own_jobs(folder) is not None
    shutil.copytree(folder.path, tmp_path / "copy")
    assert own_jobs(RunFolder(tmp_path / "copy")) is None


def test_shards_without_a_spec_are_not_adopted(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    folder.spec.unlink()
    with pytest.raises(OutputError, match=r"but not its spec\.json"):
        sparsify(digits["states"], folder.path, SparsifyOptions(objective="l1", beta=5.0))


def test_rows_are_not_solved_on_a_damaged_gram_matrix(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    for name in ("gram-0", "gram-1", "gram-2"):
        array = folder.array(name)
        content = bytearray(array.read_bytes())
        content[-3] ^= 0x40
        array.write_bytes(bytes(content))
    with pytest.raises(WorkerError, match="Gram matrices"):
        work(folder.path, "rows")


def test_what_killed_processes_left_is_removed(digits: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    (folder.rows / ".000003.shard.123.tmp").write_bytes(b"half")
    resume(folder.path, engine="serial")
    assert not list(folder.rows.glob(".*"))
    folder.work.mkdir()  # as if the process had ended right after it wrote the result
    (folder.work / "design.npy").write_bytes(b"much")
    resume(folder.path, engine="serial")
    assert not folder.work.exists()


@pytest.mark.parametrize("content", ["{}", '{"result": 3}', "[]", "3"])
def test_status_of_a_damaged_timing(content: str, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "timing.json").write_text(content)
    assert status(run)["done"] == 4


@pytest.mark.parametrize(
    "slurm", [{"time": 30}, {"partition": 5}, {"extra": ["--export=ALL,BASH_ENV=/tmp/x"]}, {"array_size": 0}]
)
def test_requests_are_checked(slurm: dict[str, Any], digits: dict[str, Path], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    Request(digits["states"], EngineOptions("slurm", slurm=SlurmOptions())).write(folder)
    content = json.loads(folder.request.read_text())
    content["engine"]["slurm"] |= slurm
    folder.request.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"request\.json"):
        Request.read(folder)


# --- the command line --------------------------------------------------------------------------------------------------------


def test_status_resume_and_cancel_on_the_command_line(
    digits: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    folder = interrupted(digits["states"], tmp_path / "a run with ünicode")
    run = str(folder.path)
    seen = CliRunner().invoke(main, ["status", run])
    assert seen.exit_code == 0
    assert "2 of 4 done" in seen.stdout
    assert f"simtool resume '{run}'" in seen.stdout
    stopped = CliRunner().invoke(main, ["cancel", run, "--json"])
    assert json.loads(stopped.stdout) == {"run": run, "jobs": 0, "stopped": None}
    resumed = CliRunner().invoke(main, ["resume", run, "--engine", "serial", "--json", "--quiet"])
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["certified"] == 90
    assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()
    assert json.loads(CliRunner().invoke(main, ["status", run, "--json"]).stdout)["state"] == "finished"


@pytest.mark.parametrize("verb", ["status", "resume", "cancel"])
def test_what_is_no_run_is_refused(verb: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [verb, str(tmp_path)])
    assert result.exit_code == 1
    assert "not a run folder" in result.output


def test_options_of_an_engine_name_it() -> None:
    from simtool.cli.engine import taken_engine

    nothing = dict.fromkeys(
        ("partition", "time", "cpus_per_task", "array_size", "memory", "account", "ray_nodes")
    )
    nothing |= {"extra": (), "engine": None, "workers": None, "ray_address": None}
    nothing |= {"wait": False, "allow_mixed": False}
    assert taken_engine(dict(nothing)) == (None, False)
    engine, _ = taken_engine({**nothing, "partition": "main"})
    assert engine == EngineOptions("slurm", slurm=SlurmOptions(partition="main"))
    engine, _ = taken_engine({**nothing, "ray_address": "local"})
    assert engine == EngineOptions("ray", ray_address="local")
    with pytest.raises(OptionError, match="--workers 3 was given without an engine"):
        taken_engine({**nothing, "workers": 3})


@pytest.mark.parametrize("words", [["--engine", "foo"], ["--workers", "x"], ["--nonsense"]])
def test_what_cannot_be_parsed_is_json_too(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["sparsify", "s.h5", "-o", "r", "--json", *words])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["exit"] == 2


@pytest.mark.parametrize("damage", ["of another run", "swapped", "another spec"])
def test_a_shard_belongs_to_its_run_and_place(
    damage: str, digits: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    folder = RunFolder(shutil.copytree(whole, tmp_path / "run"))
    folder.model.unlink()
    beta = 4.0
    if damage == "of another run":
        other = interrupted(
            digits["states"], tmp_path / "other", 1, SparsifyOptions(objective="l1", beta=3.0)
        )
        (shard,) = other.rows.glob("*.shard")
        shutil.copy(shard, folder.rows / shard.name)
    elif damage == "swapped":
        first, second = folder.shard(0).read_bytes(), folder.shard(1).read_bytes()
        folder.shard(0).write_bytes(second)
        folder.shard(1).write_bytes(first)
    else:
        beta = 3.0
        folder.spec.write_text(folder.spec.read_text().replace('"beta": 4.0', '"beta": 3.0'))
    assert status(folder.path)["done"] < 4
    resume(folder.path, engine="serial")
    sparsify(
        digits["states"], tmp_path / "right", SparsifyOptions(objective="l1", beta=beta), engine="serial"
    )
    assert load_model(folder.model).nnz == load_model(tmp_path / "right").nnz
    if damage != "another spec":
        assert folder.model.read_bytes() == (whole / "model.h5").read_bytes()


def test_nothing_is_left_of_a_run_that_is_refused(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 300 * 2**20)
    with pytest.raises(InputError):
        sparsify(digits["states"], tmp_path / "run", L1, engine="process", workers=4)
    assert not (tmp_path / "run").exists()


def test_parts_are_not_solved_beside_a_process_that_does(digits: dict[str, Path], tmp_path: Path) -> None:
    folder = interrupted(digits["states"], tmp_path / "run")
    with folder.locked(), pytest.raises(OutputError, match="which solves its rows"):
        work(folder.path, "rows")


# --- the process engine ------------------------------------------------------------------------------------------------------


def die_once(folder: Path, item: int) -> dict[str, Any]:
    """Item 0 costs the first worker that takes it its life, if another works beside it or not."""
    mark = folder / f"tried-{item}"
    if item == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    beside = [other.name for other in folder.glob("running-*")]
    own = folder / f"running-{item}"
    own.touch()
    time.sleep(0.05)
    own.unlink()
    return {"item": item, "beside": beside}


def test_a_shard_whose_worker_was_killed_is_tried_again_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    engine = ProcessEngine(2)
    seen: dict[int, dict[str, Any]] = {}
    try:
        engine.run("test_runs:die_once", tmp_path, list(range(6)), seen.__setitem__)
    finally:
        engine.close()
    assert sorted(seen) == list(range(6))
    assert list(seen)[-1] == 0
    assert seen[0]["beside"] == []
    assert "ended by SIGKILL; it is tried again on its own" in caplog.text


def slowly(folder: Path, item: int) -> dict[str, Any]:
    (folder / f"started-{item}").touch()
    time.sleep(1.0)
    (folder / f"ended-{item}").touch()
    return {}


def test_an_interrupt_lets_running_shards_finish(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from simtool.engines.process import ProcessEngine\n"
        "engine = ProcessEngine(2)\n"
        "try:\n    engine.run('test_runs:slowly', Path(sys.argv[1]), [0, 1, 2, 3], lambda *_: None)\n"
        "except KeyboardInterrupt:\n    sys.exit(7)\n"
        "finally:\n    engine.close()\n"
    )
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=paths)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "started-0").exists() and (tmp_path / "started-1").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 7
    assert {file.name for file in tmp_path.glob("ended-*")} == {"ended-0", "ended-1"}
    assert not (tmp_path / "started-2").exists()


def half_a_line(folder: Path, item: int) -> dict[str, Any]:
    """Ends in the middle of an answer, as a worker does that is killed while it speaks."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                os.write(number, b'{"report": {"it')
    os._exit(3)


def test_half_an_answer_is_the_end_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    engine = ProcessEngine(1)
    try:
        with pytest.raises(WorkerError, match="ended with exit code 3"):
            engine.run("test_runs:half_a_line", tmp_path, [0], lambda *_: None)
    finally:
        engine.close()


def test_modules_of_the_callers_folder_shadow_nothing(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('not yours')")
    monkeypatch.chdir(tmp_path)
    assert sparsify(digits["states"], tmp_path / "run", L1, engine="process", workers=1)["certified"] == 90


def test_threads_of_the_merge_change_no_byte(tmp_path: Path) -> None:
    """The rescaling of a large cyclic model solves a system, whose last bits depend on the threads that share it."""
    (tmp_path / "wide.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(3)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100),\n"
        "        torch.nn.ReLU(), torch.nn.Linear(100, 10))\n"
    )
    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract

    states = tmp_path / "states.h5"
    extract(NetworkSpec(f"{tmp_path / 'wide.py'}:net"), "digits", samples=150, output=states)
    models = []
    for threads in ("1", "2"):
        run = tmp_path / threads
        code = (
            "import sys; from simtool import SparsifyOptions, sparsify\n"
            "options = SparsifyOptions(structure='free', kappa=0.9)\n"
            "sparsify(sys.argv[1], sys.argv[2], options, engine='serial')\n"
        )
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        subprocess.run([sys.executable, "-c", code, str(states), str(run)], env=environment, check=True)
        models.append((run / "model.h5").read_bytes())
    assert models[0] == models[1]
