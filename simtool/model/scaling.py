"""The positive diagonal rescaling under which ||A||_inf < 1 (IDL section 2.5, with the formula that holds).

For positively homogeneous activations, x' = diag(s) x turns the model into A' = diag(s) A diag(s)^-1,
B' = diag(s) B, C' = C diag(s)^-1, D' = D with the same outputs. With t = (I - c diag(L)|A|)^-1 1 and s = 1/t the
i-th row sum of |A'| is (t_i - 1) / (c t_i L_i) < 1/c. (L is 1 except for leaky slopes above 1.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from simtool.blocks import Block, lipschitz
from simtool.model.levels import Component, solve_nonnegative
from simtool.model.wellposed import Verdict


def norm_inf(matrix: sparse.csr_array) -> float:
    """The largest absolute row sum; 0 for an empty matrix."""
    return float(np.asarray(abs(matrix).sum(axis=1)).max()) if min(matrix.shape) else 0.0


def scaled(matrix: sparse.csr_array, left: np.ndarray | None, right: np.ndarray | None) -> sparse.csr_array:
    """diag(left) matrix diag(right)^-1, either None for the identity; the pattern is kept."""
    data = matrix.data.copy()
    if left is not None:
        data *= np.repeat(left, np.diff(matrix.indptr))
    if right is not None:
        data /= right[matrix.indices]
    return sparse.csr_array((data, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)


def rescaling(
    matrix: sparse.csr_array, components: Sequence[Component], blocks: Sequence[Block], verdict: Verdict
) -> np.ndarray | None:
    """``scale`` (n,) with ||diag(scale) A diag(scale)^-1||_inf < 1, or None where none exists.

    None when an activation is not positively homogeneous, when the Perron-Frobenius eigenvalue is not proven to be
    below 1, or when the scale does not fit into double precision (very deep networks with large weights).
    """
    n = matrix.shape[0]
    if n == 0 or not all(block.activation.homogeneous for block in blocks):
        return None
    pf = max((component.pf for component in verdict.components), default=0.0)
    if pf >= 1.0:
        return None
    # 1 < c < 1/pf; half way keeps both the norm (below 1/c) and the condition of I - c|A| moderate
    factor = 2.0 if pf == 0.0 else min(2.0, 0.5 * (1.0 + 1.0 / pf))
    t = solve_nonnegative(components, factor * np.maximum(lipschitz(blocks), 1.0), np.ones(n))
    if t is None:
        return None
    scale = 1.0 / t
    if not (scale > 0.0).all() or not norm_inf(scaled(matrix, scale, scale)) < 1.0:
        return None
    return scale
