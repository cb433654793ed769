"""Compile the kernels once, in the parent, before workers would each do it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

_log = logging.getLogger("simtool")


def warm(solver: str) -> None:
    """Make sure that the kernels of ``solver`` are compiled and cached; says so where that takes seconds."""
    if solver != "native":
        return
    from simtool.solvers.kernel import solve_row

    folder = Path(str(solve_row.stats.cache_path))  # type: ignore[attr-defined]
    cached = any(folder.glob("kernel.solve_row*.nbi"))
    if not cached:
        _log.info("compiling the row kernel, once on this machine (some seconds)")
    started = time.perf_counter()
    one = np.ones(1)
    mask = np.ones(1, dtype=bool)
    solve_row(
        np.ones((1, 1)), one, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, mask, 0.5, True, -one, one, 0.0 * one, 1e-6, 1, 10
    )
    if not cached:
        _log.info("compiled in %.1f s", time.perf_counter() - started)
