"""Small networks that the readers' tests share; each factory is also a NETWORK, ``tests/networks_zoo.py:name``."""

from __future__ import annotations

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
