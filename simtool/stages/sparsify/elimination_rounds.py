"""``--eliminate heuristic``: down to a wanted number of features, in rounds (OOD report, section 5.2).

The report removes what its dual multipliers show to be inactive and repeats. A feature that is inactive in every row
changes no row when it goes, so by that rule alone the second round finds nothing; going further takes a ranking.
Here a round solves the rows on the features that are left, ranks these by what the rows would lose without them, and
removes the least: all that no row uses, but at least a tenth of what is left, and never more than wanted.

    a used feature     sum over rows i of  s_i w_ij^2 / (G_SS^-1)_jj,    S the support of row i

is the increase of row i's squared error when j leaves and the rest of the support is refitted (the saliency of the
optimal brain surgeon), times s_i, the mean square sensitivity of the network's outputs to state i (1 for a row of Y): the output
error that it predicts, to first order. Among features that no row uses, those go first whose dual multipliers are the
most positive in the report's sense, that is whose |W_j'nu_i| / (slope + mu_i) is the least in the worst row.

A state whose column goes loses its row of Z with it: that row ranks nothing any more. Rows that lose nothing they use
keep their solution, which is still optimal, so a round solves only the others, all on one shared Gram matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg

from simtool.certificate import _one_pass
from simtool.problem import RowSet
from simtool.screening import multiplier_bound
from simtool.solvers import native
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.structure import Shard
from simtool.stages.sparsify.work import row_set

LEAST_FRACTION = 0.1
# The rounds choose features and prove nothing; the rows are solved and certified afterwards.
_TOLERANCE = 1e-6
_RIDGE = 1e-10


@dataclass(frozen=True)
class _KnownRows(RowSet):
    """Rows whose W z has been computed: (d, r)."""

    known: np.ndarray | None = None

    def correlation(self) -> np.ndarray:
        """See :class:`RowSet`."""
        return super().correlation() if self.known is None else self.known


@dataclass(frozen=True)
class Ranking:
    """What the rows of one or more pieces say of the features (n + p,), and of themselves.

    ``loss`` : predicted output error if the feature goes; ``ratio`` : the largest |W_j'nu| over its threshold;
    ``squares`` : sum of squared residuals of rows of Z and of Y; ``rows`` : how many of each
    """

    loss: np.ndarray
    ratio: np.ndarray
    squares: tuple[float, float]
    rows: tuple[int, int]

    def __add__(self, other: Ranking) -> Ranking:
        return Ranking(
            self.loss + other.loss,
            np.maximum(self.ratio, other.ratio),
            (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1]),
            (self.rows[0] + other.rows[0], self.rows[1] + other.rows[1]),
        )


@dataclass
class _Piece:
    """The rows of one shard through the rounds: W z, and each row's last solution (indices into the group's features)."""

    folder: RunFolder
    plan: Plan
    shard: Shard
    support: list[np.ndarray] = field(init=False)
    values: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.group = self.plan.groups[self.shard.group]
        self.rows = np.arange(self.shard.start, self.shard.stop)
        full = row_set(self.folder, self.shard)
        self.norms = full.target_norms
        self.products = full.correlation() if full.design.has_gram else None
        self.solved = np.zeros(self.rows.size, dtype=bool)
        self.support = [np.arange(0)] * self.rows.size
        self.values = [np.zeros(0)] * self.rows.size

    def rank(self, kept: np.ndarray, weight: np.ndarray) -> Ranking:
        """Solve what needs solving on the features ``kept`` (n + p,) bool and rank them; ``weight`` (n + q,) is s."""
        plan, group = self.plan, self.group
        empty = Ranking(np.zeros(kept.size), np.zeros(kept.size), (0.0, 0.0), (0, 0))
        # A state that nobody may read any more has no say, and needs no row.
        voting = np.array([row >= plan.n or bool(kept[row]) for row in self.rows])
        mask = kept[group.features]
        if not voting.any():
            return empty
        at = np.flatnonzero(mask)
        everything = row_set(self.folder, self.shard, kept)
        stale = voting & ~np.array(
            [done and bool(mask[s].all()) for done, s in zip(self.solved, self.support, strict=True)]
        )
        if stale.any():
            w = native.solve(self._known(everything, stale, at), _TOLERANCE)
            for row, coefficients in zip(np.flatnonzero(stale), w, strict=True):
                inside = np.flatnonzero(coefficients)
                self.support[row], self.values[row] = at[inside], coefficients[inside]
            self.solved |= stale
        w = np.zeros((int(voting.sum()), group.features.size))
        for k, row in enumerate(np.flatnonzero(voting)):
            w[k, self.support[row]] = self.values[row]
        return self._judge(self._known(everything, voting, at), w[:, at], at, voting, weight)

    def _known(self, rows: RowSet, chosen: np.ndarray, at: np.ndarray) -> _KnownRows:
        """The rows ``chosen`` (bool) of ``rows``, whose features are ``at``, with what has been computed of them."""
        part = _KnownRows(
            design=rows.design,
            targets=rows.targets[chosen],
            objective=rows.objective,
            constrained=rows.constrained,
            allowed=None if rows.allowed is None else rows.allowed[chosen],
            lower=rows.lower,
            upper=rows.upper,
            known=None if self.products is None else self.products[np.ix_(at, np.flatnonzero(chosen))],
        )
        part.__dict__["target_norms"] = self.norms[chosen]
        return part

    def _judge(
        self, rows: _KnownRows, w: np.ndarray, at: np.ndarray, voting: np.ndarray, weight: np.ndarray
    ) -> Ranking:
        """The ranking of features ``at`` by solved rows ``w`` (r, d')."""
        plan = self.plan
        if rows.known is not None:
            gradient = rows.known.T - w @ rows.design.gram  # W r
            squares = np.maximum(rows.target_norms - np.einsum("ij,ij->i", w, rows.known.T + gradient), 0.0)
            gradient *= 2.0 * rows.objective.loss_weight
        else:
            squares, _, _, gradient = _one_pass(rows, w)
        if rows.allowed is not None:
            gradient[~rows.allowed] = 0.0
        size = np.abs(gradient)
        threshold = np.full(size.shape, rows.objective.penalty.slope)
        objective, bounded = rows.objective, rows.bounded
        if objective.kappa is not None and bounded.any():
            mu = multiplier_bound(
                size, gradient, objective.penalty, objective.kappa, bounded, rows.lower, rows.upper
            )
            threshold[:, bounded] += mu[:, None]
        ratio = np.divide(size, threshold, out=np.zeros_like(size), where=threshold > 0).max(axis=0)
        numbers = self.rows[voting]
        loss = np.zeros(at.size)
        for row, coefficients in zip(numbers, w, strict=True):
            inside = np.flatnonzero(coefficients)
            loss[inside] += weight[row] * _saliency(rows, coefficients, inside)
        features = self.group.features[at]
        out = Ranking(np.zeros(plan.n + plan.p), np.zeros(plan.n + plan.p), (0.0, 0.0), (0, 0))
        out.loss[features], out.ratio[features] = loss, ratio
        total, count = float(squares.sum()), numbers.size
        if self.group.is_output:
            return Ranking(out.loss, out.ratio, (0.0, total), (0, count))
        return Ranking(out.loss, out.ratio, (total, 0.0), (count, 0))


def _saliency(rows: RowSet, w: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """w_j^2 / (G_SS^-1)_jj on the support ``inside``: what the squared error gains if j goes and the rest is refitted."""
    if not inside.size:
        return np.zeros(0)
    if rows.design.has_gram:
        gram = rows.design.gram[np.ix_(inside, inside)]
    else:
        features = rows.design.dense(inside)
        gram = features @ features.T
    scale = 1.0 / np.sqrt(np.diag(gram))
    # Unit diagonal and a small ridge: dependent features cost nothing to leave out, and nothing divides by zero.
    equal = gram * scale[:, None] * scale
    equal[np.diag_indices(inside.size)] = 1.0 + _RIDGE
    factor = scipy.linalg.cholesky(equal, lower=True, overwrite_a=True, check_finite=False)
    inverse = scipy.linalg.solve_triangular(
        factor, np.eye(inside.size), lower=True, overwrite_b=True, check_finite=False
    )
    diagonal = np.einsum("ij,ij->j", inverse, inverse) * scale**2
    return np.asarray(w[inside] ** 2 / diagonal)


def eliminate(folder: RunFolder, index: int) -> dict[str, Any]:
    """Run all rounds of the run in ``folder`` and store what is kept, and the curve, before any row is solved."""
    del index  # there is one such task
    plan = plan_of(folder)
    assert plan.options.features is not None
    counted = np.ones(plan.n + plan.p, dtype=bool)
    counted[plan.n + plan.p - plan.has_bias :] = False
    weight = np.concatenate([folder.map_array("sensitivity"), np.ones(plan.q)])
    pieces = [_Piece(folder, plan, shard) for shard in plan.shards]
    kept = np.ones(plan.n + plan.p, dtype=bool)
    curve: list[tuple[float, ...]] = []
    while True:
        ranking = pieces[0].rank(kept, weight)
        for piece in pieces[1:]:
            ranking = ranking + piece.rank(kept, weight)
        left = np.flatnonzero(kept & counted)
        unused = int(np.count_nonzero(ranking.loss[left] == 0.0))
        removed = min(left.size - plan.options.features, max(unused, math.ceil(LEAST_FRACTION * left.size)))
        mse = sum(ranking.squares) / (plan.m * sum(ranking.rows))
        outputs = ranking.squares[1] / (plan.m * max(1, ranking.rows[1]))
        curve.append((left.size, unused, removed, mse, outputs))
        if removed == 0:
            break
        order = np.lexsort((left, ranking.ratio[left], ranking.loss[left]))
        kept[left[order[:removed]]] = False
    features, unused_counts, removals, errors, output_errors = zip(*curve, strict=True)
    folder.store(
        folder.kept,
        {
            "kept": kept,
            "features": np.array(features, dtype=np.int64),
            "unused": np.array(unused_counts, dtype=np.int64),
            "removed": np.array(removals, dtype=np.int64),
            "mse": np.array(errors, dtype=np.float64),
            "mse_outputs": np.array(output_errors, dtype=np.float64),
        },
    )
    return {}
