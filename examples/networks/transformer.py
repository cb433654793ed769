"""A small transformer encoder that reads a digit as 16 patches of 2 x 2 pixels.

    simtool inspect examples/networks/transformer.py:factory --weights examples/networks/transformer.safetensors --input-shape 1,8,8

Patches are embedded by a convolution whose stride is its size (Dosovitskiy et al. 2021), a learnt position is added, two
encoder layers follow (layer norm first, no dropout), and a linear layer classifies the mean of the patches. A sample is
(1, 8, 8): what simtool makes of the data's (8, 8). Flat samples and (8, 8) are taken as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PATCHES = 16


class PatchTransformer(nn.Module):
    """Pixels (k, 1, 8, 8) to class scores (k, 10).

    width, heads, inner : size of a patch's vector, attention heads, hidden units of the feed-forward part
    """

    def __init__(self, width: int = 32, heads: int = 4, inner: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(PATCHES, width) / width**0.5)
        self.encoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        # Not unflatten: the classic ONNX exporter would make the number of samples a constant.
        image = pixels.reshape(-1, 1, 8, 8)
        patches = self.embed(image).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.encoder(patches)).mean(dim=1))


def factory() -> PatchTransformer:
    """The network untrained, as the weights beside this file need it."""
    return PatchTransformer()
