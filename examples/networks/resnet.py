"""A small residual network for FashionMNIST: batch norm, skip connections, three stages that halve the image.

    simtool inspect examples/networks/resnet.py:factory --weights examples/networks/resnet.safetensors --input-shape 1,28,28

The layout is that of the CIFAR ResNets (He et al. 2016, section 4.2) with fewer channels and blocks; the first
convolution has a stride of 2, so that the stages work on 14 x 14, 7 x 7 and 4 x 4 pixels. A sample is (1, 28, 28): what
simtool makes of the data's (28, 28). Flat samples and (28, 28) are taken as well.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, stride: int, size: int = 3) -> nn.Sequential:
    """A convolution and its batch norm, which makes a bias of its own useless."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """relu(x + f(x)) with two convolutions in f; the skip is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.second = _convolution(outputs, outputs, 1)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else _convolution(inputs, outputs, stride, size=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.skip(x))


class ResNet(nn.Module):
    """Pixels (k, 1, 28, 28) to class scores (k, 10).

    widths : channels of the stages; the first stage keeps the image, each other halves it
    blocks : residual blocks in each stage
    """

    def __init__(self, widths: tuple[int, ...] = (12, 24, 48), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(1, widths[0], 2), nn.ReLU())
        stages: list[Block] = []
        for stage, (inputs, outputs) in enumerate(pairwise((widths[0], *widths))):
            stages.append(Block(inputs, outputs, 1 if stage == 0 else 2))
            stages += [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AvgPool2d(4)  # 4 x 4 pixels are left of 28 x 28
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.reshape(-1, 1, 28, 28)
        return self.classifier(self.pool(self.stages(self.stem(image))).flatten(1))


def factory() -> ResNet:
    """The network untrained, as the weights beside this file need it."""
    return ResNet()
