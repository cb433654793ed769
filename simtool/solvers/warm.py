"""Compile the kernels once, in the parent, before workers would each do it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

_log = logging.getLogger("simtool")


def is_compiled(solver: str) -> bool:
    """Whether the kernels of ``solver`` are in the cache, as far as its files tell."""
    if solver != "native":
        return True
    from simtool.solvers.compiling import cache_path
    from simtool.solvers.kernel import solve_row

    folder = cache_path(solve_row)
    return folder is not None and any(Path(folder).glob("kernel.solve_row*.nbi"))


def warm(solver: str) -> None:
    """Make sure that the kernels of ``solver`` are compiled, cached and loaded; says so where that takes seconds."""
    if solver != "native":
        return
    from simtool.solvers.compiling import cache_path
    from simtool.solvers.kernel import solve_row

    if solve_row.signatures:
        return
    folder, cached = cache_path(solve_row), is_compiled(solver)
    if not cached:
        where = (
            "in every process: no cache folder can be written" if folder is None else "once on this machine"
        )
        _log.info("compiling the row kernel, %s (some seconds)", where)
    started = time.perf_counter()
    one = np.ones(1)
    everything = np.ones(1, dtype=bool)
    gram = np.ones((1, 1))
    gram.flags.writeable = False  # as solve_reduced passes it
    arguments = (
        gram,
        one,
        1.0,
        1.0,
        0.5,
        0.0,
        0.0,
        0.0,
        everything,
        0.5,
        True,
        -one,
        one,
        0.0 * one,
    )
    solve_row(*arguments, 1e-6, 1, 10)
    if not cached:
        _log.info("compiled in %.1f s", time.perf_counter() - started)
