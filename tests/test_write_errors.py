"""Injected write errors: no space, I/O errors, at every operation in turn. What is left can be resumed, and ends right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip(
            "a C compiler and Linux are needed to make writes fail (Debian: apt-get install gcc libc6-dev)"
        )
    library = tmp_path_factory.mktemp("shim") / "failing_writes.so"
    source = str(HERE / "failing_writes.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), source, "-ldl"], check=True)
    return library


def disturb(shim: Path, digits: dict[str, Path], place: Path, case: str, share: float, seed: int = 0) -> Any:
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    argv = [sys.executable, "-W", "error", str(HERE / "write_errors.py"), case]
    argv += [str(digits["states"]), str(digits["weights"]), str(place), str(share), str(seed)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("case", "share"), [("sparsify", 0.12), ("extract", 0.08)])
def test_failing_writes_leave_what_can_be_resumed(
    case: str, share: float, shim: Path, digits: dict[str, Path], tmp_path: Path
) -> None:
    found = disturb(shim, digits, tmp_path, case, share)
    assert found["disturbed"] >= 10
    assert found["wrong"] == [], "\n".join(found["wrong"][:5])


@pytest.mark.stress
@pytest.mark.parametrize("case", ["sparsify", "extract"])
def test_every_write_may_fail(case: str, shim: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    found = disturb(shim, digits, tmp_path, case, 1.0)
    assert found["disturbed"] == 3 * found["operations"]
    assert found["wrong"] == [], "\n".join(found["wrong"][:5])
