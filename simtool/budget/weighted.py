"""Backward elimination of rows whose samples weigh differently, so that each has a Gram matrix of its own.

    minimise  sum_t v_it (z_it - w . W_t)^2  over w with k non-zeros

A row's own matrix W diag(v_i) W^T costs d^2 m, so where there are many features each row first takes the best of them by forward
selection on the shared, unweighted one; its own is summed, and eliminated on, for these alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simtool.budget import elimination, forward

# Of row i at the features (k,): W diag(v) W^T (k, k), W diag(v) z (k,), sum v z^2.
Sums = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def paths(
    gram: np.ndarray, correlations: np.ndarray, squares: np.ndarray, start: int | None, sums: Sums
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The order of removal (k0_i,) and the weighted losses (k0_i + 1,) of every row, as in :class:`elimination.Paths`.

    ``gram``, ``correlations``, ``squares`` are the shared, unweighted ones; ``start`` as in :func:`elimination.paths`; ``sums``
    gives a row's own.
    """
    problem = elimination.Problem(gram, correlations, squares)
    nothing = np.zeros(problem.live.size, dtype=bool)
    orders, losses = [], []
    for i in range(problem.r):
        features = problem.live
        if start is not None and start < features.size:
            chosen = forward.choose(problem.gram, problem.correlations[i], start, nothing)
            features = np.sort(problem.live[chosen])
        own_gram, own_correlations, own_square = sums(i, features)
        found = elimination.paths(own_gram, own_correlations[None], np.array([own_square]))
        orders.append(features[found.order[0]])
        losses.append(found.losses[0])
    return orders, losses
