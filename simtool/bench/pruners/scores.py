"""Pruning by a score of each weight: what stays keeps its value."""

from __future__ import annotations

import numpy as np

from simtool.bench.pruners.layer import Layer, largest, shares


def magnitude(layer: Layer, keep: int) -> np.ndarray:
    """The ``keep`` largest weights of the layer."""
    return np.where(largest(np.abs(layer.weight), keep), layer.weight, 0.0)


def wanda(layer: Layer, keep: int, *, group: str = "row") -> np.ndarray:
    """The largest |w_ij| ||f_j|| (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, eq. 1).

    ``group``: weights are compared within each output row, as the paper does by default, or within the whole ``layer``.
    """
    scores = np.abs(layer.weight) * layer.scale
    if group == "layer":
        return np.where(largest(scores, keep), layer.weight, 0.0)
    rows, width = layer.weight.shape
    counts = shares([width] * rows, keep)
    mask = np.stack([largest(row, count) for row, count in zip(scores, counts, strict=True)])
    return np.where(mask, layer.weight, 0.0)
