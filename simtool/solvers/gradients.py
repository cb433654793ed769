"""Gradients of a row's loss from its Gram matrix, compiled; on all features, or on those of a face.

Every entry is summed in an order that does not depend on the processor.
"""

from __future__ import annotations

from simtool.solvers.compiling import compiled


@compiled
def _subtract(gram, w, at, count, out):
    """out -= sum_j G_j w_j over the features at[:count], four rows of G at a time: every element is on its own."""
    d = out.shape[0]
    t = 0
    while t + 4 <= count:
        p, q, r, s = gram[at[t]], gram[at[t + 1]], gram[at[t + 2]], gram[at[t + 3]]
        wp, wq, wr, ws = w[at[t]], w[at[t + 1]], w[at[t + 2]], w[at[t + 3]]
        for i in range(d):
            out[i] -= (p[i] * wp + q[i] * wq) + (r[i] * wr + s[i] * ws)
        t += 4
    while t < count:
        p, wp = gram[at[t]], w[at[t]]
        for i in range(d):
            out[i] -= p[i] * wp
        t += 1


@compiled
def gradient(gram, b, two_l, w, active, k, held, h, out):
    """out = 2 L (b - G w), (d,); ``w`` is non-zero on active[:k] and held[:h] only."""
    for i in range(b.shape[0]):
        out[i] = b[i]
    _subtract(gram, w, active, k, out)
    _subtract(gram, w, held, h, out)
    for i in range(b.shape[0]):
        out[i] *= two_l


@compiled
def gradient_on_face(gram, b, two_l, w, active, k, held, h, scratch, out):
    """out[i] = 2 L (b - G w)_{active[i]} for i < k; ``scratch`` (d,) is overwritten."""
    if 2 * k > b.shape[0]:
        # Whole rows of G are read faster than so many of their entries here and there.
        gradient(gram, b, two_l, w, active, k, held, h, scratch)
        for i in range(k):
            out[i] = scratch[active[i]]
        return
    for i in range(k):
        row = gram[active[i]]
        first, second = 0.0, 0.0
        j = 0
        while j + 2 <= k:
            first += row[active[j]] * w[active[j]]
            second += row[active[j + 1]] * w[active[j + 1]]
            j += 2
        if j < k:
            first += row[active[j]] * w[active[j]]
        for j in range(h):
            second += row[held[j]] * w[held[j]]
        out[i] = two_l * (b[active[i]] - (first + second))


@compiled
def pull(c, k, active, sign, beyond, inside, w, slope, lam2, knee, mu):
    """From gradients to what the face's minimiser has at zero: c[i] less what penalty and kappa hold against it."""
    for i in range(k):
        j = active[i]
        c[i] -= slope * sign[i]
        if beyond[i]:
            c[i] -= 2.0 * lam2 * (w[j] - knee * sign[i])
        if inside[j]:
            c[i] -= mu * sign[i]
