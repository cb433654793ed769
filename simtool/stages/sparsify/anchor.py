"""Rows held near the network's own where the samples say little: a ridge towards the teacher's rows, written as samples.

    minimise  ||z - W'w||^2 + sum_j r_j (w_j - t_j)^2    =    ||[z; sqrt(r) t] - [W, diag(sqrt(r))]' w||^2

with t the teacher's row: one more sample for each coefficient. So solvers, paths and certificates see plain rows. r is ``--anchor`` times
the mean of ||W_j||^2 over the features: the same for all, so that what the samples never show keeps its own coefficient's price.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simtool.states import LayerStates

_TILE = 4096


class Anchored:
    """An array of a layer with the samples of the anchor after its own; sliced by rows, as the file's arrays are."""

    def __init__(self, own: Any, more: np.ndarray) -> None:
        self._own, self._more = own, more
        self.shape = (own.shape[0], own.shape[1] + more.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.concatenate([np.asarray(self._own[rows], dtype=np.float32), self._more[rows]], axis=1)


def anchored(layer: LayerStates, anchor: float) -> tuple[Any, Any]:
    """Design (features, columns + width) and targets (rows, columns + width) of ``layer``; as they are where ``anchor`` is 0."""
    if not anchor:
        return layer.design, layer.targets
    spec, total = layer.spec, 0.0
    for start in range(0, spec.columns, _TILE):
        total += float(np.square(np.asarray(layer.design[:, start : start + _TILE], dtype=np.float64)).sum())
    root = np.float32(np.sqrt(anchor * total / spec.features))
    # One sample for each coefficient of a row: the groups of a layer do not see one another's, so they share them.
    own = np.zeros((spec.features, spec.width), dtype=np.float32)
    for group in range(spec.groups):
        features = spec.group_features(group)
        own[features, np.arange(spec.width)] = root
    # The target is what the teacher's row gives on the sample as it is stored, rounding included.
    targets = np.asarray(layer.teacher[()], dtype=np.float64) * np.float64(root)
    return Anchored(layer.design, own), Anchored(layer.targets, targets.astype(np.float32))
