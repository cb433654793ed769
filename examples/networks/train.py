"""Train an example network on real data and write its weights (safetensors) and its ONNX file. One core, repeatable.

    python examples/networks/train.py lenet -o trained
    simtool inspect examples/networks/lenet.py:factory --weights trained/lenet.safetensors --input-shape 1,28,28
    python examples/networks/train.py lenet --export-only -o trained    # ONNX of the weights beside this file

The networks are the files beside this one; each is a NETWORK of simtool, ``examples/networks/lenet.py:factory``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from simtool.data import DataSource, open_data
from simtool.importing import resolve

HERE = Path(__file__).parent
OPSET = 18  # the least that torch's new exporter writes without converting versions


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Clothes (k, height, width), each moved by -2..2 pixels each way (zeros come in) and mirrored half of the time."""
    count, height, width = images.shape
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    down, right = torch.randint(0, 5, (2, count, 1))
    lines, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], lines[:, :, None], columns[:, None, :]]


def distort(images: torch.Tensor) -> torch.Tensor:
    """Digits (k, 8, 8), each turned, sheared, scaled and moved a little, with noise of deviation 0.2 on its pixels.

    Little, because these digits fill their 8 x 8 pixels: moves of a whole pixel made the transformer worse.
    """
    count = len(images)
    angle, shear = (torch.rand(2, count) * 2 - 1) * 0.15
    scale = 1 + (torch.rand(2, count) * 2 - 1) * 0.1
    move = (torch.rand(2, count) * 2 - 1) * 0.1  # in halves of the image: 0.4 pixels
    lines = [
        torch.stack([angle.cos() * scale[0], shear - angle.sin(), move[0]], dim=1),
        torch.stack([angle.sin(), angle.cos() * scale[1], move[1]], dim=1),
    ]
    grid = nn.functional.affine_grid(torch.stack(lines, dim=1), [count, 1, 8, 8], align_corners=False)
    moved = nn.functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    return moved + 0.2 * torch.randn_like(moved)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW on the cross-entropy, the learning rate rising and falling once (OneCycle).

    augment : makes a batch of images (k, height, width) anew each time it is used
    """

    data: str
    epochs: int
    batch: int
    rate: float
    decay: float = 0.01
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None


RECIPES = {
    "lenet": Recipe("fashion-mnist", epochs=12, batch=128, rate=4e-3),
    "resnet": Recipe("fashion-mnist", epochs=20, batch=128, rate=1e-2, decay=0.05, augment=crop_and_flip),
    "lstm": Recipe("digits", epochs=150, batch=32, rate=1e-2, augment=distort),
    "gru": Recipe("digits", epochs=150, batch=32, rate=1e-2, augment=distort),
    "transformer": Recipe("digits", epochs=200, batch=64, rate=4e-3, decay=0.3, augment=distort),
}


def make(name: str, weights: Path | None = None) -> nn.Module:
    """The network ``name`` as its factory makes it, with the weights of a safetensors file if one is given."""
    network: nn.Module = resolve(f"{HERE / name}.py:factory")()
    if weights is not None:
        network.load_state_dict(load_file(weights))
    return network


def load(source: DataSource) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole split: images (samples, height, width) as simtool scales them, and classes."""
    pixels = np.concatenate(list(source.batches(source.select(None, 0), 4096)))
    labels = source.labels()
    if labels is None:
        raise click.ClickException(f"{source.name} has no labels to train on.")
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def accuracy(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of ``inputs`` classified as ``labels``; the network is left in evaluation mode."""
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(rows).argmax(dim=1) == classes).sum())
            for rows, classes in zip(inputs.split(500), labels.split(500), strict=True)
        )
    return right / len(labels)


def step(
    network: nn.Module, optimiser: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
) -> float:
    """One step of training on a batch; the loss before it."""
    loss = nn.functional.cross_entropy(network(inputs), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def optimiser_of(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the recipe's rate and decay."""
    return torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)


def train(
    network: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train ``network`` in place; ``report`` gets a line for each epoch."""
    optimiser = optimiser_of(network, recipe)
    batches = len(inputs) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.rate, total_steps=recipe.epochs * batches
    )
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        for rows in torch.randperm(len(inputs))[: batches * recipe.batch].split(recipe.batch):
            images = inputs[rows] if recipe.augment is None else recipe.augment(inputs[rows])
            total += step(network, optimiser, images, labels[rows])
            schedule.step()
        report(f"epoch {epoch + 1:3d}: mean loss {total / batches:.4f}")


def export_onnx(name: str, path: Path, weights: Path | None = None, dynamo: bool = False) -> None:
    """Write the network ``name`` as ONNX (opset 18, any number of samples), by default with the weights beside this file.

    dynamo : whether torch's new exporter writes it (it needs the package onnxscript) rather than the classic one
    """
    source = open_data(RECIPES[name].data, "test")
    network = make(name, weights or HERE / f"{name}.safetensors").eval()
    example = torch.zeros(2, *source.sample_shape)
    names = {"input_names": ["inputs"], "output_names": ["scores"], "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters announce changes of themselves
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                network,
                (example,),
                str(path),
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            axes = {"inputs": {0: "batch"}, "scores": {0: "batch"}}
            torch.onnx.export(network, (example,), str(path), dynamo=False, dynamic_axes=axes, **names)


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--epochs", type=click.IntRange(1), help="Instead of those of the network's recipe.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--export-only", is_flag=True, help="No training: write the ONNX file of the weights beside this script."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("trained"), show_default=True)
def main(name: str, epochs: int | None, seed: int, export_only: bool, output: Path) -> None:
    """Train the network NAME and write NAME.safetensors and NAME.onnx."""
    torch.set_num_threads(1)  # small layers: threads only cost, and one thread makes the result repeatable
    torch.manual_seed(seed)
    started = time.perf_counter()
    recipe = RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)
    output.mkdir(parents=True, exist_ok=True)
    weights = HERE / f"{name}.safetensors" if export_only else output / f"{name}.safetensors"
    if not export_only:
        network = make(name)
        train(
            network, *load(open_data(recipe.data, "train")), recipe, lambda line: click.echo(line, err=True)
        )
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    export_onnx(name, output / f"{name}.onnx", weights)
    network = make(name, weights)
    test = accuracy(network, *load(open_data(recipe.data, "test")))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    click.echo(
        f"{name}: {parameters} parameters, {recipe.data} test accuracy {100 * test:.2f} %, "
        f"{time.perf_counter() - started:.0f} s, written to {output}"
    )


if __name__ == "__main__":
    main()
