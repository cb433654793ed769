"""Cheap bounds on how far outputs can move when inputs do, by norms and matrix-vector products only.

|x - x'| <= diag(L) (|A| |x - x'| + |B| |u - u'|) with the Lipschitz constants L of the activations (1 for the CONE
maps of the paper). The bias is never perturbed: its columns of B and D do not count.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simtool.blocks import lipschitz
from simtool.model.implicit import ImplicitModel
from simtool.model.levels import solve_nonnegative
from simtool.model.scaling import scaled


def _row_sums(matrix: sparse.csr_array) -> np.ndarray:
    return np.asarray(abs(matrix).sum(axis=1), dtype=np.float64)


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def _without_bias(model: ImplicitModel, matrix: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(matrix[:, : model.p - 1]) if model.has_bias else matrix


def rho(model: ImplicitModel) -> float | None:
    """The Lipschitz constant ||B|| ||C|| / (1 - ||A||) + ||D|| of u -> y in the infinity norm (IDL section 4.3).

    Taken on the rescaled model where a rescaling exists, with diag(L) before A and B. None where ||diag(L) A|| >= 1.
    """
    scale = model.scale if model.scale is not None else model.rescaling()
    a, b, c = model.A, _without_bias(model, model.B), model.C
    if scale is not None:
        a, b, c = scaled(a, scale, scale), scaled(b, scale, None), scaled(c, None, scale)
    constants = lipschitz(model.blocks)
    norm_a = _largest(constants * _row_sums(a))
    if norm_a >= 1.0:
        return None
    norm_b = _largest(constants * _row_sums(b))
    norm_d = _largest(_row_sums(_without_bias(model, model.D)))
    value = norm_b * _largest(_row_sums(c)) / (1.0 - norm_a) + norm_d
    return value if np.isfinite(value) else None


def sensitivity_norm(model: ImplicitModel) -> float | None:
    """||S||_inf with S = |C| (I - L|A|)^-1 L|B| + |D| (IDL Theorem 4.2): S >= 0, so it is the largest entry of S 1.

    One solve with one right-hand side; S itself is never formed. None where the Perron-Frobenius eigenvalue of L|A|
    is not proven to be below 1 (the bound is then undefined) or the value overflows.
    """
    if any(component.pf >= 1.0 for component in model.well_posedness().components):
        return None
    constants = lipschitz(model.blocks)
    right = constants * _row_sums(_without_bias(model, model.B))
    state = solve_nonnegative(model.components, constants, right)
    if state is None:
        return None
    value = _largest(abs(model.C) @ state + _row_sums(_without_bias(model, model.D)))
    return value if np.isfinite(value) else None
