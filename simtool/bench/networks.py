"""Networks with random weights, for cases that need states of a size and not of a training."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NETWORK = "simtool.bench.networks:mlp"


def mlp(sizes: str = "784-64-32-16-10", seed: int = 0) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them, He weights and small biases, the same for a seed."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(int(seed))
    widths = [int(size) for size in sizes.split("-")]
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if index:
            layers.append(nn.ReLU())
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2.0 / fan_in) ** 0.5)
            linear.bias.copy_(torch.randn(fan_out, generator=generator) * 0.05)
        layers.append(linear)
    return nn.Sequential(*layers)
