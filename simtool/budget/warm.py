"""Compile the budget's kernels once, in the parent, before workers would each do it."""

from __future__ import annotations

import logging
import time

import numpy as np

_log = logging.getLogger("simtool")


def warm(kind: str | None = None) -> None:
    """Make sure that the kernels for paths of this ``kind`` (None: by elimination) are compiled, cached and loaded; says so
    where that took seconds."""
    from simtool.budget import allocation, convex, forward, pivoting
    from simtool.budget.allocation import allocate
    from simtool.budget.elimination import paths

    is_convex = kind in convex.KINDS
    kernels = [
        pivoting.eliminate,
        forward.choose,
        allocation._best_jump,
        *([convex._leave] if is_convex else []),
    ]
    if all(kernel.signatures for kernel in kernels):
        return
    started = time.perf_counter()
    three = np.eye(3)
    curves = paths(three, np.ones((1, 3)), np.full(1, 3.0)).losses
    paths(three, np.ones((1, 3)), np.full(1, 3.0), start=2)
    if is_convex:
        convex.paths(three, np.ones((1, 3)), np.full(1, 3.0), convex.REWEIGHTED)
    allocate([curves[0], np.array([1.0, 1.0, 0.0])], np.ones(2), 1)
    seconds = time.perf_counter() - started
    if seconds > 1.0:
        _log.info("the budget's kernels were compiled in %.1f s, once on this machine", seconds)
