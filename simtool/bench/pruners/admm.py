"""ALPS-like pruning (Meng et al., ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models).

The operator-splitting scheme of its section 3.2 on   minimise ||(W - W0) F||^2  s.t.  at most ``keep`` non-zeros in W:

    B = (H + rho I)^-1 (H W0 - V + rho D)      D = the ``keep`` largest of B + V / rho      V = V + rho (B - D)

with features scaled to one diagonal, and rho growing by how much the support still changes, so that it settles. The paper then
improves the weights on the support by ten steps of conjugate gradients in all rows at once; here each row is solved exactly.
"""

from __future__ import annotations

import numpy as np

from simtool.bench.pruners.layer import Layer, largest, refit

_EVERY, _MOST = 3, 900
# The change of the support since the last look, as a share of its size, and by what rho grows then (its section 3.2).
_STEPS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def admm(layer: Layer, keep: int, *, damping: float = 1e-2, rho: float = 0.1) -> np.ndarray:
    """``rho`` is what the penalty starts with."""
    if keep <= 0:
        return np.zeros_like(layer.weight)
    hessian = layer.damped(damping)
    units = 1.0 / np.sqrt(np.diag(hessian))
    values, vectors = np.linalg.eigh(hessian * np.outer(units, units))
    weight = (layer.weight / units).T
    right = vectors @ (values[:, None] * (vectors.T @ weight))
    d, v = weight.copy(), np.zeros_like(weight)
    before = np.ones(weight.shape, dtype=bool)
    mask = before
    for step in range(1, _MOST + 1):
        b = vectors @ ((vectors.T @ (right - v + rho * d)) / (values + rho)[:, None])
        moved = b + v / rho
        mask = largest(np.abs(moved), keep)
        d = np.where(mask, moved, 0.0)
        v += rho * (b - d)
        if step % _EVERY == 0:
            change = int((mask != before).sum())
            if not change:
                break
            before = mask
            rho *= next(factor for share, factor in _STEPS if change >= share * keep)
    return refit(layer, hessian, mask.T)
