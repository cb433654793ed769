"""The compiled active-set kernel: one row, given its Gram matrix, solved to the end of a finite process.

    minimise   L (w' G w - 2 b' w) + sum_j slope |w_j| + lam2 (|w_j| - knee)_+^2
    s.t.       ||w_S||_1 <= kappa,   lower <= w <= upper   (0 among them)

is piecewise quadratic. A *face* fixes which features are active, their signs, which of them lie beyond the knee,
which are held at a bound, and whether the ball ||w_S||_1 = kappa binds. On a face the minimiser is one linear
solve, and the multiplier mu of the ball comes out of the same solve, so there is no bisection. The kernel walks
from face to face, lowering the objective: move towards the face's minimiser, stop at the first breakpoint (a
coefficient reaching zero, the knee or a bound, the ball beginning to bind), change the face, repeat; once at the
minimiser, let in the features whose correlation exceeds the threshold most, and let go of those that pull away
from their bound. A singular face is met by a relative ridge of 1e-11 on H that later steps take off again (a
proximal point iteration), never by an error.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.solvers import cholesky, gradients
from simtool.solvers.compiling import compiled

SOLVED, OUT_OF_PIVOTS = 0, 1
# ``place`` of a feature that is not in the face: out at zero, or held at a bound.
_OUT, _HELD = -1, -2

_RIDGE = 1e-11
# Rows a power of two apart would fall on the same lines of the cache.
_PADDING = 8
_REFINEMENTS = 40
_ROUGH = 10.0
# Correlations are known to this fraction of 2 L ||z|| max_j ||W_j||.
_ROUNDING = 1e-14


@compiled
def _enter(gram, two_l, lam2, factor, column, active, sign, beyond, place, k, j, s, quadratic):
    """Append feature ``j`` to the face; returns the new k."""
    row = gram[j]
    for i in range(k):
        column[i] = two_l * row[active[i]]
    diagonal = two_l * row[j] * (1.0 + _RIDGE)
    if quadratic:
        diagonal += 2.0 * lam2
    cholesky.append(factor, k, column, diagonal)
    active[k], sign[k], beyond[k], place[j] = j, s, quadratic, k
    return k + 1


@compiled
def _leave(factor, active, sign, beyond, place, k, position):
    """Remove the feature at ``position`` from the face; returns the new k."""
    cholesky.delete(factor, k, position)
    place[active[position]] = _OUT
    for i in range(position, k - 1):
        active[i], sign[i], beyond[i] = active[i + 1], sign[i + 1], beyond[i + 1]
        place[active[i]] = i
    return k - 1


@compiled
def _most(keys, items, first, count, wanted):
    """Bring the ``wanted`` largest of keys[:count], with items[first : first + count], to the front, the largest first."""
    for t in range(wanted):
        best = t
        for i in range(t + 1, count):
            if keys[i] > keys[best]:
                best = i
        keys[t], keys[best] = keys[best], keys[t]
        items[first + t], items[first + best] = items[first + best], items[first + t]


# Divisions follow IEEE rules: the caller refuses what is not finite.
@compiled
def solve_row(
    gram,
    b,
    z_square,
    reference,
    loss_weight,
    slope,
    lam2,
    knee,
    inside,
    kappa,
    has_ball,
    lower,
    upper,
    start,
    tolerance,
    samples,
    max_pivots,
):
    """Solve one row.

    Parameters: ``gram`` (d, d), ``b`` (d,) = W z, ``z_square`` = ||z||^2, ``reference`` =
    ||z||^2 before features were eliminated (accuracies are relative to it), ``inside`` (d,) bool = S, ``lower``
    and ``upper`` (d,) around 0 (both 0 where a feature is not allowed), ``start`` (d,) a feasible point to walk
    from, ``samples`` = m. Returns (w (d,), mu, pivots, status); ``w`` has exact zeros off the final face.
    """
    d = b.shape[0]
    two_l = 2.0 * loss_weight
    w = np.empty(d)
    used = d - d
    for j in range(d):
        w[j] = start[j]
        if start[j] != 0.0:
            used += 1
    capacity = min(d, max(64, used))
    factor = np.empty((capacity, capacity + _PADDING))
    integers = np.empty((3, d), np.int64)
    active, held, place = integers[0], integers[1], integers[2]
    floats = np.empty((7, d))
    sign, column, v = floats[0], floats[1], floats[2]
    right, answer = floats[3:5], floats[5:7]
    c, tilt, step, direction = right[0], right[1], answer[0], answer[1]
    beyond = np.empty(d, np.bool_)
    for j in range(d):
        place[j] = _OUT
    largest = 0.0
    for j in range(d):
        if lower[j] < upper[j]:
            largest = max(largest, gram[j, j])
    # Not the root of a product: that leaves the range of floating point first.
    unit = _ROUNDING * two_l * math.sqrt(reference)
    rounding = unit * math.sqrt(largest)
    # The quadratic zone begins at zero when the knee is there, so it is never entered or left.
    always_quadratic = lam2 > 0.0 and knee == 0.0
    bends = lam2 > 0.0 and knee > 0.0

    # Not literals, so that every helper is compiled for one type only.
    zero = d - d
    k = zero
    h = zero
    mu = 0.0
    norm = 0.0
    for j in range(d):
        if start[j] != 0.0:
            if inside[j]:
                norm += abs(w[j])
            if w[j] == lower[j] or w[j] == upper[j]:
                held[h], place[j] = j, _HELD
                h += 1
            else:
                s = 1.0 if w[j] > 0.0 else -1.0
                outer = always_quadratic or (bends and abs(w[j]) > knee)
                k = _enter(gram, two_l, lam2, factor, column, active, sign, beyond, place, k, j, s, outer)
    ball = has_ball and norm >= kappa * (1.0 - 1e-12)
    pivots = zero
    # Until no feature pays, faces are met by one step, and what is left of the pull ``c`` follows from that step;
    # the last face is refined, with ``c`` from G each time.
    final = k > 0
    while pivots < max_pivots:
        # --- to the minimiser of the current face -------------------------------------------------------
        settled = k == 0
        final = final or settled
        refinements = zero
        previous = math.inf
        while not settled and pivots < max_pivots:
            if final:
                gradients.gradient_on_face(gram, b, two_l, w, active, k, held, h, v, c)
                gradients.pull(c, k, active, sign, beyond, inside, w, slope, lam2, knee, mu)
            norm = 0.0
            members = zero
            for i in range(k):
                tilt[i] = 0.0
                if inside[active[i]]:
                    norm += abs(w[active[i]])
                    tilt[i] = sign[i]
                    members += 1
            for i in range(h):
                if inside[held[i]]:
                    norm += abs(w[held[i]])
            if ball and members == 0:
                ball = False
                mu = 0.0
            worst = 0.0
            for i in range(k):
                worst = max(worst, abs(c[i]))
            if (
                final
                and worst <= rounding
                and (not ball or (mu >= 0.0 and abs(norm - kappa) <= 1e-14 * kappa))
            ):
                # Nothing is left to do: a step of rounding could still flip a coefficient that sits on the knee,
                # and the next one flip it back.
                break
            for i in range(2 if ball else 1):
                cholesky.solve(factor, k, right[i], answer[i])
            if ball:
                along = 0.0
                curvature = 0.0
                for i in range(k):
                    along += tilt[i] * step[i]
                    curvature += tilt[i] * direction[i]
                change = (along - (kappa - norm)) / curvature
                # Solving for the change of mu, not for mu, keeps refinement accurate where H alone is singular.
                mu += change
                for i in range(k):
                    step[i] -= change * direction[i]
                    c[i] -= change * tilt[i]
            # Longest step up to the first breakpoint.
            alpha = 1.0
            blocker = zero - 1
            to_zero = False
            to_bound = False
            stuck = zero
            rate = 0.0
            for i in range(k):
                j = active[i]
                outward = sign[i] * step[i]
                size = abs(w[j])
                if inside[j]:
                    rate += outward
                if outward < 0.0:
                    if bends and beyond[i]:
                        limit = (size - knee) / -outward
                        if limit < alpha:
                            alpha, blocker, to_zero, to_bound = limit, i, False, False
                    else:
                        if size == 0.0:
                            stuck += 1
                        limit = size / -outward
                        if limit < alpha:
                            alpha, blocker, to_zero, to_bound = limit, i, True, False
                elif outward > 0.0:
                    if bends and not beyond[i]:
                        limit = (knee - size) / outward
                        if limit < alpha:
                            alpha, blocker, to_zero, to_bound = limit, i, False, False
                    reach = upper[j] if sign[i] > 0.0 else -lower[j]
                    if size >= reach:
                        stuck += 1
                    limit = (reach - size) / outward
                    if limit < alpha:
                        alpha, blocker, to_zero, to_bound = limit, i, False, True
            hits_ball = False
            if has_ball and not ball and rate > 0.0:
                limit = max(0.0, kappa - norm) / rate
                if limit < alpha:
                    alpha, hits_ball = limit, True
            pivots += 1
            if stuck > 0 and alpha == 0.0 and not hits_ball:
                # Newcomers that would move against their sign, or past the bound they were held at: none of them
                # belongs to this face.
                i = k - 1
                while i >= 0:
                    j = active[i]
                    outward = sign[i] * step[i]
                    full = outward > 0.0 and abs(w[j]) >= (upper[j] if sign[i] > 0.0 else -lower[j])
                    if full or (w[j] == 0.0 and outward < 0.0):
                        k = _leave(factor, active, sign, beyond, place, k, i)
                        if full:
                            held[h], place[j] = j, _HELD
                            h += 1
                        for t in range(i, k):
                            step[t], c[t] = step[t + 1], c[t + 1]
                    i -= 1
                settled = k == 0
                continue
            for i in range(k):
                j = active[i]
                w[j] += alpha * step[i]
                # H step = c, and H holds the ridge.
                c[i] = (1.0 - alpha) * c[i] + alpha * _RIDGE * two_l * gram[j, j] * step[i]
            if hits_ball:
                ball = True
                mu = 0.0
                refinements = 0
                previous = math.inf
                continue
            if blocker >= 0:
                j = active[blocker]
                s = sign[blocker]
                quadratic, pull = not beyond[blocker], c[blocker]
                for t in range(blocker, k - 1):
                    c[t] = c[t + 1]
                if to_zero:
                    w[j] = 0.0
                    k = _leave(factor, active, sign, beyond, place, k, blocker)
                elif to_bound:
                    w[j] = upper[j] if s > 0.0 else lower[j]
                    k = _leave(factor, active, sign, beyond, place, k, blocker)
                    held[h], place[j] = j, _HELD
                    h += 1
                else:
                    w[j] = knee * s
                    k = _leave(factor, active, sign, beyond, place, k, blocker)
                    c[k] = pull
                    k = _enter(
                        gram, two_l, lam2, factor, column, active, sign, beyond, place, k, j, s, quadratic
                    )
                refinements = 0
                previous = math.inf
                settled = k == 0
                continue
            # A full step: at the minimiser but for the ridge and rounding, which further steps take off. They are
            # left for later as long as other features pay, which one step tells.
            refinements += 1
            if not final:
                settled = not ball or mu >= 0.0
                final = not settled
            elif refinements > 1 and (
                worst <= rounding or worst > 0.5 * previous or refinements > _REFINEMENTS
            ):
                settled = True
                if ball and mu < -rounding:
                    # The ball pulls the wrong way: let go of it, and find the minimiser of the larger face.
                    ball = False
                    mu = 0.0
                    settled = False
                    refinements = 0
                    worst = math.inf
            previous = worst

        # --- who else pays? --------------------------------------------------------------------------------
        if k == 0:
            ball = False
        mu = max(mu, 0.0) if ball else 0.0
        gradients.gradient(gram, b, two_l, w, active, k, held, h, v)
        fitted = 0.0
        paid = 0.0
        for i in range(k + h):
            j = active[i] if i < k else held[i - k]
            fitted += w[j] * (b[j] + v[j] / two_l)
            size = abs(w[j])
            paid += slope * size + lam2 * max(size - knee, 0.0) ** 2
        primal = max(loss_weight * (z_square - fitted) + paid, 1e-2 * loss_weight * reference)
        # What a violation costs the certificate: the slope or the ball absorbs it; where there is neither, nothing does.
        allowance = math.inf
        if slope > 0.0:
            allowance = slope
        if has_ball:
            allowance = min(allowance, primal / kappa)
        slack = 0.0
        if not final:
            # Who pays, must pay more than the face itself is off by.
            for i in range(k):
                c[i] = v[active[i]]
            gradients.pull(c, k, active, sign, beyond, inside, w, slope, lam2, knee, mu)
            for i in range(k):
                slack = max(slack, _ROUGH * abs(c[i]))
        found = zero
        for j in range(d):
            if place[j] >= 0:
                continue
            size = abs(w[j])
            excess = abs(v[j])
            if place[j] == _HELD:
                # Held at a bound, and better off inside it.
                excess = -v[j] if w[j] > 0.0 else v[j]
                excess += slope + 2.0 * lam2 * max(size - knee, 0.0) + (mu if inside[j] else 0.0)
            elif (v[j] > 0.0 and upper[j] > 0.0) or (v[j] < 0.0 and lower[j] < 0.0):
                excess -= slope + (mu if inside[j] else 0.0)
            else:
                continue
            if slope > 0.0 or (has_ball and inside[j]):
                least = max(rounding, 0.02 * tolerance * allowance)
            else:
                least = unit * math.sqrt(gram[j, j])
            if excess > max(slack, least):
                column[found] = excess
                active[k + found] = j
                found += 1
        if found == 0:
            if final:
                return w, mu, pivots, SOLVED
            final = True
            continue
        final = False
        # More features than samples plus the ball are dependent: beyond that, one at a time.
        batch = min(found, max(4, k // 4), max(1, samples + 1 - k))
        _most(column, active, k, found, batch)
        if k + batch > capacity:
            capacity = min(d, max(2 * capacity, k + batch))
            grown = np.empty((capacity, capacity + _PADDING))
            for i in range(k):
                for t in range(i, k):
                    grown[i, t] = factor[i, t]
            factor = grown
        for _ in range(batch):
            j = active[k]
            if place[j] == _HELD:
                s = 1.0 if w[j] > 0.0 else -1.0
                outer = always_quadratic or (bends and abs(w[j]) > knee)
                for i in range(h):
                    if held[i] == j:
                        h -= 1
                        held[i] = held[h]
                        break
            else:
                s = 1.0 if v[j] > 0.0 else -1.0
                outer = always_quadratic
            k = _enter(gram, two_l, lam2, factor, column, active, sign, beyond, place, k, j, s, outer)
        for i in range(k):
            c[i] = v[active[i]]
        gradients.pull(c, k, active, sign, beyond, inside, w, slope, lam2, knee, mu)
    return w, mu, pivots, OUT_OF_PIVOTS
