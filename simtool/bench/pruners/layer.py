"""What a peer is given, and what all of them share: exact counts, damping, and least squares on a support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights ``weight`` (r, d) of a layer that reads features with the Gram matrix ``gram`` (d, d), both float64.

    ``scale`` (d,) are the features' own norms, which stay what they are where ``gram`` is that of centred features.
    """

    weight: np.ndarray
    gram: np.ndarray
    scale: np.ndarray

    @property
    def entries(self) -> int:
        return int(self.weight.size)

    def loss(self, weight: np.ndarray) -> float:
        """|| (weight - self.weight) F ||^2."""
        change = weight - self.weight
        return float(np.einsum("ij,jk,ik->", change, self.gram, change, optimize=True))

    def damped(self, damping: float) -> np.ndarray:
        """gram + damping * mean(diag) * I, positive definite for damping > 0; the identity where nothing is ever read."""
        size = float(np.trace(self.gram)) / max(len(self.gram), 1)
        return np.asarray(self.gram + damping * (size or 1.0) * np.eye(len(self.gram)))


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """``total`` shared out in proportion to ``sizes``, none above its size; the largest remainders are rounded up.

    Sums to ``total`` exactly where the sizes do reach it, and to the sizes' sum otherwise.
    """
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    exact = [total * size / whole for size in sizes]
    found = [int(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Where the ``keep`` largest of ``scores`` are, a mask of the same shape with exactly so many; of equals the first."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


def refit(layer: Layer, gram: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Every row's least-squares weights on its own support ``mask`` (r, d), in the metric of ``gram`` (positive definite)."""
    target = layer.weight @ gram
    found = np.zeros_like(layer.weight)
    for i, row in enumerate(mask):
        support = np.flatnonzero(row)
        if support.size:
            found[i, support] = np.linalg.solve(gram[np.ix_(support, support)], target[i, support])
    return found
