"""Supports of every size from convex problems alone, on the shared Gram matrix: an alternative to elimination.

    lasso         minimise  1/2 ||z - W^T w||^2 + lam ||w||_1                                 lam falling
    perspective   minimise  1/2 ||z - W^T w||^2 + min over t in [0,1]^d of sum_j (lam0 t_j + lam2 w_j^2 / t_j)    lam0 falling, lam2 fixed
    reweighted    minimise  1/2 ||z - W^T w||^2 + lam sum_j |w_j| / (|v_j| + eps)            lam rising

with features and targets of norm 1. In the first two a row's features are kept in the order in which they enter. The
third (reweighted l1: Candes, Wakin and Boyd 2008) begins with least squares on the features that enter the lasso first; v
is the solution before, at a smaller lam, and features leave for good, those that cost least before the others.
Solutions are warm-started and found by coordinate descent to a tolerance that decides an order of features, not to a
certificate. The losses reported are exact least-squares losses of the supports. Everything runs in compiled loops, one
row at a time: a row's result depends neither on other rows, nor on a BLAS, nor on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from simtool.budget import dense, pivoting
from simtool.budget.elimination import Paths, Problem
from simtool.errors import OptionError
from simtool.solvers.compiling import compiled

LASSO, PERSPECTIVE, REWEIGHTED = "lasso", "perspective", "reweighted"
KINDS = (LASSO, PERSPECTIVE, REWEIGHTED)

# A penalty is so many times the one before; the last is _LEAST_PENALTY times the largest correlation.
_FALL, _LEAST_PENALTY = 0.9, 1e-4
# lam2 of the perspective, for features and targets of norm 1.
_RIDGE = 1e-2
# Reweighted: the first penalty, below which nothing leaves that matters, and by how much it grows at most.
_FIRST, _RISE = 1e-8, 1.2
# A step that would take more than this share of the features is made in smaller ones.
_LARGEST_STEP, _LEAST_RISE = 0.1, 1.02
# eps, and the ridge of the least squares at the start.
_EPSILON, _START_RIDGE = 1e-3, 1e-6
# Of the penalty: coordinates that change by less are settled.
_SETTLED = 1e-2
# A path reaches so many times what a row keeps on average, and no fewer than the second number: more than an elimination, since
# the features that enter the lasso first are not those that stay.
_START_PER_KEPT, LEAST_START = 2.5, 256
_SWEEPS = 200
# Every so many sweeps all coordinates are looked at, in the others those that are not zero.
_FULL = 8


def paths(
    gram: np.ndarray,
    correlations: np.ndarray,
    squares: np.ndarray,
    kind: str,
    start: int | None = None,
    between: Callable[[int], None] | None = None,
) -> Paths:
    """The supports of every row by the path ``kind``, one of KINDS; arrays and ``between`` as :func:`elimination.paths` takes them.

    ``start`` is the largest size, None for all live features. Where fewer features enter before the penalty has
    fallen to 1e-4 of its first value, those follow that the residual is most correlated with.
    """
    problem = Problem(gram, correlations, squares)
    if kind not in KINDS:
        raise OptionError(f"a convex path is one of {', '.join(KINDS)}, got {kind!r}.")
    if start is not None and start < 1:
        raise OptionError(f"a path must reach at least 1 feature, got {start}.")
    live = problem.live.size
    k0 = live if start is None else min(start, live)
    order = np.empty((problem.r, k0), dtype=np.int32)
    losses = np.empty((problem.r, k0 + 1))
    scale = 1.0 / np.sqrt(np.diag(problem.gram))
    unit = problem.gram * scale[:, None]
    unit *= scale[None, :]
    for i in range(problem.r):
        b = problem.correlations[i] * scale
        if problem.squares[i] > 0.0:
            b /= math.sqrt(problem.squares[i])
        removed = _enter(unit, b, k0, _RIDGE if kind == PERSPECTIVE else 0.0)
        if kind == REWEIGHTED:
            removed = _leave(unit, b, np.sort(removed))
        pivoting.exact_losses(problem.gram, problem.correlations[i], problem.squares[i], removed, losses[i])
        order[i] = problem.live[removed]
        losses[i] = losses[i] / problem.unit[i] / problem.unit[i]
        if between is not None:
            between(i + 1)
    return Paths(order, losses, np.full(problem.r, k0))


def start_size(live: int, kept: float) -> int | None:
    """A good ``start`` for ``live`` features of which a row keeps ``kept`` on average; None for all of them."""
    wanted = max(float(LEAST_START), _START_PER_KEPT * kept)
    return None if wanted >= live else math.ceil(wanted)


@compiled
def _descend(h, penalty, ridge, w, g, settled):
    """Coordinate descent on 1/2 w'Hw - b'w + sum_j penalty_j |w_j|, from ``w`` (k,), with g = b - Hw; both are overwritten.

    ``ridge`` > 0: of the perspective, 2 sqrt(lam0 lam2) |w| up to |w| = sqrt(lam0 / lam2), lam0 + lam2 w^2 beyond.
    """
    k = w.shape[0]
    for sweep in range(_SWEEPS):
        full = sweep % _FULL == 0
        change = 0.0
        for j in range(k):
            if not full and w[j] == 0.0:
                continue
            x = g[j] + h[j, j] * w[j]
            size = max(abs(x) - penalty[j], 0.0) / h[j, j]
            if 2.0 * ridge * size > penalty[j]:
                size = abs(x) / (h[j, j] + 2.0 * ridge)
            step = math.copysign(size, x) - w[j]
            if step != 0.0:
                w[j] += step
                row = h[j]
                for i in range(k):
                    g[i] -= step * row[i]
                change = max(change, abs(step))
        if change <= settled:
            if full:
                return
            done = True
            for j in range(k):
                if w[j] == 0.0 and abs(g[j]) > penalty[j]:
                    done = False
            if done:
                return


@compiled
def _enter(h, b, k0, ridge):
    """``k0`` features in the opposite order of their entering as the penalty falls; ``h`` (d, d) has a unit diagonal."""
    d = b.shape[0]
    order = np.empty(k0, np.int32)
    if k0 == 0:
        return order
    w, g = np.zeros(d), b.copy()
    entered = np.zeros(d, np.bool_)
    found = 0
    first = np.argmax(np.abs(b))
    largest = abs(b[first])
    if largest > 0.0:
        entered[first] = True
        order[k0 - 1] = first
        found = 1
    penalty = largest
    while found < k0 and penalty > _LEAST_PENALTY * largest:
        penalty *= _FALL
        _descend(h, np.full(d, penalty), ridge, w, g, _SETTLED * penalty)
        found = _take(w, entered, order, found)
    if found < k0:
        found = _take(g, entered, order, found)
    for j in range(d):
        if found < k0 and not entered[j]:
            order[k0 - 1 - found] = j
            found += 1
    return order


@compiled
def _take(size, entered, order, found):
    """Let those enter whose ``size`` is not zero, the largest first; returns how many have entered."""
    k0 = order.shape[0]
    for j in np.argsort(-np.abs(size), kind="mergesort"):
        if found < k0 and size[j] != 0.0 and not entered[j]:
            entered[j] = True
            order[k0 - 1 - found] = j
            found += 1
    return found


@compiled
def _leave(gram, b, features):
    """``features`` (k0,) in the order of their leaving as the penalty rises."""
    k0 = features.shape[0]
    order = np.empty(k0, np.int32)
    left = features.copy()
    h = np.empty((k0, k0))
    for a in range(k0):
        for c in range(k0):
            h[a, c] = gram[features[a], features[c]]
    factor = h.copy()
    for a in range(k0):
        factor[a, a] *= 1.0 + _START_RIDGE
    dense.factorise(factor, k0, k0, 1e-2 * _START_RIDGE)
    w = b[features]
    dense.solve(factor, k0, w)
    k = k0
    removed = 0
    penalty, rise = _FIRST, _RISE
    while k > 0:
        weighted = np.empty(k)
        g = np.empty(k)
        for a in range(k):
            weighted[a] = penalty / (abs(w[a]) + _EPSILON)
            g[a] = b[left[a]]
        for a in range(k):
            if w[a] != 0.0:
                for c in range(k):
                    g[c] -= w[a] * h[a, c]
        new = w.copy()
        _descend(h, weighted, 0.0, new, g, _SETTLED * math.sqrt(penalty))
        leaving = 0
        for a in range(k):
            leaving += new[a] == 0.0
        if leaving > max(1.0, _LARGEST_STEP * k) and rise > _LEAST_RISE:
            penalty /= rise
            rise = math.sqrt(rise)
            penalty *= rise
            continue
        if leaving > 0:
            for a in np.argsort(np.abs(w), kind="mergesort"):
                if new[a] == 0.0:
                    order[removed] = left[a]
                    removed += 1
            keep = np.flatnonzero(new)
            k = keep.shape[0]
            smaller = np.empty((k, k))
            for a in range(k):
                left[a] = left[keep[a]]
                new[a] = new[keep[a]]
                for c in range(k):
                    smaller[a, c] = h[keep[a], keep[c]]
            h = smaller
        w = new[:k].copy()
        rise = min(_RISE, rise * rise)
        penalty *= rise
    return order
