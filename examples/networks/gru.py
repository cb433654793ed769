"""A GRU that reads a digit row by row: 8 steps of 8 pixels, then a linear layer on the last hidden state.

    simtool inspect examples/networks/gru.py:factory --weights examples/networks/gru.safetensors --input-shape 8,8

A sample is (8, 8), as the data has it: step, pixel. Flat samples are taken as well.
"""

from __future__ import annotations

from torch import Tensor, nn


class RowGRU(nn.Module):
    """Pixels (k, 8, 8) to class scores (k, 10)."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        # Not unflatten: the classic ONNX exporter would make the number of samples a constant.
        states, _ = self.recurrent(pixels.reshape(-1, 8, 8))
        return self.classifier(states[:, -1])


def factory(hidden: int = 32) -> RowGRU:
    """The network untrained; the weights beside this file have 32 hidden units."""
    return RowGRU(hidden)
