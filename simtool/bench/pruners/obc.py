"""OBC (Frantar and Alistarh, Optimal Brain Compression, Algorithms 1 and 2): each row by the exact optimal brain surgeon.

In a row, the weight with the least w_j^2 / [H^-1]_jj goes, the others move to the optimum without it, and H^-1 loses its row
and column, until none is left. The rows' costs of their next removals then share out the layer's budget greedily.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field

import numpy as np

from simtool.bench.pruners.layer import Layer, refit
from simtool.solvers.compiling import compiled


@compiled
def _remove_all(inverse, w, order, costs):
    """Fill ``order`` and ``costs`` (k,) with the removals of one row, the cheapest first; works in place on copies of
    H^-1 ``inverse`` (k, k) and of the weights ``w`` (k,)."""
    k = w.size
    names = np.arange(k)
    for step in range(k):
        left = k - step
        best, lowest = 0, np.inf
        for j in range(left):
            cost = w[j] * w[j] / inverse[j, j]
            if cost < lowest:
                best, lowest = j, cost
        order[step], costs[step] = names[best], lowest
        column = inverse[best, :left].copy()
        pivot = column[best]
        share = w[best] / pivot
        # The last one takes the place of the one that goes.
        last = left - 1
        w[best], names[best] = w[last], names[last]
        inverse[best, :left] = inverse[last, :left]
        inverse[:left, best] = inverse[:left, last]
        column[best] = column[last]
        for i in range(last):
            w[i] -= share * column[i]
            factor = column[i] / pivot
            row = inverse[i]
            for j in range(last):
                row[j] -= factor * column[j]


@dataclass
class OBC:
    """Remembers the removals of the layers it has seen: one order serves every budget."""

    _known: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __call__(self, layer: Layer, keep: int, *, damping: float = 1e-2) -> np.ndarray:
        hessian = layer.damped(damping)
        order, costs = self._paths(layer, hessian)
        rows, width = layer.weight.shape
        gone = np.zeros(rows, dtype=np.int64)
        heap = [(costs[i, 0], i) for i in range(rows)]
        heapq.heapify(heap)
        for _ in range(layer.entries - keep):
            _, i = heap[0]
            gone[i] += 1
            if gone[i] < width:
                heapq.heapreplace(heap, (costs[i, gone[i]], i))
            else:
                heapq.heappop(heap)
        mask = np.zeros(layer.weight.shape, dtype=bool)
        for i in range(rows):
            mask[i, order[i, gone[i] :]] = True
        return refit(layer, hessian, mask)

    def _paths(self, layer: Layer, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(r, d) features in the order they go, and the cost of each removal."""
        key = hashlib.sha256(hessian.tobytes() + layer.weight.tobytes()).digest()
        if key not in self._known:
            inverse = np.linalg.inv(hessian)
            order, costs = np.zeros(layer.weight.shape, dtype=np.int64), np.zeros(layer.weight.shape)
            for i, row in enumerate(layer.weight):
                _remove_all(inverse.copy(), row.copy(), order[i], costs[i])
            self._known[key] = order, costs
        return self._known[key]
