"""One axis of a sliding window: which value each tap sees at each position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Position p sees with its tap t the value ``p * stride - low + t * dilation`` of ``size`` many, if there is one.

    ``low`` is the padding before the first value. The padding after the last one is implied by ``positions``.
    """

    size: int
    taps: int
    positions: int
    stride: int = 1
    low: int = 0
    dilation: int = 1

    def seen(self) -> np.ndarray:
        """(positions, taps) indices of values, -1 where the tap sees padding."""
        index = np.arange(self.positions)[:, None] * self.stride - self.low
        index = index + np.arange(self.taps) * self.dilation
        return np.where((index >= 0) & (index < self.size), index, -1)

    @property
    def span(self) -> int:
        """How many values, padding included, the positions cover."""
        return (self.positions - 1) * self.stride + (self.taps - 1) * self.dilation + 1
