"""The compiled kernel where its cache can be written, cannot be, and breaks on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SOLVE = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
{before}
import numpy as np
from simtool.penalty import Penalty
from simtool.design import Design
from simtool.problem import Objective, RowSet
from simtool.solvers.warm import warm
warm("native")
from simtool.certificate import certify
from simtool.solvers import native
w = np.random.default_rng(0).standard_normal((5, 20))
rows = RowSet(Design(w), w[:2] + w[2:4], Objective(0.5, Penalty(), 0.9), np.ones(5, dtype=bool))
print("certified", certify(rows, native.solve(rows, 1e-6), 1e-6).certified.all())
"""
_NO_FOLDER = """
from numba.core import caching
getattr(caching, "CacheImpl", getattr(caching, "_CacheImpl", None))._locator_classes = []
"""
_FULL_DISK = """
from numba.core import caching
def full(*args):
    raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = full
"""


def _run(before: str, cache: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", _SOLVE.format(before=before)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in run.stderr
    return run.stdout


def test_the_first_run_compiles_with_a_line_and_the_second_does_not(tmp_path: Path) -> None:
    first, second = _run("", tmp_path), _run("", tmp_path)
    assert "compiling the row kernel, once on this machine" in first
    assert "compiling" not in second
    assert "certified True" in first
    assert "certified True" in second


@pytest.mark.parametrize("before", [_NO_FOLDER, _FULL_DISK], ids=["read-only", "full disk"])
def test_a_cache_that_cannot_be_written_only_costs_time(before: str, tmp_path: Path) -> None:
    told = _run(before, tmp_path)
    assert "certified True" in told
    assert "no cache folder can be written" in told or "cannot be cached" in told
