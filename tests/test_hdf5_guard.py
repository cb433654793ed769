"""The guard of HDF5 files: whatever the library does to a damaged file, it does to a child, and the user gets a message."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from simtool import hdf5
from simtool.data import open_data
from simtool.errors import FormatError, InputError
from simtool.hdf5 import guard, reading

_FAKE = "import sys; sys.path.append(sys.argv[1]); from simtool.hdf5 import child; import os, signal, time\n"


@pytest.fixture(autouse=True)
def fresh_guard() -> Iterator[None]:
    """No child from another test, and none left."""
    guard.close()
    yield
    guard.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of ours that this process has not written, for all it knows."""
    with hdf5.create(tmp_path / "own.h5", "states") as content:
        hdf5.write_header(content, {"a": 1})
        hdf5.write_array(content, "x", np.arange(3.0))
    return Path(shutil.copy(tmp_path / "own.h5", tmp_path / "copy.h5"))


def read(path: Path) -> list[float]:
    with hdf5.open_checked(path, "states") as content:
        return list(content["x"][()])


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited for 30 s in vain")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashes on it .SIGSEGV."),
        ("os.abort()", "crashes on it .SIGABRT."),
        ("os._exit(3)", "exit code 3"),
        ("time.sleep(600)", "did not finish with it in"),
        ("[None for _ in iter(int, 1)]", "damaged|runs without end"),
        ("exec('while True: pass')", "runs without end"),
        ("bytearray(2**40)", "MemoryError"),
        ("os.write(3, b'garbage' * 5 + bytes([10]))", "is damaged"),
    ],
)
def test_what_the_library_does_to_a_file_becomes_a_message(
    file: Path, monkeypatch: pytest.MonkeyPatch, answer: str, message: str
) -> None:
    # The copy of the child's standard output has the first free number.
    monkeypatch.setattr(guard, "_COMMAND", f"{_FAKE}child._answer = lambda request: {answer}\nchild.main()")
    monkeypatch.setattr(guard, "CPU_SECONDS", 0.5)
    if "sleep" in answer:
        monkeypatch.setattr(guard, "_CLOCK_SECONDS", 3.0)
    with pytest.raises(FormatError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert reading.kind_of(file) is None


def test_a_child_harmed_by_an_earlier_file_is_replaced(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.ask_kind(file)
    assert guard._child is not None
    first = guard._child.process
    os.kill(first.pid, signal.SIGKILL)
    assert read(file) == [0.0, 1.0, 2.0]
    assert guard._child.process.pid != first.pid


def test_one_child_serves_a_process_and_own_files_need_none(file: Path) -> None:
    assert read(file.with_name("own.h5")) == [0.0, 1.0, 2.0]
    assert reading.kind_of(file.with_name("own.h5")) == "states"
    assert guard._child is None
    assert reading.kind_of(file) == "states"
    assert guard._child is not None
    pid = guard._child.process.pid
    read(file)
    read(Path(shutil.copy(file, file.with_name("third.h5"))))
    assert guard._child.process.pid == pid


def test_a_file_is_read_again_once_it_changed(file: Path) -> None:
    past = time.time() - 60
    os.utime(file, (past, past))
    wait_for(lambda: time.time_ns() - file.stat().st_ctime_ns > 2 * guard._TICK_SECONDS * 1e9)
    read(file)
    assert guard._child is not None
    served = guard._child.served
    read(file)
    assert guard._child.served == served
    with h5py.File(file, "r+") as content:
        content["x"][0] = 5.0
    assert read(file) == [5.0, 1.0, 2.0]
    assert guard._child.served == served + 1


def test_the_childs_errors_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as content:
        content["inputs"] = np.zeros((3, 2))
    with pytest.raises(InputError, match="no dataset 'labels'") as caught:
        open_data(f"{path}:inputs,labels")
    assert type(caught.value) is InputError
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(FormatError, match="not a readable HDF5 file"):
        open_data(str(path))


def test_relative_paths_follow_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.ask_kind(file)
    monkeypatch.chdir(file.parent)
    assert read(Path("copy.h5")) == [0.0, 1.0, 2.0]


def test_without_a_child_files_are_read_here(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_without", False)
    monkeypatch.setattr(guard, "_COMMAND", "raise SystemExit(1)")
    assert read(file) == [0.0, 1.0, 2.0]
    assert "no child process can be started" in caplog.text


def test_the_child_imports_nothing_from_the_current_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "h5py", "resource", "pathlib"):
        (file.parent / f"{name}.py").write_text("open('harmed', 'w')")
    monkeypatch.chdir(file.parent)
    assert read(file) == [0.0, 1.0, 2.0]
    assert not (file.parent / "harmed").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(file: Path, number: int) -> None:
    code = (
        "import sys, time; from pathlib import Path; from simtool.hdf5 import guard\n"
        "guard.ask_kind(Path(sys.argv[1])); print(guard._child.process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(number)
        parent.wait()
    wait_for(lambda: not alive(child))


def test_a_fork_leaves_the_child_to_its_parent(file: Path) -> None:
    # In a process of its own: this one may have threads.
    code = (
        "import os, sys; from pathlib import Path; from simtool.hdf5 import guard\n"
        "path = Path(sys.argv[1]); guard.ask_kind(path); mine = guard._child.process.pid\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert guard._child is None and guard.ask_kind(path) == 'states'\n"
        "    assert guard._child.process.pid != mine\n"
        "    guard.close(); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert guard.ask_kind(path) == 'states' and guard._child.process.pid == mine\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(file)], check=True)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    assert reading.kind_of(tmp_path / "pipe.h5") is None
    with pytest.raises(InputError, match="not a regular file"):
        read(tmp_path / "pipe.h5")


def test_big_and_odd_datasets_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simtool.hdf5 import child

    path = tmp_path / "d.h5"
    values = np.arange(60_000, dtype="<f4").reshape(300, 200)
    with h5py.File(path, "w") as content:
        content["whole"] = values
        content.create_dataset("chunks", data=values, chunks=(150, 200))
        content.create_dataset("packed", data=values, chunks=(7, 11), compression="gzip")
        content["swapped"], content["empty"] = values.astype(">f4"), np.zeros((0, 3))
    monkeypatch.setattr(child, "_PIECE_BYTES", 1000)
    for small in (100, 2**30):
        monkeypatch.setattr(child, "_SMALL_BYTES", small)
        with h5py.File(path) as content:
            for dataset in content.values():
                child._read(dataset)
    covered = np.zeros((300, 200), dtype=int)
    for piece in child._pieces((300, 200), 4):
        assert covered[piece].size * 4 <= 1000
        covered[piece] += 1
    assert (covered == 1).all()
