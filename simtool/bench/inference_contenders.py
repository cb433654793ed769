"""Who runs the model: our plan, dense layers in PyTorch and ONNX Runtime, CSR in scipy, and the float64 reference.

All run the same weights in float32 (but the reference), in one thread, on inputs that lie as each of them wants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from simtool.environment import package_version
from simtool.inference import InferencePlan
from simtool.inference.schedule import schedule
from simtool.model import ImplicitModel

OURS, TORCH, ONNX, SCIPY, REFERENCE = "simtool", "torch", "onnxruntime", "scipy", "predict"
NAMES = (OURS, TORCH, ONNX, SCIPY, REFERENCE)
LABELS = {
    OURS: "simtool CSR",
    TORCH: "torch, dense",
    ONNX: "ONNX Runtime, dense",
    SCIPY: "scipy CSR",
    REFERENCE: "ImplicitModel.predict, float64",
}
Call = Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class Contender:
    """``prepare`` (k, size) float32 inputs to a call that returns outputs (k, q); ``reason`` where there is none."""

    name: str
    version: str | None
    prepare: Callable[[np.ndarray], Call] | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """phi(weight [pieces] + bias): ``pieces`` are numbers of earlier layers, 0 being the input; ``spec`` names phi."""

    pieces: tuple[int, ...]
    weight: sparse.csr_array
    bias: np.ndarray
    spec: str


def layers(model: ImplicitModel) -> tuple[Layer, ...]:
    """The acyclic ``model`` as layers, one a step of the schedule and activation; the last makes Y."""
    made = schedule(model)
    starts, ends = [0], [made.inputs]
    names = [b.activation.spec for b in model.blocks for _ in range(b.size)]
    specs = [*(names[state] for state in made.states), *["identity"] * model.q]
    found = []
    for step in made.steps:
        cuts = [i for i in range(step.first + 1, step.last) if specs[i] != specs[i - 1]]
        for first, last in zip([step.first, *cuts], [*cuts, step.last], strict=True):
            rows = made.matrix[first:last]
            used = np.unique(rows.indices)
            pieces = tuple(
                i
                for i, (a, b) in enumerate(zip(starts, ends, strict=True))
                if ((used >= a) & (used < b)).any()
            ) or (0,)
            weight = sparse.hstack([rows[:, starts[i] : ends[i]] for i in pieces], format="csr")
            weight = sparse.csr_array(weight, dtype=np.float32)
            found.append(Layer(pieces, weight, made.bias[first:last].astype(np.float32), specs[first]))
        for first, last in zip([step.first, *cuts], [*cuts, step.last], strict=True):
            starts.append(made.inputs + first)
            ends.append(made.inputs + last)
    return tuple(found)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch in one thread inside the block."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contenders(model: ImplicitModel, wanted: tuple[str, ...] = NAMES) -> list[Contender]:
    """All of ``wanted``; one that is not installed or cannot run the model stays, with its reason."""
    build = {OURS: _ours, TORCH: _torch, ONNX: _onnx, SCIPY: _scipy, REFERENCE: _reference}
    package = {OURS: "simtool", TORCH: "torch", ONNX: "onnxruntime", SCIPY: "scipy", REFERENCE: "simtool"}
    found = []
    for name in wanted:
        version = package_version(package[name])
        try:
            found.append(Contender(name, version, build[name](model)))
        except ImportError as error:
            found.append(Contender(name, version, None, f"not installed ({error.name})"))
        except Exception as error:  # whatever a peer raises: it is the peer's line in the table
            if name == OURS:
                raise
            found.append(Contender(name, version, None, f"{type(error).__name__}: {error}"[:200]))
    return found


def _ours(model: ImplicitModel) -> Callable[[np.ndarray], Call]:
    plan = InferencePlan(model)
    return lambda inputs: functools.partial(plan.predict, inputs)


def _reference(model: ImplicitModel) -> Callable[[np.ndarray], Call]:
    return lambda inputs: functools.partial(model.predict, inputs)


def _torch(model: ImplicitModel) -> Callable[[np.ndarray], Call]:
    import torch
    from torch import nn

    from simtool.export.torch_module import activate

    def linear(layer: Layer) -> nn.Linear:
        rows, columns = layer.weight.shape
        made = nn.utils.skip_init(nn.Linear, columns, rows)
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(layer.weight.toarray()))
            made.bias.copy_(torch.from_numpy(layer.bias))
        return made

    class Activation(nn.Module):
        def __init__(self, spec: str) -> None:
            super().__init__()
            self.spec = spec

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return activate(self.spec, z)

    class Dag(nn.Module):
        """Layers that read several earlier ones."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(module(layer) for layer in order)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            values = [inputs]
            for layer, part in zip(order, self.parts, strict=True):
                values.append(part(torch.cat([values[i] for i in layer.pieces], 1)))
            return values[-1]

    def module(layer: Layer) -> nn.Module:
        if layer.spec == "identity":
            return linear(layer)
        return nn.Sequential(linear(layer), nn.ReLU() if layer.spec == "relu" else Activation(layer.spec))

    order = layers(model)
    chain = all(layer.pieces == (i,) for i, layer in enumerate(order))
    # The plain form, in which torch has the least to do between its products.
    network = (nn.Sequential(*map(module, order)) if chain else Dag()).eval()

    def prepare(inputs: np.ndarray) -> Call:
        tensor = torch.from_numpy(inputs)

        def call() -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(network(tensor).numpy())

        return call

    return prepare


def _onnx(model: ImplicitModel) -> Callable[[np.ndarray], Call]:
    import onnxruntime

    from simtool.export.onnx_model import to_onnx

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        to_onnx(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def prepare(inputs: np.ndarray) -> Call:
        fed = {name: inputs.reshape(len(inputs), *model.input_shape)}
        return lambda: np.asarray(session.run(None, fed)[0])

    return prepare


def _scipy(model: ImplicitModel) -> Callable[[np.ndarray], Call]:
    from simtool import activations

    order = [(layer, layer.bias[:, None], activations.parse(layer.spec)) for layer in layers(model)]

    def prepare(inputs: np.ndarray) -> Call:
        columns = np.ascontiguousarray(inputs.T)  # as its product wants them; not timed

        def call() -> np.ndarray:
            values: list[Any] = [columns]
            for layer, bias, activation in order:
                pieces = [values[i] for i in layer.pieces]
                z = layer.weight @ (pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                z += bias
                values.append(activation(z))
            return np.asarray(values[-1].T)

        return call

    return prepare
