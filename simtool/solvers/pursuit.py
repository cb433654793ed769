"""Which of many features to take into a working set together.

The features that pay most are often the same one over and over (neighbouring pixels, channels of one filter). So one
is taken at a time, and what the others pay is corrected for it by their inner products, as in matching pursuit.
"""

from __future__ import annotations

import numpy as np

from simtool.solvers.compiling import compiled
from simtool.solvers.elimination import Elimination

# Without a slope the multiplier of kappa is the threshold, and before the first solve nothing knows it.
_FIRST_THRESHOLD = 0.5


@compiled
def pursue(gram, gradient, threshold, wanted):
    """Positions of at most ``wanted`` features, in the order they are taken.

    ``gram`` (k, k) is (nearly) 2 L times their inner products, ``gradient`` (k,) twice the loss weight times their correlations with the
    residual (overwritten), ``threshold`` (k,) what it must exceed (infinite: not to be taken). The one whose
    coefficient alone lowers the objective most comes first; nothing is taken that no longer pays.
    """
    size = gradient.shape[0]
    chosen = np.empty(min(wanted, size), np.int64)
    taken = np.zeros(size, np.bool_)
    count = 0
    while count < chosen.shape[0]:
        best = -1
        most = 0.0
        for j in range(size):
            excess = abs(gradient[j]) - threshold[j]
            if excess > 0.0 and not taken[j] and gram[j, j] > 0.0:
                gain = excess * (excess / gram[j, j])  # excess squared may underflow
                if gain > most:
                    best, most = j, gain
        if best < 0:
            break
        step = (abs(gradient[best]) - threshold[best]) / gram[best, best]
        if gradient[best] < 0.0:
            step = -step
        row = gram[best]
        for j in range(size):
            gradient[j] -= step * row[j]
        taken[best] = True
        chosen[count] = best
        count += 1
    return chosen[:count]


def excess(elimination: Elimination, rough: np.ndarray, multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """By how much the sizes of the products ``rough`` (d,) exceed what they must to pay, (d,), and what that is, (d,)."""
    two_l = 2.0 * elimination.rows.objective.loss_weight
    threshold = np.asarray(elimination.rows.objective.penalty.slope / two_l)
    if multiplier > 0.0:
        held, inside = multiplier / two_l, elimination.inside
        threshold = threshold + (held if inside.all() else held * inside)
    return np.abs(rough) - threshold, np.broadcast_to(threshold, rough.shape)


def largest(features: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` of ``features`` with the largest ``keys`` (d,), in no order."""
    if features.size <= count:
        return features
    return np.asarray(features[np.argpartition(-keys[features], count - 1)[:count]])


def choose(
    elimination: Elimination,
    index: int,
    pool: np.ndarray,
    left: np.ndarray,
    product: np.ndarray,
    gram: np.ndarray,
    multiplier: float,
    first: bool,
    worth: float,
    slack: np.ndarray | float,
    wanted: int,
) -> np.ndarray:
    """Positions in ``pool`` (k,) of the features that row ``index`` takes next, of those ``left`` (k,) bool.

    ``product`` (k,) = W residual; ``first`` before anything is solved. They exceed their threshold by the fraction
    ``worth`` and by ``slack``.
    """
    objective = elimination.rows.objective
    gradient = 2.0 * objective.loss_weight * product
    usable = left & elimination.may_enter(index, product, np.zeros(pool.size), pool)
    threshold = objective.penalty.slope + multiplier * elimination.inside[pool]
    if first and not threshold.any():
        threshold = np.full(pool.size, _FIRST_THRESHOLD * np.abs(gradient[usable]).max(initial=0.0))
    limit = np.where(usable, threshold * (1.0 + worth) + slack, np.inf)
    return np.asarray(pursue(gram, gradient, limit, wanted))
