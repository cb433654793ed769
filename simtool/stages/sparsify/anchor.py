"""Rows held near the network's own where the samples say little: a ridge towards the teacher's rows, written as samples.

    minimise  ||z - W'w||^2 + sum_j r_j (w_j - t_j)^2    =    ||[z; sqrt(r) t] - [W, diag(sqrt(r))]' w||^2

with t the teacher's row: one more sample for each coefficient. So solvers, paths and certificates see plain rows. r is ``--anchor`` times
the mean of ||W_j||^2 over the features: the same for all, so that what the samples never show keeps its own coefficient's price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from simtool.errors import OptionError
from simtool.states import LayerStates, States

_TILE = 4096
# The samples of single states are as many as features: beyond, they would not fit beside any states.
_MOST_FEATURES = 20_000


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


@dataclass(frozen=True)
class StatesArrays:
    """[X; U] and [Z; Y] of a states file as they are fitted, each part sliced by rows."""

    X: Any
    U: Any
    Z: Any
    Y: Any


def anchored_states(source: States, anchor: float) -> StatesArrays:
    """The arrays of rows of single states, with one more sample for each feature behind their own where ``anchor`` is not 0."""
    if not anchor:
        return StatesArrays(source.X, source.U, source.Z, source.Y)
    n, features = source.n, source.n + source.p
    total = 0.0
    for array in (source.X, source.U):
        for start in range(0, source.m, _TILE):
            total += float(np.square(np.asarray(array[:, start : start + _TILE], dtype=np.float64)).sum())
    root = np.float32(np.sqrt(anchor * total / features))
    own = np.zeros((features, features), dtype=np.float32)
    np.fill_diagonal(own, root)
    teacher = source.teacher()
    # The targets are what the teacher's rows give on the samples as they are stored, rounding included.
    states, outputs = (
        np.asarray(sparse.hstack([teacher[a], teacher[b]]).toarray() * np.float64(root), dtype=np.float32)
        for a, b in (("A", "B"), ("C", "D"))
    )
    return StatesArrays(
        Anchored(source.X, own[:n]),
        Anchored(source.U, own[n:]),
        Anchored(source.Z, states),
        Anchored(source.Y, outputs),
    )


def require_teacher(source: States, anchor: float, weights: str | None) -> None:
    """Raise OptionError where rows of single states cannot be held near the network's own."""
    header = source.header
    if not header.whole:
        raise OptionError(
            f"--anchor {anchor} holds rows near the network's own, but {source.path} holds some of its states only. Extract again without "
            "--blocks, or leave it out."
        )
    if weights is not None:
        raise OptionError(
            f"--anchor {anchor} adds samples, and --weight-samples {weights} weighs those of the file. Leave one of them out."
        )
    if header.states + header.inputs > _MOST_FEATURES:
        raise OptionError(
            f"--anchor adds a sample for each of {header.states + header.inputs} features; up to {_MOST_FEATURES} are possible. Leave it out, "
            "or use --objective elastic-net."
        )
