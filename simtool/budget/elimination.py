"""Backward elimination of every row on the shared Gram matrix: its supports of every size, each inside the next.

    minimise  ||z_i - W^T w||^2  over w with k non-zeros,     G = W W^T (d, d),  b_i = W z_i,  s_i = ||z_i||^2

From the least-squares solution on a start, the feature whose removal raises the loss least goes, until none is left.
The removal is exact (optimal brain surgeon, :mod:`simtool.budget.pivoting`); the choice is greedy, and decided on
G + 1e-10 diag(G), so that features that depend on each other share their coefficient until one of them goes. The losses
reported are those of G itself. Every sum runs in compiled loops of this package, one row at a time: a row's result
depends neither on the other rows of a call, nor on a BLAS, nor on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simtool.budget import dense, forward, pivoting
from simtool.errors import InputError, OptionError

# Up to so many live features all of them are the start: milliseconds a row.
ALL_FEATURES = 256
# Above, a start holds so many times what a row keeps on average, since rows differ, and no fewer than the second number. On
# the pixels of FashionMNIST no row of any budget from 80 to 98 % wants as many, and accuracy is that of elimination from all.
_START_PER_KEPT, _LEAST_START = 2.5, 128
# Of the live features: forward selection of a larger share costs more than elimination from all of them.
_LARGEST_START = 0.6


@dataclass(frozen=True)
class Paths:
    """The supports of r rows at every size from 0 to k0, and their exact losses.

    Attributes
    ----------
    order : (r, k0) int32, features in the order of their removal, the one kept longest last: the support of row i at
        size k is the set of order[i, k0 - k :]
    losses : (r, k0 + 1) float64, losses[i, k] = min over w on the last k of order[i] of ||z_i - W^T w||^2; it never
        rises with k, and losses[i, 0] = ||z_i||^2
    free : (r,) int64, how many features of a row went before one had to go that is exempt or kept by the pattern; k0 if none had to
    """

    order: np.ndarray
    losses: np.ndarray
    free: np.ndarray

    @property
    def largest(self) -> int:
        """k0, the size of the start."""
        return int(self.order.shape[1])

    def support(self, row: int, size: int) -> np.ndarray:
        """The features (ascending) of ``row`` at ``size``, 0 <= size <= k0."""
        if not 0 <= size <= self.largest:
            raise OptionError(f"a support of {size} features was asked for; sizes are 0 to {self.largest}.")
        return np.sort(self.order[row, self.largest - size :])


def paths(
    gram: np.ndarray,
    correlations: np.ndarray,
    squares: np.ndarray,
    start: int | None = None,
    exempt: np.ndarray | None = None,
    between: Callable[[int], None] | None = None,
) -> Paths:
    """Eliminate the features of every row one by one, each time the one whose removal costs least.

    Parameters
    ----------
    gram : (d, d) symmetric, W W^T
    correlations : (r, d), W z of every row
    squares : (r,), ||z||^2 of every row
    start : None to start from all live features (those with gram[j, j] > 0), else from that many of them for each row,
        the best by forward selection (:mod:`simtool.budget.forward`); :func:`start_size` suggests a number
    exempt : (d,) bool, features that go only when no others are left; where they live, they are in every start. None:
        all features are alike, a bias too
    between : called with the number of rows done, after each of them

    Equal costs go in the order of the features. k0 is ``start``, or the number of live features where that is smaller.
    Raises InputError for arrays that do not fit together or are not finite, OptionError for ``start`` < 1.
    """
    problem = Problem(gram, correlations, squares)
    if start is not None and start < 1:
        raise OptionError(f"elimination must start from at least 1 feature, got {start}.")
    group = np.zeros(problem.d, dtype=np.int64)
    least = np.zeros(2, dtype=np.int64)
    if exempt is not None:
        group[_mask(exempt, problem.d)] = 1
        least[1] = problem.d
    return problem.eliminate(group, least, start, between)


def patterned(
    gram: np.ndarray,
    correlations: np.ndarray,
    squares: np.ndarray,
    keep: int,
    of: int,
    exempt: np.ndarray | None = None,
    between: Callable[[int], None] | None = None,
) -> Paths:
    """The same, for a pattern such as 2:4: of every ``of`` consecutive features at most ``keep`` stay.

    The order begins with the removals that the pattern asks for, always the cheapest of the groups that still have more
    than ``keep``: row i fits the pattern at size k0 - free[i], and at every smaller one. ``exempt`` features (a bias) belong to no group;
    groups count features in their places in ``gram``, the exempt ones too, and the last one may be shorter.
    """
    problem = Problem(gram, correlations, squares)
    if not 1 <= keep <= of:
        raise OptionError(f"a pattern keeps 1 to M of M consecutive features, got {keep}:{of}.")
    groups = -(-problem.d // of)
    group = np.arange(problem.d, dtype=np.int64) // of
    least = np.full(groups + 1, keep, dtype=np.int64)
    least[groups] = problem.d
    if exempt is not None:
        group[_mask(exempt, problem.d)] = groups
    return problem.eliminate(group, least, None, between)


def start_size(live: int, kept: float) -> int | None:
    """A good ``start`` for ``live`` features of which a row keeps ``kept`` on average; None for all of them."""
    wanted = max(float(_LEAST_START), _START_PER_KEPT * kept)
    return None if live <= ALL_FEATURES or wanted > _LARGEST_START * live else math.ceil(wanted)


def _mask(exempt: np.ndarray, d: int) -> np.ndarray:
    mask = np.asarray(exempt)
    if mask.shape != (d,) or mask.dtype != np.bool_:
        raise InputError(
            f"the exempt features must be a bool for each of {d}, got {mask.dtype} of shape {mask.shape}."
        )
    return mask


class Problem:
    """Checked arrays, live features alone, in units (powers of two, so nothing is rounded) in which all is near 1."""

    def __init__(self, gram: np.ndarray, correlations: np.ndarray, squares: np.ndarray) -> None:
        gram, correlations, squares = (np.asarray(a, dtype=np.float64) for a in (gram, correlations, squares))
        self.d, self.r = gram.shape[0], squares.shape[0]
        if gram.shape != (self.d, self.d) or correlations.shape != (self.r, self.d) or squares.ndim != 1:
            raise InputError(
                "elimination needs a Gram matrix (d, d), correlations (r, d) and squares (r,), got the shapes "
                f"{gram.shape}, {correlations.shape} and {squares.shape}."
            )
        diagonal = np.diag(gram)
        for name, values in (("Gram matrix", gram), ("correlations", correlations), ("squares", squares)):
            if not np.isfinite(values).all():
                raise InputError(f"the {name} given to the elimination must be finite; rescale the states.")
        if (diagonal < 0).any() or (squares < 0).any():
            raise InputError("squared norms must not be negative; the Gram matrix must be W W^T.")
        self.live = np.flatnonzero(diagonal > 0.0)
        scale = _power(diagonal[self.live])
        self.gram = np.ascontiguousarray(gram[np.ix_(self.live, self.live)])
        self.gram *= scale[:, None]
        self.gram *= scale[None, :]
        self.unit = _power(squares)
        scaled = correlations[:, self.live] * scale * self.unit[:, None]
        # One memory layout, so that the kernels are compiled for one type.
        self.correlations = np.ascontiguousarray(scaled)
        self.squares = squares * self.unit * self.unit

    def eliminate(
        self, group: np.ndarray, least: np.ndarray, start: int | None, between: Callable[[int], None] | None
    ) -> Paths:
        """The paths of all rows; ``group`` (d,) of every feature and what ``least`` (groups,) stays of each."""
        group = np.ascontiguousarray(group[self.live])
        everything = np.arange(self.live.size)
        exempt = least[group] == self.d
        k0 = everything.size if start is None else min(start, everything.size)
        order = np.empty((self.r, k0), dtype=np.int32)
        losses = np.empty((self.r, k0 + 1))
        free = np.empty(self.r, dtype=np.int64)
        shared = None
        if k0 == everything.size and self.r > 0:
            shared = _start(self.gram, everything)
        for i in range(self.r):
            b = self.correlations[i]
            features = everything if shared else forward.choose(self.gram, b, k0, exempt)
            factor, inverse = shared or _start(self.gram, features)
            w = b[features]
            dense.solve(factor, k0, w)
            removed, free[i] = pivoting.eliminate(self.gram, b, features, inverse.copy(), w, group, least)
            pivoting.exact_losses(self.gram, b, self.squares[i], removed, losses[i])
            order[i] = self.live[removed]
            losses[i] = losses[i] / self.unit[i] / self.unit[i]
            if between is not None:
                between(i + 1)
        return Paths(order, losses, free)


def _start(gram: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factor of H and H^-1 at ``features``, (k0, k0) each, upper triangles."""
    factor = pivoting.ridged(gram, features, features.size)
    inverse = factor.copy()
    dense.invert(inverse, features.size)
    return factor, inverse


def _power(squares: np.ndarray) -> np.ndarray:
    """Powers of two that bring norms near 1, where there is a norm; ``squares`` (k,) >= 0."""
    safe = np.where(squares > 0.0, squares, 1.0)
    return np.asarray(np.ldexp(1.0, -np.rint(np.log2(safe) / 2.0).astype(np.int64)))
