"""A network's program in a file, so that its implicit form can be made with other weights where the network itself is not at hand.

Operators are words and numbers, constants are arrays: nothing in the file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from simtool import activations, hdf5
from simtool.activations import Activation
from simtool.errors import FormatError
from simtool.layers import LayerSpec
from simtool.networks.graph import Graph
from simtool.networks.layers import Layer
from simtool.networks.layouts import Layout
from simtool.networks.operators import Shape
from simtool.networks.program import Op, Program
from simtool.networks.symbolic import Interpreter
from simtool.networks.symbolic.interpreter import RULES

GROUP = "program"
_TEXT, _CONSTANTS = "operators", "constants"
_KINDS = frozenset({*RULES, "map"})


@dataclass(frozen=True)
class StoredProgram:
    """A program, where the samples lie in each of its tensors, and for each layer its uses as (operator's output, result)."""

    program: Program
    layouts: dict[str, Layout | None]
    input_shape: Shape
    uses: tuple[tuple[tuple[str, str], ...], ...]

    def graph(self, layers: Sequence[LayerSpec], matrices: Sequence[Any]) -> Graph:
        """The network with the rows ``matrices`` (tables, or (rows, features)) of its ``layers`` in the place of its own.

        Raises FormatError where the layers are not those of this program.
        """
        if len(layers) != len(self.uses):
            raise FormatError(
                f"{len(layers)} layers for a program of {len(self.uses)}. Extract the states again."
            )
        constants = dict(self.program.constants)
        by_output = {op.output: op for op in self.program.ops}
        try:
            for spec, matrix, uses in zip(layers, matrices, self.uses, strict=True):
                for output, result in uses:
                    _replace(constants, spec, matrix, by_output[output], by_output[result])
            changed = Program(self.program.ops, constants, self.program.input, self.program.output)
            return Interpreter(changed, self.layouts, self.input_shape).run()
        except hdf5.DAMAGE as error:
            raise FormatError(
                f"the stored program cannot be followed ({type(error).__name__}: {error}). Extract the states again."
            ) from error


def _replace(constants: dict[str, np.ndarray], spec: LayerSpec, rows: Any, op: Op, result: Op) -> None:
    matrix = spec.compact(rows)
    weight = op.inputs[1]
    if spec.kind == "linear":
        table = matrix[:, : spec.fan_in] / spec.alpha
        constants[weight] = table if op.kind == "linear" else table.T
    else:
        bias = None if spec.bias is None else np.zeros(spec.bias_shape)
        constants[weight] = spec.tensors(matrix, np.zeros(spec.weight_shape), bias)[spec.weight]
    if spec.has_bias:
        adds = op.inputs[2:3] if len(op.inputs) > 2 else [n for n in result.inputs if n in constants]
        shifted = matrix[:, -1] / spec.beta
        constants[adds[0]] = shifted.reshape(constants[adds[0]].shape)


def store(
    file: h5py.File,
    program: Program,
    layouts: Mapping[str, Layout | None],
    shape: Shape,
    layers: Sequence[Layer],
) -> None:
    """Write ``program``, of which ``layers`` were found, to ``file``."""
    used = [name for op in program.ops for name in op.inputs if name in program.constants]
    names = list(dict.fromkeys(used))
    content = {
        "input": program.input,
        "output": program.output,
        "input_shape": list(shape),
        "constants": names,
        "uses": [[[use.op.output, use.result] for use in layer.uses] for layer in layers],
        "operators": [
            {
                "kind": op.kind,
                "operator": op.operator,
                "name": op.name,
                "inputs": list(op.inputs),
                "output": op.output,
                "layout": _layout(layouts.get(op.output)),
                "attributes": {key: _encode(value) for key, value in op.attributes.items()},
            }
            for op in program.ops
        ],
    }
    group = file.create_group(GROUP)
    text = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    hdf5.write_array(group, _TEXT, np.frombuffer(text, dtype=np.uint8))
    for index, name in enumerate(names):
        hdf5.write_array(group, f"{_CONSTANTS}/{index}", program.constants[name])


def load(file: h5py.File) -> StoredProgram | None:
    """What :func:`store` wrote; None where nothing was. Raises FormatError."""
    if GROUP not in file:
        return None
    try:
        group = file[GROUP]
        content = json.loads(bytes(group[_TEXT][()]))
        constants = {
            str(name): np.asarray(group[f"{_CONSTANTS}/{index}"][()])
            for index, name in enumerate(content["constants"])
        }
        if any(not np.isfinite(value).all() for value in constants.values() if value.dtype.kind == "f"):
            raise ValueError("a constant is not finite")
        ops: list[Op] = []
        layouts: dict[str, Layout | None] = {}
        for item in content["operators"]:
            if item["kind"] not in _KINDS:
                raise ValueError(f"{item['kind']!r} is no kind of operator")
            attributes = {str(key): _decode(value) for key, value in item["attributes"].items()}
            inputs = tuple(str(name) for name in item["inputs"])
            kind, operator, name = (str(item[key]) for key in ("kind", "operator", "name"))
            ops.append(Op(kind, operator, name, inputs, str(item["output"]), attributes))
            layouts[ops[-1].output] = _layout_of(item["layout"])
        program = Program(ops, constants, str(content["input"]), str(content["output"]))
        uses = tuple(tuple((str(o), str(r)) for o, r in layer) for layer in content["uses"])
        return StoredProgram(program, layouts, tuple(int(size) for size in content["input_shape"]), uses)
    except (*hdf5.DAMAGE, RecursionError) as error:
        raise FormatError(
            f"the stored program is damaged ({type(error).__name__}: {error}). Extract the states again."
        ) from error


def _layout(layout: Layout | None) -> list[Any] | None:
    return None if layout is None else [list(layout.shape), layout.axis, layout.outer, layout.inner]


def _layout_of(stored: Any) -> Layout | None:
    if stored is None:
        return None
    shape, *rest = stored
    return Layout(tuple(int(size) for size in shape), *(int(part) for part in rest))


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Activation):
        return {"activation": value.spec}
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, np.ndarray):
        return {"array": [_encode(part) for part in value.reshape(-1).tolist()], "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        return [_encode(part) for part in value]
    raise TypeError(f"an attribute of type {type(value).__name__} has no form in a file")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(part) for part in value)
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float.fromhex(value["float"])
    if "activation" in value:
        return activations.parse(str(value["activation"]))
    if "slice" in value:
        return slice(*(_decode(part) for part in value["slice"]))
    return np.array([_decode(part) for part in value["array"]]).reshape([int(s) for s in value["shape"]])
