"""States as a convolution gives them: many correlated, sparse, non-negative features; far more than samples.

A layer of random smooth 5 x 5 filters with ReLU over real images: every position of every channel is a feature. Targets
are, in halves, sparse combinations of features with 10 % noise, and pre-activations of a next layer with He weights.
"""

from __future__ import annotations

import numpy as np

from simtool.bench.arrays import Task, Workload
from simtool.bench.cases import ConvCase
from simtool.data import open_data
from simtool.design import Design
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet

_KERNEL = 5
_TERMS, _NOISE = 20, 0.1
KAPPA, L1_LOSS = 0.99, 0.1


def conv_workload(case: ConvCase, data: str, beta: float | None) -> Workload:
    """The rows of ``case`` on images of ``data``; with ``beta`` the l1 objective, else the lasso with kappa."""
    features, targets, origin = _states(case, data)
    if beta is None:
        objective = Objective(0.5, Penalty(), KAPPA)
    else:
        objective = Objective(L1_LOSS, Penalty(lam1=beta), None)
    everything = np.ones(features.shape[0], dtype=bool)

    def fresh() -> list[Task]:
        return [Task(RowSet(Design(features), targets, objective, everything), False)]

    return Workload(fresh, (), origin, targets.shape[0], *features.shape)


def _states(case: ConvCase, data: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Features (d, m), targets (r, m), both float32, and where they are from."""
    rng = np.random.default_rng(0)
    source = open_data(data, "train")
    images = np.concatenate(list(source.batches(source.select(min(case.samples, source.count), 0), 4096)))
    images = images.reshape(len(images), *images.shape[-2:]).astype(np.float32)
    layer = _layer(images[:, None], case.channels, rng)
    count, channels, high, wide = layer.shape
    features = np.ascontiguousarray(layer.reshape(count, -1).T)
    alive = np.flatnonzero(features.any(axis=1))
    targets = np.empty((case.rows, count), dtype=np.float32)
    for i in range(case.rows):
        if i % 2:
            chosen = rng.choice(alive, min(_TERMS, alive.size), replace=False)
            weights = rng.standard_normal(chosen.size)
        else:  # one position of a next layer's channel: a window over all channels
            top, left = (int(rng.integers(0, max(1, size - _KERNEL + 1))) for size in (high, wide))
            rows, columns = (
                np.arange(top, min(top + _KERNEL, high)),
                np.arange(left, min(left + _KERNEL, wide)),
            )
            grid = np.arange(channels)[:, None, None] * high * wide + rows[:, None] * wide + columns
            chosen = grid.ravel()
            weights = rng.standard_normal(chosen.size) * np.sqrt(2.0 / chosen.size)
        z = weights @ features[chosen].astype(np.float64)
        if i % 2:
            z = z + _NOISE * z.std() * rng.standard_normal(count)
        targets[i] = z
    origin = f"{channels} random smooth {_KERNEL} x {_KERNEL} filters with ReLU on {count} images of {data}"
    return features, targets, origin


def _layer(images: np.ndarray, channels: int, rng: np.random.Generator) -> np.ndarray:
    """ReLU of a valid convolution of ``images`` (m, 1, h, w) with smoothed random filters: (m, channels, h', w')."""
    size = min(_KERNEL, images.shape[-1], images.shape[-2])
    position = np.arange(size) - (size - 1) / 2.0
    smooth = np.exp(-(position[:, None] ** 2 + position**2) / 4.0)
    filters = rng.standard_normal((channels, size, size)) * smooth
    filters -= filters.mean(axis=(1, 2), keepdims=True) * rng.random((channels, 1, 1))
    windows = np.lib.stride_tricks.sliding_window_view(images[:, 0], (size, size), axis=(1, 2))
    flat = np.ascontiguousarray(windows).reshape(*windows.shape[:3], size * size)
    z = flat @ filters.reshape(channels, -1).T.astype(np.float32)
    return np.maximum(z - 0.1 * z.std(axis=(0, 1, 2)), 0.0).transpose(0, 3, 1, 2)
