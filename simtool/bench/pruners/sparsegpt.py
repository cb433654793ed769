"""SparseGPT (Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, Algorithm 1).

Columns are settled from left to right. With H^-1 = U^T U, U upper triangular, U_jj^2 is [H_{j:}^-1]_jj, the inverse of the
Hessian of the columns not yet settled; a weight that goes costs w_ij^2 / U_jj^2, and its error is spread over the columns
to its right, in all rows with the same U. Which weights go is decided block by block of columns, when the block is reached.
"""

from __future__ import annotations

import numpy as np

from simtool.bench.pruners.layer import Layer, largest, shares


def sparsegpt(layer: Layer, keep: int, *, damping: float = 1e-2, block: int = 128) -> np.ndarray:
    """``block`` columns at a time (0: all of them at once) share the sparsity of the layer. Columns that are 0 in all
    samples lose their weights, as in the authors' code, and count for no block."""
    dead = np.diag(layer.gram) <= 0.0
    w = np.where(dead, 0.0, layer.weight)
    width = w.shape[1]
    size = block or width
    hessian = layer.damped(damping)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T  # inv = L L^T = U^T U with U = L^T
    starts = range(0, width, size)
    live = [int((~dead[start : start + size]).sum()) * len(w) for start in starts]
    for start, count in zip(starts, shares(live, keep), strict=True):
        stop = min(start + size, width)
        here, u = w[:, start:stop], factor[start:stop, start:stop]
        scores = np.where(dead[start:stop], -1.0, (here / np.diag(u)) ** 2)
        stays = largest(scores, count)
        errors = np.zeros_like(here)
        for j in range(stop - start):
            left = np.where(stays[:, j], here[:, j], 0.0)
            errors[:, j] = (here[:, j] - left) / u[j, j]
            here[:, j:] -= np.outer(errors[:, j], u[j, j:])
            here[:, j] = left
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return np.where(dead, 0.0, w)
