"""The networks of ``bench quality``: case F, trained the same way from different seeds, so that there is a spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simtool.bench.networks import NETWORK, mlp
from simtool.data import open_data
from simtool.errors import InputError
from simtool.networks import NetworkSpec

_BATCH, _RATE = 64, 1e-3


def train(sizes: str, data: str, seed: int, epochs: int, folder: Path) -> NetworkSpec:
    """An MLP of ``sizes`` trained on the split train of ``data`` by Adam on the cross-entropy, from torch's own start, one thread.

    The weights are written to ``folder``. Raises InputError for data without classes, or of another size.
    """
    import torch
    from safetensors.torch import save_file
    from torch import nn

    source = open_data(data, "train")
    labels = source.labels()
    if labels is None or np.asarray(labels).ndim != 1 or np.asarray(labels).dtype.kind not in "iu":
        raise InputError(
            f"{source.name} has no classes to train networks on. Pass data with labels, or networks with --network."
        )
    widths = [int(size) for size in sizes.split("-")]
    if (
        int(np.prod(source.sample_shape)) != widths[0]
        or not 0 <= int(labels.min()) <= int(labels.max()) < widths[-1]
    ):
        raise InputError(
            f"the samples of {source.name} have shape {source.sample_shape} and classes {labels.min()} to {labels.max()}; networks of sizes "
            f"{sizes} do not fit them. Pass networks of your own with --network."
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers: threads only cost, and one of them makes the result repeatable
    try:
        pixels = np.concatenate(list(source.batches(source.select(None, 0), 4096)))
        inputs, classes = torch.from_numpy(pixels.reshape(len(pixels), -1)), torch.from_numpy(labels)
        with torch.random.fork_rng(devices=[]):
            network = mlp(sizes)
            torch.manual_seed(seed)
            for layer in network:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
            for _ in range(epochs):
                for rows in torch.randperm(len(inputs)).split(_BATCH):
                    loss = nn.functional.cross_entropy(network(inputs[rows]), classes[rows])
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    optimiser.step()
    finally:
        torch.set_num_threads(threads)
    path = folder / f"network-{seed}.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return NetworkSpec(NETWORK, (f"sizes={sizes}",), weights=path)
