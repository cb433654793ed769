"""LeNet for FashionMNIST: two convolutions of 5 x 5, each followed by relu and max-pooling, then three linear layers.

    simtool inspect examples/networks/lenet.py:factory --weights examples/networks/lenet.safetensors --input-shape 1,28,28

A sample is (1, 28, 28): what simtool makes of the data's (28, 28). Flat samples and (28, 28) are taken as well.
"""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Pixels (k, 1, 28, 28) to class scores (k, 10); 44 426 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),  # 6 channels of 12 x 12
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),  # 16 channels of 4 x 4
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
        )

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.reshape(-1, 1, 28, 28)
        return self.classifier(self.features(image).flatten(1))


def factory() -> LeNet:
    """The network untrained, as the weights beside this file need it."""
    return LeNet()
