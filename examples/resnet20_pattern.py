"""Draw the matrix A of a 20-layer residual network (thesis Figure 2.5), from the exact implicit form that convert makes.

    python examples/resnet20_pattern.py -o pictures                          # 4 channels, 16 x 16 pixels: 11 792 states
    simtool convert examples/resnet20_pattern.py:resnet20 -o resnet20.h5      # the same network as a model file

He et al.'s network for small images: a convolution, three groups of three residual blocks with `width`, 2 `width` and
4 `width` channels (the second and third group halve the image), a mean over the image and a linear layer: 20 layers with
weights. Skips have no parameters. The states are those of 19 relus, and the mean as an identity, so that 20 blocks of
states are stacked, last first, and A is strictly upper block triangular. Each convolution is one block beside the
diagonal, made of bands that are constant along diagonals; each skip is a straight line one block further right, on top
of the convolution that it jumps over. The weights are random: the pattern does not depend on them. The published
network has `--width 16 --size 32`: 188 480 states and 37 million non-zeros, in 2.5 GB and half a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simtool.model import ImplicitModel
from simtool.networks.torch_reader import read_module
from simtool.report.figures import BLUE, FAINT, INK, ORANGE, encode
from simtool.report.pattern import Band, raster
from simtool.stages.convert import implicit_form


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv x))))); where sizes change, x is subsampled and filled up with zero channels."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - fan_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(F.relu(self.norm_one(self.one(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + y)


class ResNet(nn.Module):
    """6 `depth` + 2 layers with weights; `size` is the height and width of its images of three channels."""

    def __init__(self, width: int, size: int, depth: int, classes: int) -> None:
        super().__init__()
        self.input_shape = (3, size, size)
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        blocks, fan_in = [], width
        for group in range(3):
            for index in range(depth):
                blocks.append(ResidualBlock(fan_in, width << group, 2 if group and not index else 1))
                fan_in = width << group
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(fan_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3)))


def resnet20(width: int = 4, size: int = 16, depth: int = 3, classes: int = 10, seed: int = 0) -> ResNet:
    """The network with random weights; ``depth`` 3 makes 20 layers."""
    torch.manual_seed(seed)
    return ResNet(width, size, depth, classes).eval()


def skip_links(model: ImplicitModel) -> np.ndarray:
    """(number of skips, 2): the blocks i, j with a skip from the states of block j into those of block i.

    Block i + 1 is the layer before block i; what block i reads from further back comes through a skip.
    """
    number = {block.name: i for i, block in enumerate(model.blocks)}
    links = [
        (i, number[x]) for i, b in enumerate(model.blocks) for x in b.parents if number.get(x, 0) > i + 1
    ]
    return np.asarray(links, dtype=np.int64).reshape(-1, 2)


def draw(model: ImplicitModel, pixels: int = 1400) -> Any:
    """A on a linear scale, as `spy` would show it: entries of convolutions in blue, those of skips in orange."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bands = tuple(Band(block.name, block.offset, block.size) for block in model.blocks)
    ends = np.cumsum([band.size for band in bands])
    pixels = min(pixels, model.n)
    edges = np.concatenate([[0], np.round(ends * (pixels / model.n))]).astype(np.int64)
    seen = raster(model.A, bands, bands, edges, edges) > 0
    colour = np.ones((*seen.shape, 3))
    colour[seen] = [int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    for i, j in skip_links(model):
        part = (slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1]))
        colour[part][seen[part]] = [int(ORANGE[k : k + 2], 16) / 255 for k in (1, 3, 5)]

    figure = Figure(figsize=(9.5, 9.5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(colour, interpolation="nearest", extent=(0, model.n, model.n, 0))
    for end in ends[:-1]:
        axes.axhline(end, color=FAINT, linewidth=0.25, alpha=0.6)
        axes.axvline(end, color=FAINT, linewidth=0.25, alpha=0.6)
    axes.set_title(
        f"A of a residual network: {model.n} states in {len(bands)} layers, {model.A.nnz} non-zeros; "
        "skips are orange",
        color=INK,
        fontsize=10,
    )
    axes.set_xlabel("states that are read (last layer first)", color=INK, fontsize=9)
    axes.set_ylabel("states that are computed (last layer first)", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
    return figure


@click.command()
@click.option(
    "--width", type=click.IntRange(1), default=4, show_default=True, help="Channels of the first group."
)
@click.option(
    "--size", type=click.IntRange(4), default=16, show_default=True, help="Height and width of an image."
)
@click.option(
    "--depth", type=click.IntRange(1), default=3, show_default=True, help="Residual blocks in a group."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pictures"),
    show_default=True,
)
def main(width: int, size: int, depth: int, seed: int, output: Path) -> None:
    """Convert a residual network of 6 DEPTH + 2 layers and draw its matrix A as PNG and SVG."""
    torch.set_num_threads(1)
    network = resnet20(width, size, depth, seed=seed)
    model = implicit_form(
        read_module(network, network.input_shape, {"network": f"ResNet-{6 * depth + 2}"}).graph
    )
    output.mkdir(parents=True, exist_ok=True)
    for kind, content in encode(draw(model)).items():
        (output / f"resnet{6 * depth + 2}_A.{kind}").write_bytes(content)
    inputs = np.random.default_rng(seed).normal(size=(2, *network.input_shape))
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(inputs)).numpy()
    verdict = model.well_posedness()
    click.echo(
        f"ResNet-{6 * depth + 2}: {model.n} states in {len(model.blocks)} layers, {model.A.nnz} non-zeros in A "
        f"({model.A.nnz / model.n**2:.3%}), {len(skip_links(model))} skips, well-posed by {verdict.by}, "
        f"outputs within {np.abs(model.predict(inputs) - expected).max():.1e} of the network's, drawn in {output}"
    )


if __name__ == "__main__":
    main()
