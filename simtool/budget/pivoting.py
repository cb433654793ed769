"""The compiled core of backward elimination: one row, its features removed one by one.

With H = G + ridge on the support and w = H^-1 b, removing feature j costs exactly w_j^2 / [H^-1]_jj, and leaves

    w <- w - (w_j / [H^-1]_jj) [H^-1]_:j        H^-1 <- H^-1 - [H^-1]_:j [H^-1]_j: / [H^-1]_jj

(the optimal brain surgeon). Removals are exact one at a time; only H^-1 waits: the last few removals are kept as
vectors v with H^-1 = stored - sum v v^T, columns and the diagonal of H^-1 are taken from that, and after a block of
removals the triangle is brought up to date and closed up in one pass through memory.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.budget.dense import BLOCK, factorise, invert, solve, subtract
from simtool.solvers.compiling import compiled

# Of a diagonal entry; pivots below a hundredth of it are rounding.
RIDGE = 1e-10
# A smaller support is not factorised anew: rounding has not had the time to grow.
_LEAST_RENEWED = 16


@compiled
def ridged(gram, features, k):
    """The factor U (k, k) of the Gram matrix at ``features``, every diagonal entry a little larger."""
    u = np.empty((k, k))
    for a in range(k):
        row = gram[features[a]]
        for c in range(a, k):
            u[a, c] = row[features[c]]
        u[a, a] *= 1.0 + RIDGE
    factorise(u, k, k, 1e-2 * RIDGE)
    for a in range(k):
        if u[a, a] == 0.0:  # only rounding beyond the ridge gets here
            u[a, a] = math.sqrt(RIDGE * gram[features[a], features[a]])
    return u


@compiled
def _cheapest(w, diagonal, alive, features, group, count, least, k):
    """The position whose removal costs least among those that may go, the first of equals; -1 if none may."""
    best = -1
    lowest = math.inf
    for i in range(k):
        if alive[i] and count[group[features[i]]] > least[group[features[i]]]:
            cost = w[i] * w[i] / diagonal[i]
            if cost < lowest or best < 0:
                best, lowest = i, cost
    return best


@compiled
def eliminate(gram, b, features, inverse, w, group, least):
    """The order in which the features of one row go.

    Parameters: ``gram`` (d, d), ``b`` (d,) = W z, ``features`` (k0,) the start, ascending; ``inverse`` (k0, k0) = H^-1
    there (upper triangle) and ``w`` (k0,) = H^-1 b, both overwritten; ``group`` (d,) the group of each feature,
    ``least`` (groups,) how many of a group stay while other groups have more than theirs. Returns the order (k0,),
    and how many were removed before a group had to fall below its least.
    """
    k0 = features.shape[0]
    order = np.empty(k0, np.int32)
    left = features.copy()
    alive = np.ones(k0, np.bool_)
    diagonal = np.empty(k0)
    weights = np.empty(BLOCK)
    v = np.empty((BLOCK, k0))
    keep = np.empty(k0, np.int64)
    count = np.zeros(least.shape[0], np.int64)
    bound = least.copy()
    for i in range(k0):
        diagonal[i] = inverse[i, i]
        count[group[left[i]]] += 1
    h = inverse
    k = k0
    removed = 0
    free = -1
    renewed = k0
    while k > 0:
        batch = min(BLOCK, k)
        for t in range(batch):
            j = _cheapest(w, diagonal, alive, left, group, count, bound, k)
            if j < 0:
                free = removed
                for i in range(bound.shape[0]):
                    bound[i] = 0
                j = _cheapest(w, diagonal, alive, left, group, count, bound, k)
            column = v[t]
            for i in range(j):
                column[i] = h[i, j]
            for i in range(j, k):
                column[i] = h[j, i]
            for s in range(t):
                weights[s] = v[s, j]
            subtract(column, weights, v, t, 0, k)
            # 1 / H_jj is the least that [H^-1]_jj can be.
            pivot = max(column[j], 1.0 / (gram[left[j], left[j]] * (1.0 + RIDGE)))
            step = w[j] / pivot
            root = math.sqrt(pivot)
            for i in range(k):
                w[i] -= step * column[i]
                column[i] /= root
                diagonal[i] -= column[i] * column[i]
            alive[j] = False
            w[j] = 0.0
            count[group[left[j]]] -= 1
            order[removed] = left[j]
            removed += 1
        kept = 0
        for i in range(k):
            if alive[i]:
                keep[kept] = i
                kept += 1
        for a in range(kept):
            i = keep[a]
            w[a], left[a], alive[a] = w[i], left[i], True
        k = kept
        if k == 0:
            break
        if 2 * k <= renewed and k >= _LEAST_RENEWED:
            # Anew from the Gram matrix: rounding never grows over more than half of the removals.
            renewed = k
            h = ridged(gram, left, k)
            for a in range(k):
                w[a] = b[left[a]]
            solve(h, k, w)
            invert(h, k)
            for a in range(k):
                diagonal[a] = h[a, a]
            continue
        for s in range(batch):
            row = v[s]
            for a in range(k):
                row[a] = row[keep[a]]
        for a in range(k):
            row, source = h[a], h[keep[a]]
            for c in range(a, k):
                row[c] = source[keep[c]]
            for s in range(batch):
                weights[s] = v[s, a]
            subtract(row, weights, v, batch, a, k)
            floor = 1.0 / (gram[left[a], left[a]] * (1.0 + RIDGE))
            if row[a] < floor:
                row[a] = floor
            diagonal[a] = row[a]
    return order, removed if free < 0 else free


@compiled
def exact_losses(gram, b, square, order, losses):
    """losses[k] (k0 + 1,) = min ||z - W^T w||^2 over w on the last k of ``order``: one Cholesky factor gives them all.

    In the opposite order of removal the supports are leading blocks, and the loss falls by (U^-T b)_k^2 from one to
    the next. A feature that depends on those kept longer than it explains nothing more.
    """
    k = order.shape[0]
    h = np.empty((k, k + 1))
    for a in range(k):
        row = gram[order[k - 1 - a]]
        for c in range(a, k):
            h[a, c] = row[order[k - 1 - c]]
        h[a, k] = b[order[k - 1 - a]]
    factorise(h, k, k + 1, 1e-12)
    rest = square
    for a in range(k):
        rest -= h[a, k] * h[a, k]
    # Summed from the end: never below zero, and monotone to the last bit.
    losses[k] = max(rest, 0.0)
    for a in range(k - 1, -1, -1):
        losses[a] = losses[a + 1] + h[a, k] * h[a, k]
