"""Train the small MLP of the README: FashionMNIST, 784-64-32-16-10, relu. Under a minute on one core.

    python examples/train_mlp.py -o trained
    simtool extract examples/train_mlp.py:mlp --weights trained/mlp.safetensors --data fashion-mnist -o states.h5

It writes ``mlp.safetensors`` and ``mlp.onnx``. The factory ``mlp`` builds the same network for simtool.
"""

from __future__ import annotations

import time
import warnings
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from simtool.data import DataSource, open_data

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def mlp(sizes: tuple[int, ...] | str = (784, 64, 32, 16, 10), activation: str = "relu") -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them; pixels in, class scores out."""
    widths = [int(size) for size in sizes.split("-")] if isinstance(sizes, str) else list(sizes)
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if index:
            layers.append(ACTIVATIONS[activation]())
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


def load(source: DataSource) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole split as tensors: pixels as simtool scales them, and classes."""
    pixels = np.concatenate(list(source.batches(source.select(None, 0), 4096)))
    labels = source.labels()
    if labels is None:
        raise click.ClickException(f"{source.name} has no labels to train on.")
    return torch.from_numpy(pixels.reshape(len(pixels), -1)), torch.from_numpy(labels)


def accuracy(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of ``inputs`` classified as ``labels``."""
    with torch.no_grad():
        return float((network.eval()(inputs).argmax(dim=1) == labels).double().mean())


def train(
    network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int, rate: float
) -> None:
    """Adam on the cross-entropy, the learning rate falling to zero along a cosine."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, steps))
    network.train()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(inputs))
        for start in range(0, len(inputs) - batch + 1, batch):
            rows = order[start : start + batch]
            loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        click.echo(f"epoch {epoch + 1:2d}: mean loss {total / max(1, len(inputs) // batch):.4f}", err=True)


def save(network: nn.Module, folder: Path, inputs: int) -> None:
    """``mlp.safetensors`` and ``mlp.onnx`` in ``folder``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "mlp.safetensors"
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the classic exporter announces its retirement; it needs no extra package
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, inputs),),
            str(folder / "mlp.onnx"),
            input_names=["inputs"],
            output_names=["scores"],
            dynamic_axes={"inputs": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


@click.command()
@click.option("--data", default="fashion-mnist", show_default=True, help="As in `simtool extract --data`.")
@click.option("--sizes", default="784-64-32-16-10", show_default=True, help="Widths of the layers.")
@click.option("--activation", type=click.Choice(list(ACTIVATIONS)), default="relu", show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rate", type=float, default=2e-3, show_default=True, help="Learning rate of Adam.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("trained"), show_default=True)
def main(
    data: str, sizes: str, activation: str, epochs: int, batch: int, rate: float, seed: int, output: Path
) -> None:
    """Train an MLP and write its weights as safetensors and ONNX."""
    torch.set_num_threads(1)  # small layers: threads only cost, and one thread makes the result repeatable
    torch.manual_seed(seed)
    started = time.perf_counter()
    inputs, labels = load(open_data(data, "train"))
    network = mlp(sizes, activation)
    train(network, inputs, labels, epochs, min(batch, len(inputs)), rate)
    test = accuracy(network, *load(open_data(data, "test")))
    save(network, output, inputs.shape[1])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    click.echo(
        f"{sizes} {activation}: {parameters} parameters, test accuracy {100 * test:.2f} %, "
        f"{time.perf_counter() - started:.0f} s, written to {output}"
    )


if __name__ == "__main__":
    main()
