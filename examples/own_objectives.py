"""Objectives and constraint sets of one's own, for `simtool sparsify STATES --objective examples/own_objectives.py:NAME`.

Each is a function (a, b) -> (CVXPY expression, [constraints]) of one row: `a` holds the coefficients of the states, `b`
those of the inputs, the bias last; for an output they are C's and D's parts. Either may have length 0.
"""

from __future__ import annotations

import cvxpy as cp

IMAGE_WIDTH = 8  # of the digits; 28 for FashionMNIST


def group_sparse(a, b):
    """Sparse states, and whole lines of the image kept or dropped: the sum of the norms of groups of inputs."""
    pixels = b.size - 1
    groups = [b[start : start + IMAGE_WIDTH] for start in range(0, pixels - IMAGE_WIDTH + 1, IMAGE_WIDTH)]
    return 0.5 * cp.norm1(a) + 2.0 * sum(cp.norm(group, 2) for group in groups), []


def non_negative(a, b):
    """Least squares with coefficients >= 0, except for the bias: every state and input may only add."""
    return 0, [a >= 0, b[:-1] >= 0]


def smooth(a, b):
    """Coefficients of neighbouring inputs differ little, and no state counts more than one."""
    rough = cp.sum_squares(cp.diff(b)) if b.size > 1 else 0  # a later layer sees the bias only
    return 0.1 * cp.norm1(a) + 0.5 * rough, [cp.abs(a) <= 1]
