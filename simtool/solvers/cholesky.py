"""A Cholesky factor that grows and shrinks with the active set, compiled.

``factor`` is a square array whose leading k x k lower triangle holds L with L L^T = H. Plain loops, no LAPACK:
the same bytes on every BLAS, and the compiled code can be cached on disk.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.solvers.compiling import compiled

# A pivot below this fraction of its diagonal entry is rounding: the column depends on the others.
_PIVOT_FLOOR = 1e-12


@compiled
def append(factor: np.ndarray, k: int, column: np.ndarray, diagonal: float) -> None:
    """Extend the k x k factor by H's new ``column`` (first k entries) and ``diagonal`` entry."""
    row = factor[k]
    square = 0.0
    for i in range(k):
        total = column[i]
        above = factor[i]
        for j in range(i):
            total -= above[j] * row[j]
        value = total / above[i]
        row[i] = value
        square += value * value
    row[k] = math.sqrt(max(diagonal - square, _PIVOT_FLOOR * diagonal))


@compiled
def delete(factor: np.ndarray, k: int, position: int) -> None:
    """Remove row and column ``position`` of H from the k x k factor, leaving a (k-1) x (k-1) one."""
    for i in range(position, k - 1):
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for j in range(position, k - 1):
        a, b = factor[j, j], factor[j, j + 1]
        length = math.hypot(a, b)
        c, s = a / length, b / length
        factor[j, j] = length
        for i in range(j + 1, k - 1):
            u, v = factor[i, j], factor[i, j + 1]
            factor[i, j] = c * u + s * v
            factor[i, j + 1] = c * v - s * u


@compiled
def solve(factor: np.ndarray, k: int, right: np.ndarray, out: np.ndarray) -> None:
    """out[:k] = H^-1 right[:k]."""
    for i in range(k):
        total = right[i]
        row = factor[i]
        for j in range(i):
            total -= row[j] * out[j]
        out[i] = total / row[i]
    for i in range(k - 1, -1, -1):
        row = factor[i]
        value = out[i] / row[i]
        out[i] = value
        for j in range(i):
            out[j] -= row[j] * value
