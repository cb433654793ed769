"""Cholesky factors and inverses in compiled plain loops: the bytes depend on no BLAS and on no number of threads.

Only the upper triangles of square arrays are read and written, along their rows. All three of the cubic costs (factor,
inverse, and the downdates of :mod:`simtool.budget.pivoting`) are one operation, :func:`subtract`: a row less a
combination of other rows, eight of these at a time, which a processor does at the speed of its caches.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.solvers.compiling import compiled

# Rows that are combined at a time: they stay in the second-level cache up to some thousand columns.
BLOCK = 32


@compiled
def subtract(out, weights, rows, count, low, high):
    """out[low:high] -= sum over s < count of weights[s] * rows[s, low:high]."""
    s = 0
    while s + 8 <= count:
        a, b, c, d = rows[s], rows[s + 1], rows[s + 2], rows[s + 3]
        e, f, g, h = rows[s + 4], rows[s + 5], rows[s + 6], rows[s + 7]
        p, q, r, t = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        u, v, w, x = weights[s + 4], weights[s + 5], weights[s + 6], weights[s + 7]
        for j in range(low, high):
            one = (p * a[j] + q * b[j]) + (r * c[j] + t * d[j])
            two = (u * e[j] + v * f[j]) + (w * g[j] + x * h[j])
            out[j] -= one + two
        s += 8
    while s < count:
        a = rows[s]
        p = weights[s]
        for j in range(low, high):
            out[j] -= p * a[j]
        s += 1


@compiled
def factorise(h, k, width, floor):
    """The upper triangle of h[:k, :k] becomes U with U^T U = H; columns up to ``width`` >= k are carried along.

    A column k + i that held x becomes U^-T x. A pivot below ``floor`` times its diagonal entry is rounding: the feature
    depends on those before it, and its whole row of U becomes zero, so that it takes no part.
    """
    weights = np.empty(BLOCK)
    diagonal = np.empty(k)
    for i in range(k):
        diagonal[i] = h[i, i]
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        panel = h[first:last]
        for s in range(first, last):
            row = h[s]
            for t in range(first, s):
                weights[t - first] = h[t, s]
            subtract(row, weights, panel, s - first, s, width)
            pivot = row[s]
            if pivot > floor * diagonal[s]:
                root = math.sqrt(pivot)
                for j in range(s, width):
                    row[j] /= root
            else:
                for j in range(s, width):
                    row[j] = 0.0
        for i in range(last, k):
            for t in range(first, last):
                weights[t - first] = h[t, i]
            subtract(h[i], weights, panel, last - first, i, width)


@compiled
def solve(u, k, x):
    """x[:k] becomes (U^T U)^-1 x[:k]; where U's row is zero, so is the answer."""
    for i in range(k):
        row = u[i]
        if row[i] == 0.0:
            x[i] = 0.0
            continue
        x[i] /= row[i]
        value = x[i]
        for j in range(i + 1, k):
            x[j] -= value * row[j]
    for i in range(k - 1, -1, -1):
        row = u[i]
        if row[i] == 0.0:
            continue
        total = x[i]
        for j in range(i + 1, k):
            total -= row[j] * x[j]
        x[i] = total / row[i]


@compiled
def invert(u, k):
    """The upper triangle of u[:k, :k], a factor without zero rows, becomes that of (U^T U)^-1."""
    y = np.zeros((k, k))
    weights = np.empty(BLOCK)
    # Y = U^-T, lower triangular, a block of rows at a time; then the rows below lose what these explain.
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        panel = y[first:last]
        for s in range(first, last):
            row = y[s]
            for t in range(first, s):
                weights[t - first] = u[t, s]
            row[s] = 1.0
            subtract(row, weights, panel, s - first, 0, s)
            for j in range(s + 1):
                row[j] /= u[s, s]
        for i in range(last, k):
            for t in range(first, last):
                weights[t - first] = u[t, i]
            subtract(y[i], weights, panel, last - first, 0, last)
    for i in range(k):
        for j in range(i, k):
            u[i, j] = 0.0
    # H^-1 = Y^T Y.
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        panel = y[first:last]
        for i in range(last):
            for t in range(first, last):
                weights[t - first] = -y[t, i]
            subtract(u[i], weights, panel, last - first, i, last)
