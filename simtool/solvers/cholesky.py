"""A Cholesky factor that grows and shrinks with the active set, compiled.

``factor`` is a square array whose leading k x k upper triangle holds U with U^T U = H. Plain loops, no LAPACK: the
compiled code can be cached on disk, and no sum is reordered by the compiler, so that the bytes are the same on every
processor. Inner loops run along the rows of U, four of them at a time, which is what the
memory can deliver.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.solvers.compiling import compiled

# A pivot below this fraction of its diagonal entry is rounding: the column depends on the others.
_PIVOT_FLOOR = 1e-12


@compiled
def _solve_transposed(factor: np.ndarray, k: int, x: np.ndarray) -> None:
    """x[:k] becomes U^-T x[:k]."""
    j = 0
    while j + 4 <= k:
        p, q, r, s = factor[j], factor[j + 1], factor[j + 2], factor[j + 3]
        a = x[j] / p[j]
        b = (x[j + 1] - p[j + 1] * a) / q[j + 1]
        c = (x[j + 2] - p[j + 2] * a - q[j + 2] * b) / r[j + 2]
        d = (x[j + 3] - p[j + 3] * a - q[j + 3] * b - r[j + 3] * c) / s[j + 3]
        x[j], x[j + 1], x[j + 2], x[j + 3] = a, b, c, d
        for i in range(j + 4, k):
            x[i] -= (p[i] * a + q[i] * b) + (r[i] * c + s[i] * d)
        j += 4
    while j < k:
        row = factor[j]
        a = x[j] / row[j]
        x[j] = a
        for i in range(j + 1, k):
            x[i] -= row[i] * a
        j += 1


@compiled
def _solve_upper(factor: np.ndarray, k: int, x: np.ndarray) -> None:
    """x[:k] becomes U^-1 x[:k]."""
    i = k
    while i >= 4:
        i -= 4
        p, q, r, s = factor[i], factor[i + 1], factor[i + 2], factor[i + 3]
        # Sums that do not wait for each other, in an order that is always the same.
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        e, f, g, h = 0.0, 0.0, 0.0, 0.0
        j = i + 4
        while j + 2 <= k:
            one, two = x[j], x[j + 1]
            a += p[j] * one
            b += q[j] * one
            c += r[j] * one
            d += s[j] * one
            e += p[j + 1] * two
            f += q[j + 1] * two
            g += r[j + 1] * two
            h += s[j + 1] * two
            j += 2
        if j < k:
            one = x[j]
            a += p[j] * one
            b += q[j] * one
            c += r[j] * one
            d += s[j] * one
        d = (x[i + 3] - (d + h)) / s[i + 3]
        c = (x[i + 2] - (c + g) - r[i + 3] * d) / r[i + 2]
        b = (x[i + 1] - (b + f) - q[i + 3] * d - q[i + 2] * c) / q[i + 1]
        a = (x[i] - (a + e) - p[i + 3] * d - p[i + 2] * c - p[i + 1] * b) / p[i]
        x[i], x[i + 1], x[i + 2], x[i + 3] = a, b, c, d
    while i > 0:
        i -= 1
        row = factor[i]
        a = x[i]
        for j in range(i + 1, k):
            a -= row[j] * x[j]
        x[i] = a / row[i]


@compiled
def append(factor: np.ndarray, k: int, column: np.ndarray, diagonal: float) -> None:
    """Extend the k x k factor by H's new ``column`` (first k entries, overwritten) and ``diagonal`` entry."""
    _solve_transposed(factor, k, column)
    square = 0.0
    for j in range(k):
        factor[j, k] = column[j]
        square += column[j] * column[j]
    factor[k, k] = math.sqrt(max(diagonal - square, _PIVOT_FLOOR * diagonal))


@compiled
def delete(factor: np.ndarray, k: int, position: int) -> None:
    """Remove row and column ``position`` of H from the k x k factor, leaving a (k-1) x (k-1) one."""
    for i in range(position + 1):
        row = factor[i]
        for j in range(position + 1, k):
            row[j - 1] = row[j]
    # The rows below move one column to the left, which leaves an entry below each diagonal: rotate it away on the way.
    for j in range(position, k - 1):
        upper, lower = factor[j], factor[j + 1]
        a, b = upper[j], lower[j + 1]
        length = math.hypot(a, b)
        c, s = a / length, b / length
        upper[j] = length
        for i in range(j + 1, k - 1):
            u, v = upper[i], lower[i + 1]
            upper[i] = c * u + s * v
            lower[i] = c * v - s * u


@compiled
def solve(factor: np.ndarray, k: int, right: np.ndarray, out: np.ndarray) -> None:
    """out[:k] = H^-1 right[:k]."""
    for i in range(k):
        out[i] = right[i]
    _solve_transposed(factor, k, out)
    _solve_upper(factor, k, out)
