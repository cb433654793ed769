"""What a states file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from simtool import blocks as blocks_module
from simtool import hdf5, layers
from simtool.blocks import Block
from simtool.errors import FormatError
from simtool.layers import LayerSpec


@dataclass(frozen=True)
class StatesHeader:
    """Everything about a states file that is not an array.

    Attributes
    ----------
    samples, inputs, states, outputs : m, p (rows of U, the bias included), n, q
    blocks, output_parents, output_map, has_bias : the layers, what feeds Y, what follows Y, whether U's last row is 1
    input_shape : one sample as the network takes it
    seed : of the choice of samples
    rescale : none, uniform, layer or neuron
    baseline_nnz, baseline_bytes : non-zero explicit parameters of the network; 4 bytes times all of them
    network_sha256, data_sha256, network, data : what was run on what, and how both were loaded
    max_reconstruction_error : of X = phi(Z), relative to max(1, max|Z|)
    input_range : smallest and largest input value
    sensitivity_samples : how many samples ``sensitivity`` averages over
    whole : every state of the network is in the file; where not (--blocks, or a network that is no affine graph), there is no teacher
    layers : the linear layers whose weights are shared over positions, with rows of their own
    carried_nnz : of ``baseline_nnz``, what belongs to no layer: it stays as it is
    """

    samples: int
    inputs: int
    states: int
    outputs: int
    blocks: tuple[Block, ...]
    output_parents: tuple[str, ...]
    output_map: str | None
    has_bias: bool
    input_shape: tuple[int, ...]
    seed: int
    rescale: str
    baseline_nnz: int
    baseline_bytes: int
    network_sha256: str
    data_sha256: str
    network: dict[str, Any]
    data: dict[str, Any]
    max_reconstruction_error: float
    input_range: tuple[float, float]
    sensitivity_samples: int = 0
    whole: bool = True
    layers: tuple[LayerSpec, ...] = ()
    carried_nnz: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form stored in the file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("blocks", "layers")}
        blocks = json.loads(blocks_module.to_json(self.blocks))
        return {**plain, "blocks": blocks, "layers": [layer.to_json() for layer in self.layers]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> StatesHeader:
        """The inverse of :meth:`to_json`. Raises FormatError."""
        try:
            low, high = content["input_range"]
            counts = {
                name: int(content[name])
                for name in ("samples", "inputs", "states", "outputs", "seed", "baseline_nnz", "baseline_bytes", "sensitivity_samples")
            }  # fmt: skip
            output_map = content["output_map"]
            header = cls(
                **counts,
                blocks=blocks_module.from_json(json.dumps(content["blocks"])),
                output_parents=tuple(str(name) for name in content["output_parents"]),
                output_map=None if output_map is None else str(output_map),
                has_bias=bool(content["has_bias"]),
                input_shape=tuple(int(size) for size in content["input_shape"]),
                rescale=str(content["rescale"]),
                network_sha256=str(content["network_sha256"]),
                data_sha256=str(content["data_sha256"]),
                network=dict(content["network"]),
                data=dict(content["data"]),
                max_reconstruction_error=float(content["max_reconstruction_error"]),
                input_range=(float(low), float(high)),
                # Files written before layers were known have none of these.
                whole=bool(content.get("whole", True)),
                layers=layers.from_json(content.get("layers", [])),
                carried_nnz=int(content.get("carried_nnz", 0)),
            )
        except hdf5.DAMAGE as error:
            raise FormatError(
                f"the header of {path} cannot be used ({type(error).__name__}: {error}). Extract the states again."
            ) from error
        blocks_module.check(header.blocks, header.states, header.output_parents)
        if header.output_map not in (None, "softmax", "log_softmax", "sigmoid"):
            raise FormatError(f"{path} names the unknown output map {header.output_map!r}.")
        if min(header.samples, header.inputs, header.outputs, header.states or len(header.layers)) < 1:
            raise FormatError(
                f"{path} claims an empty array; samples, inputs, states and outputs must all be above 0."
            )
        if (
            min(header.input_shape, default=1) < 1
            or prod(header.input_shape) + header.has_bias != header.inputs
        ):
            raise FormatError(
                f"{path}: the input shape {header.input_shape} does not give {header.inputs} rows of U."
            )
        return header
