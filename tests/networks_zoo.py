"""Small networks that the readers' tests share; each factory is also a NETWORK, ``tests/networks_zoo.py:name``."""

from __future__ import annotations

import random
import warnings
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": lambda: nn.ELU(0.7),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "softplus": lambda: nn.Softplus(beta=1.5),
    "identity": nn.Identity,
}


def mlp(sizes: str = "6-5-4-3", activation: str = "relu", bias: bool = True, seed: int = 0) -> nn.Sequential:
    """Linear layers with one kind of activation between them."""
    torch.manual_seed(seed)
    widths = [int(size) for size in sizes.split("-")]
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if index:
            layers.append(ACTIVATIONS[activation]())
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
    return nn.Sequential(*layers)


class Tricky(nn.Module):
    """Functional, in-place and shared activations, a residual, dropout, reshapes, a parameter product, a silu by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.shared = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.mix = nn.Parameter(torch.randn(5, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.shared(self.first(x.flatten(1))))
        y = self.shared(self.second(x)) + x
        y = F.silu(F.gelu(y, approximate="tanh"), inplace=True)
        y = (y @ self.mix) * 2.0 - 0.25
        y = y * torch.sigmoid(y)
        y = y.view(y.size(0), -1).unsqueeze(1).squeeze(1).clamp(min=0)
        return F.log_softmax(self.last(y), dim=1)


def tricky() -> nn.Module:
    torch.manual_seed(3)
    return Tricky()


class Normalised(nn.Module):
    """Normalises its input with buffers, as many published networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.register_buffer("std", torch.tensor([0.5, 0.6, 0.7, 0.8]))
        self.hidden, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden((x - self.mean) / self.std)))


def normalised() -> nn.Module:
    torch.manual_seed(4)
    return Normalised()


class ByHand(nn.Module):
    """One hidden layer whose activation is written as arithmetic; ``form`` chooses the order of the factors."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.hidden, self.last = form, nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        erf, c = torch.erf(z / 2**0.5), (2 / torch.pi) ** 0.5
        forms = {
            "silu": lambda: torch.sigmoid(z) * z,
            "gelu-a": lambda: 0.5 * z * (1 + erf),
            "gelu-b": lambda: z * (0.5 * (1.0 + torch.erf(z * 0.5**0.5))),
            "gelu-c": lambda: z * (erf + 1) / 2,
            "gelu_tanh-a": lambda: 0.5 * z * (1 + torch.tanh(c * (z + 0.044715 * torch.pow(z, 3)))),
            "gelu_tanh-b": lambda: z * (1 + torch.tanh(c * z * (1 + 0.044715 * z * z))) * 0.5,
        }
        return self.last(forms[self.form]())


def by_hand(form: str = "silu") -> nn.Module:
    torch.manual_seed(5)
    return ByHand(form)


def small_cnn(width: int = 2, seed: int = 0) -> nn.Sequential:
    """Two convolutions with max-pooling, for images of 8 x 8."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def lenet() -> nn.Sequential:
    """For images of 28 x 28."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class Residual(nn.Module):
    """A residual network of basic blocks: batch norm, strided skips of 1 x 1, a global average at the end."""

    def __init__(self, channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.first, self.second = self._body(width, width, 1), self._body(width, 2 * width, 2)
        self.skip = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
        self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, 5)

    @staticmethod
    def _body(fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(fan_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x, inplace=True)
        x = F.relu(self.second(x) + self.skip(x), inplace=True)
        return self.last(self.pool(x).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(6)
    return _with_statistics(Residual())


def _with_statistics(module: nn.Module) -> nn.Module:
    """``module`` with batch norms that have seen something."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            for name, low, high in (
                ("running_mean", -1, 1),
                ("running_var", 0.5, 2),
                ("weight", -2, 2),
                ("bias", -1, 1),
            ):
                if getattr(layer, name) is not None:
                    getattr(layer, name).data.uniform_(low, high)
    return module


STEPS = (
    *("conv", "same", "depthwise", "transposed", "norm", "activation", "activation", "max_pool", "max_pool", "average_pool"),
    *("skip", "concatenate", "swap", "linear", "crop", "halves", "pad", "upsample", "clamp", "mean", "product", "maximum"),
)  # fmt: skip


class Random(nn.Module):
    """``steps`` of STEPS, their details drawn by ``seed``; images of 2 x 6 x 5 at first. A step that does not fit is left out."""

    def __init__(self, steps: tuple[str, ...], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self._random = random.Random(seed)
        self.steps: list[tuple[str, list[int]]] = []
        self.layers = nn.ModuleDict()
        shape = (2, 6, 5)
        for step in steps:
            shape = self._add(step, shape)
        head = self._random.choice(["flatten", "average", "maximum"])
        self.steps.append((head, []))
        self.hidden = nn.Linear(shape[0] * shape[1] * shape[2] if head == "flatten" else shape[0], 4)
        self.last = nn.Linear(4, 3)
        del self._random

    def _add(self, step: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        draw, (channels, height, width) = self._random.choice, shape
        smallest, numbers, layer = min(height, width), [], nn.Identity()
        if step == "conv":
            layer = nn.Conv2d(
                channels, draw([1, 2, 4]), draw([1, 2, 3]), draw([1, 2]), draw([0, 1]), draw([1, 2]), bias=draw([True, False])
            )  # fmt: skip
        elif step == "same":
            layer = nn.Conv2d(channels, draw([2, 3]), draw([2, 3]), padding="same")
        elif step == "depthwise":
            layer = nn.Conv2d(channels, 2 * channels, 2, padding=1, groups=channels)
        elif step == "transposed":
            groups = draw([1, channels])
            layer = nn.ConvTranspose2d(
                channels, channels, draw([2, 3]), 2, 1, output_padding=1, groups=groups
            )
        elif step == "norm":
            layer = _with_statistics(nn.BatchNorm2d(channels, affine=draw([True, False])))
        elif step == "activation":
            layer = ACTIVATIONS[draw(sorted(ACTIVATIONS))]()
        elif step == "max_pool":
            layer = nn.MaxPool2d(
                draw([2, 3, (1, 2)]),
                draw([1, 2]),
                draw([0, 0, 1]),
                draw([1, 1, 2]),
                ceil_mode=draw([True, False]),
            )
            if layer.kernel_size == (1, 2):
                layer.padding = 0
        elif step == "average_pool":
            layer = nn.AvgPool2d(
                draw([2, 3]), draw([1, 2]), draw([0, 1]), draw([True, False]), draw([True, False])
            )
        elif step == "skip":
            layer = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))
        elif step == "concatenate":
            layer = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Tanh())
        elif step == "linear":
            layer = nn.Linear(width, draw([2, 3]), bias=draw([True, False]))
        elif step == "crop":
            numbers = [draw([0, 1]), draw([1, 2])]
        elif step == "halves":
            numbers = [channels // 2]
        elif step == "pad":
            numbers = [draw([0, 1, 2]), draw([0, 1]), draw([0, 2])]
        elif step == "clamp":
            numbers = [draw([-1, 0]), draw([1, 6])]
        elif step == "product":
            layer = nn.Embedding(channels, width)  # a table of numbers for each channel and column
            layer.weight.data = layer.weight.data[:, None, :]
        if channels * height * width > 200 and step in (
            "transposed",
            "upsample",
            "pad",
            "concatenate",
            "depthwise",
        ):
            return shape
        if smallest < 3 and step in ("crop", "max_pool", "average_pool", "conv"):
            return shape
        if channels % 2 and step == "halves":
            return shape
        name = f"step{len(self.steps)}"
        self.layers[name] = layer
        self.steps.append((step, numbers))
        with torch.no_grad():
            try:
                found = self.eval().apply_step(len(self.steps) - 1, torch.zeros(1, *shape))
            except RuntimeError:  # the window is larger than what is left
                self.steps.pop()
                del self.layers[name]
                return shape
        return tuple(found.shape[1:])

    def apply_step(self, number: int, x: Tensor) -> Tensor:
        step, numbers = self.steps[number]
        layer = self.layers[f"step{number}"]
        if step == "skip":
            return x + layer(x)
        if step == "concatenate":
            return torch.cat([layer(x), x], dim=1)
        if step == "swap":
            return x.transpose(2, 3)
        if step == "crop":
            return x[:, :, numbers[0] :, :: numbers[1]]
        if step == "halves":
            first, second = x.chunk(2, dim=1)
            return torch.cat([second, -first], dim=1)
        if step == "pad":
            return F.pad(x, (numbers[0], numbers[1], numbers[2], 0))
        if step == "upsample":
            return F.interpolate(x, scale_factor=2)
        if step == "clamp":
            return x.clamp(*numbers)
        if step == "mean":
            return x - 0.5 * x.mean((2, 3), keepdim=True)
        if step == "product":
            return x * layer.weight
        if step == "maximum":
            return torch.maximum(x, x.flip(3))
        return layer(x)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(len(self.steps) - 1):
            x = self.apply_step(number, x)
        head = self.steps[-1][0]
        if head == "flatten":
            x = x.flatten(1)
        else:
            x = x.mean((2, 3)) if head == "average" else x.amax((2, 3))
        return self.last(torch.relu(self.hidden(x)))


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(torch.relu(x)).cumsum(1)


def unsupported() -> nn.Module:
    return Unsupported()


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if x.sum() > 0 else x


def data_dependent() -> nn.Module:
    return DataDependent()


def not_a_module() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("no such checkpoint")


def constant_data(split: str) -> tuple[object, object]:
    """DATA as a function: 12 samples of 6 uint8 values, with classes."""
    import numpy as np

    values = np.random.default_rng(0 if split == "train" else 1).integers(0, 256, (12, 2, 3), dtype=np.uint8)
    return values, np.arange(12) % 3


def export(
    module: nn.Module, path: Path, sample: tuple[int, ...], dynamo: bool = False, fixed: bool = False
) -> Path:
    """``module`` as ONNX, by the classic or the dynamo exporter; ``fixed`` for a batch of 4 and no other."""
    example = (torch.zeros((4 if fixed else 2, *sample)),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = None if fixed else ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                module.eval(), example, str(path), dynamo=True, dynamic_shapes=shapes, verbose=False
            )
        else:
            axes = None if fixed else {"x": {0: "batch"}}
            torch.onnx.export(
                module.eval(), example, str(path), dynamo=False, input_names=["x"], dynamic_axes=axes
            )
    return path


def hand_made(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, object],
    sample: tuple[int | str, ...] = (4,),
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """An ONNX file with the input x and the output y."""
    import numpy as np

    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["batch", *sample])],
        [helper.make_tensor_value_info(name, kind, ["batch", "width"]) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path
