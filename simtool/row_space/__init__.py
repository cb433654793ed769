"""The row space of a set of features F: projections onto its complement, and least-squares coefficients.

Features that nothing penalises are projected out of a problem; features under a ridge alone are shrunk out of it.
Three ways with one interface: by the Gram matrix, which is a matter of two products, each repeated until rounding is all
that is left; the same with a few features that depend on the others set apart; and by a singular value
decomposition, which copes with everything and is much slower.

Neither the features nor the vectors need fit in memory: both are read in tiles of samples.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from simtool.row_space.base import RowSpace
from simtool.row_space.dependent import ApartSpace, TriangularSpace, rounding_left
from simtool.row_space.gram import GramSpace
from simtool.row_space.singular import SingularSpace
from simtool.row_space.vectors import FeatureRows, Features, Held, LeftOver, Vectors, keep

__all__ = [
    "ApartSpace",
    "FeatureRows",
    "Features",
    "GramSpace",
    "RowSpace",
    "SingularSpace",
    "TriangularSpace",
    "Vectors",
    "keep",
    "row_space",
]

# Features of unit norm whose square beside the others falls below this are set apart.
_APART = 1e-10
# Each repetition leaves eps / rcond of the error: below this the Gram matrix does not converge.
_LEAST_RCOND = 1e-13
_CHUNK = 512


def row_space(w: Features | np.ndarray, ridge: float = 0.0, gram: np.ndarray | None = None) -> RowSpace:
    """The row space of ``w`` (|F|, m), float64; ``gram`` is W_F W_F^T where it is known."""
    matrix: Features = Held(w) if isinstance(w, np.ndarray) else w
    features, samples = matrix.shape
    if features and (samples >= features or ridge > 0.0):
        gram = _gram(matrix) if gram is None else gram
        if not np.diag(gram).any():
            return SingularSpace.of_nothing(features, samples)
        space = _by_gram(matrix, ridge, gram)
        if space is not None:
            return space
    if isinstance(matrix, Held) or samples < features:
        return SingularSpace(matrix.dense(), ridge)
    return TriangularSpace(matrix, ridge)


def _gram(w: Features) -> np.ndarray:
    total = np.zeros((w.shape[0], w.shape[0]))
    for _, tile in w.tiles(slice(0, w.shape[1])):
        total += tile @ tile.T
    return total


def _by_gram(w: Features, ridge: float, gram: np.ndarray) -> RowSpace | None:
    """A space on the Gram matrix; None where too many features depend on each other."""
    alive = np.flatnonzero(np.diag(gram) > 0)
    scale = 1.0 / np.sqrt(np.diag(gram)[alive] + ridge)
    if not alive.size or not np.isfinite(scale).all():
        return None
    # One copy, and only one: it may be as large as a worker is allowed to be.
    equilibrated = gram[np.ix_(alive, alive)]
    equilibrated *= scale[:, None]
    equilibrated *= scale
    equilibrated[np.diag_indices(scale.size)] = 1.0
    norm = max(
        float(np.abs(equilibrated[start : start + _CHUNK]).sum(axis=1).max())
        for start in range(0, scale.size, _CHUNK)
    )
    # Symmetric, so its transpose is it in Fortran's order, and is factored in place.
    factor, order, rank, _ = scipy.linalg.lapack.dpstrf(equilibrated.T, tol=_APART, lower=1, overwrite_a=1)
    order = order - 1
    kept, apart = order[:rank], order[rank:]
    if apart.size:
        factor = np.asfortranarray(factor[:rank, :rank])
    rcond, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    if not rcond >= _LEAST_RCOND:
        return None
    space = GramSpace(w, ridge, alive[kept], scale[kept], factor)
    if not apart.size:
        return space
    if ridge > 0.0 or apart.size > max(16, rank // 8):
        return None
    norms = np.sqrt(np.diag(gram))
    if isinstance(w, Held):
        return ApartSpace(space, w, alive[apart], norms)
    rows = FeatureRows(w.chosen(alive[apart]))
    left = LeftOver(space.left_over(rows), rows.w).products()[1]
    return space if np.all(left <= rounding_left(space, rows, norms, norms[alive[apart]])) else None
