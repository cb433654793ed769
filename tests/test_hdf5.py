"""HDF5 files: whole or not at all, even under Ctrl-C; and what --overwrite may replace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simtool import hdf5
from simtool.errors import OutputError

_WRITER = """
import sys, numpy as np
from pathlib import Path
from simtool import hdf5
with hdf5.create(Path(sys.argv[1]), "states") as file:
    print("writing", flush=True)
    for k in range(10_000):
        file.create_dataset(f"d{k}", data=np.random.random(50_000))
        hdf5.check_written(file)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.1, 0.2])
def test_an_interrupt_while_writing_ends_cleanly(delay: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "x.h5")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode in (1, 130, -signal.SIGINT), errors
    assert "KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def _states(path: Path) -> Path:
    with hdf5.create(path, "states") as file:
        hdf5.write_array(file, "x", np.arange(3))
    return path


def test_only_files_of_the_same_kind_are_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("precious")
    model = tmp_path / "m.h5"
    with hdf5.create(model, "model"):
        pass
    for path in (mine, model):
        with pytest.raises(OutputError, match="not a states file"):
            hdf5.writable_target(path, True, "states")
    hdf5.writable_target(_states(tmp_path / "s.h5"), True, "states")


def test_inputs_devices_links_and_runs_are_not_replaced(tmp_path: Path) -> None:
    states = _states(tmp_path / "s.h5")
    with pytest.raises(OutputError, match="read by this very command"):
        hdf5.writable_target(states, True, "states", [None, tmp_path / "." / "s.h5"])
    (tmp_path / "link.h5").symlink_to(states)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link.h5", "pipe"):
        with pytest.raises(OutputError, match="not a regular file"):
            hdf5.writable_target(tmp_path / name, True, "states")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text("{}")
    with pytest.raises(OutputError, match="belongs to a run folder"):
        hdf5.writable_target(_states(tmp_path / "run" / "model.h5"), True, "states")
