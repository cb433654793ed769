"""An acyclic implicit model as a PyTorch program (.pt2): dense layers in the order of the plan, no simtool needed to run it.

A program is a fixed list of operators, so that a fixed point, whose iterations depend on the data, has no place in one.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simtool.errors import InputError
from simtool.export.plan import FROM_INPUT, plan, values
from simtool.export.torch_module import OUTPUT_MAPS, activate
from simtool.model import ImplicitModel

MARK = "simtool.json"  # among the archive's extra files, of which it says who wrote it


class _Layers(nn.Module):
    """Every step as one dense affine map and its activations."""

    def __init__(self, model: ImplicitModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_size = model.p - int(model.has_bias)
        self.output_map = model.output_map
        self.sources: list[tuple[int, ...]] = []
        self.pieces: list[tuple[tuple[str, int], ...]] = []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        steps = plan(model)
        for step in steps:
            own, driving = (model.C, model.D) if step is steps[-1] else (model.A, model.B)
            shape = (step.size, step.width)
            weight = values(own, step.states, shape) + values(driving, step.inputs, shape)
            bias = values(driving, step.bias, (step.size, 1)).reshape(-1)
            self.weights.append(nn.Parameter(torch.tensor(weight, dtype=dtype)))
            self.biases.append(nn.Parameter(torch.tensor(bias, dtype=dtype)))
            self.sources.append(step.sources)
            self.pieces.append(tuple((activation.spec, size) for activation, size in step.pieces))

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.reshape(inputs.shape[0], self.input_size)
        found: list[Tensor] = []
        z = flat
        for number, sources in enumerate(self.sources):
            bias = self.biases[number]
            if sources:
                parts = [flat if source == FROM_INPUT else found[source] for source in sources]
                side = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
                z = nn.functional.linear(side, self.weights[number], bias)
            else:  # the same for every sample
                z = bias.expand(flat.shape[0], bias.shape[0])
            pieces = self.pieces[number]
            if pieces:
                split = z.split([size for _, size in pieces], dim=1)
                done = [activate(spec, part) for (spec, _), part in zip(pieces, split, strict=True)]
                found.append(done[0] if len(done) == 1 else torch.cat(done, dim=1))
        return OUTPUT_MAPS[self.output_map](z)


def write_program(model: ImplicitModel, path: Path, dtype: str = "float32") -> None:
    """Write ``model`` as a .pt2 archive from (batch, *input_shape) to (batch, q), any batch size.

    Raises InputError for a model with a cycle.
    """
    if any(component.cyclic for component in model.components):
        raise InputError(
            "this model has cycles: its states are a fixed point, which a .pt2 program cannot hold. Export .onnx (it has a "
            "loop), or use simtool.to_torch(model) in Python."
        )
    number = torch.float32 if dtype == "float32" else torch.float64
    layers = _Layers(model, number).eval().requires_grad_(False)
    example = torch.zeros((2, *model.input_shape), dtype=number)
    program = torch.export.export(
        layers, (example,), dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}}
    )
    said = json.dumps(
        {"made_by": "simtool export", "nnz": model.parameters, "baseline_nnz": model.baseline_nnz}
    )
    archive = io.BytesIO()  # so that a full disk is an OSError
    torch.export.save(program, archive, extra_files={MARK: said})
    path.write_bytes(archive.getbuffer())


def program_runner(path: Path) -> Any:
    """A function from inputs (k, *input_shape) to the outputs of the .pt2 file ``path``.

    Only for a file that this process wrote: loading a .pt2 can run code.
    """
    with path.open("rb") as file:
        program = torch.export.load(file)
    module = program.module()
    number = next(iter(program.state_dict.values())).dtype

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(inputs).to(number)).numpy())

    return run
