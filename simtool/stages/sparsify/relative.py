"""``--kappa-relative``: each row is bounded by a share of the l1 norm of its own least squares.

    kappa_i = kappa * ||(w_i^LS)_S||_1,    w_i^LS = argmin ||z_i - W^T w||^2  over the features that row i may use

One kappa for all rows is a poor dial, since norms of rows differ by orders of magnitude between layers; a share of 1 costs no
row anything, and a share of 0 empties every row. Signs and a box hold for w_i^LS as for the row; with a budget both have the
row's support. Every row has a problem of its own then, and its certificate is that problem's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simtool import solvers
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.stages.sparsify import constraints

if TYPE_CHECKING:
    from simtool.stages.sparsify.work import Piece

# Least squares are solved directly; where signs or a box hold they end by pivoting, at this accuracy.
_TOLERANCE = 1e-9


def split(piece: Piece) -> list[Piece]:
    """A piece for each row of ``piece``, whose kappa is the share: each with the kappa it means for that row."""
    share = piece.rows.objective.kappa
    if share is None:
        return [piece]
    norms = least_squares_norms(piece.rows)
    if piece.rows.penalty_free.any():
        _ = piece.rows.free_basis  # computed once, and shared by the rows
    return [
        replace(
            piece, at=piece.at[i : i + 1], rows=piece.rows.subset(np.array([i])).with_kappa(share * norms[i])
        )
        for i in range(piece.rows.count)
    ]


def least_squares_norms(rows: RowSet) -> np.ndarray:
    """||(w_i^LS)_S||_1 of each of ``rows``, (r,)."""
    norms = np.zeros(rows.count)
    for at, features in constraints.pieces(rows.allowed, ~rows.limited, rows.count):
        every = features.size == rows.design.d
        own = RowSet(
            design=rows.design if every else rows.design.restricted(features),
            # A restricted design holds the weights of the samples in its numbers, the whole one applies them.
            targets=rows.targets[at] if every else rows.design.weighted(rows.targets[at]),
            objective=Objective(rows.objective.loss_weight, Penalty()),
            constrained=rows.constrained[features],
            allowed=None if rows.allowed is None else rows.allowed[np.ix_(at, features)],
            lower=None if rows.lower is None else rows.lower[features],
            upper=None if rows.upper is None else rows.upper[features],
        )
        w = solvers.get("native")(own, _TOLERANCE)
        norms[at] = np.abs(w[:, own.constrained]).sum(axis=1)
    return norms
