"""Coefficients on a given support: exact least squares from the Gram matrix."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import linalg

from simtool.errors import InputError

# The factor of a Gram matrix this badly conditioned gives no digits that can be relied on.
_LEAST_RECIPROCAL_CONDITION = 1e-13


def coefficients(gram: np.ndarray, correlation: np.ndarray, support: np.ndarray) -> np.ndarray:
    """w (d,) with the least ||z - W^T w||^2 among those that are zero off ``support`` (indices).

    ``gram`` (d, d) = W W^T, ``correlation`` (d,) = W z. Where features of the support depend on each other, the solution
    of least norm (features scaled to unit norm).
    """
    w = np.zeros(gram.shape[0])
    chosen = np.asarray(support, dtype=np.int64)
    if not chosen.size:
        return w
    scale = np.sqrt(np.diag(gram)[chosen])
    if not (scale > 0.0).all():
        dead = chosen[np.argmin(scale > 0.0)]
        raise InputError(f"feature {dead} is zero on every sample, so no support can hold it.")
    h = gram[np.ix_(chosen, chosen)] / scale[:, None] / scale[None, :]
    right = correlation[chosen] / scale
    with warnings.catch_warnings():
        warnings.simplefilter("error", linalg.LinAlgWarning)
        try:
            found = _by_factor(h, right)
        except linalg.LinAlgError:
            found = linalg.lstsq(h, right)[0]
    w[chosen] = found / scale
    return w


def _by_factor(h: np.ndarray, right: np.ndarray) -> np.ndarray:
    """H^-1 right by Cholesky, refined once. Raises LinAlgError where H is singular to rounding."""
    factor = linalg.cho_factor(h)
    diagonal = np.diag(factor[0])
    if np.min(diagonal) ** 2 < _LEAST_RECIPROCAL_CONDITION * np.max(diagonal) ** 2:
        raise linalg.LinAlgError("singular to rounding")
    found = linalg.cho_solve(factor, right)
    return np.asarray(found + linalg.cho_solve(factor, right - h @ found))
