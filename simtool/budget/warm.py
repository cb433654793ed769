"""Compile the budget's kernels once, in the parent, before workers would each do it."""

from __future__ import annotations

import logging
import time

import numpy as np

_log = logging.getLogger("simtool")


def warm() -> None:
    """Make sure that the kernels are compiled, cached and loaded; says so where that took seconds."""
    from simtool.budget import allocation, forward, pivoting
    from simtool.budget.allocation import allocate
    from simtool.budget.elimination import paths

    if all(k.signatures for k in (pivoting.eliminate, forward.choose, allocation._best_jump)):
        return
    started = time.perf_counter()
    three = np.eye(3)
    curves = paths(three, np.ones((1, 3)), np.full(1, 3.0)).losses
    paths(three, np.ones((1, 3)), np.full(1, 3.0), start=2)
    allocate([curves[0], np.array([1.0, 1.0, 0.0])], np.ones(2), 1)
    seconds = time.perf_counter() - started
    if seconds > 1.0:
        _log.info("the budget's kernels were compiled in %.1f s, once on this machine", seconds)
