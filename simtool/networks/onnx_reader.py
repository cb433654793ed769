"""The ONNX reader: the file is translated into a program, and run by ONNX Runtime with extra graph outputs.

Exposing an activation's input and output as graph outputs also keeps ONNX Runtime from fusing them away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from simtool.errors import FormatError, InputError, UnsupportedOperator
from simtool.importing import describe
from simtool.networks import onnx_biases, onnx_recurrent, patterns
from simtool.networks.graph import Graph
from simtool.networks.inputs import (
    PROBE_SAMPLES,
    in_pieces,
    probe_batch,
    probe_batches,
    table_rows,
    whole_numbers,
)
from simtool.networks.layouts import Layout, fixed_layout, layout_of
from simtool.networks.network import Recorded, shaped
from simtool.networks.onnx_noise import noisy
from simtool.networks.onnx_program import Translator
from simtool.networks.onnx_session import FLOATS, WHOLE, opened, opset
from simtool.networks.onnx_tensors import changed_model
from simtool.networks.outline import Outline, outline
from simtool.networks.program import Program

_MIN_OPSET = 9
_MOST_VALUES = 2**24  # of one sample: an image of 4096 x 4096


class OnnxNetwork:
    """An ONNX network as it was understood; ``run`` records every activation's input and output."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: str,
        input_shape: tuple[int, ...] | None,
        sha256: str,
        like: Outline | None = None,
    ) -> None:
        self._model = model
        self._asked_shape = input_shape
        self.sha256 = sha256
        runner = Runner(model, network, input_shape)
        # Recurrent nodes are written out for the program; what the file itself holds stays as it is.
        runner.model, kept = onnx_recurrent.unrolled(onnx_biases.apart(model), runner.sizes)
        translator = Translator(runner.model, network, runner.input, runner.zeros, kept)
        program = translator.program()
        runner.rows = table_rows(program)
        patterns.rewrite(program)
        layouts = runner.layouts(program) if like is None else like.layouts
        own, picks = translator.own, translator.picks
        self.outline = outline(program, layouts, own, picks, runner.shape, network, runner, like)
        self._own = translator.own
        self._runner = runner
        self.description: dict[str, Any] = {
            "network": network,
            "format": "onnx",
            "opset": opset(model),
            "input_shape": list(runner.shape),
        }

    @property
    def graph(self) -> Graph:
        return self.outline.graph

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.outline.input_shape

    @property
    def output_size(self) -> int:
        return self.outline.output_size

    def run(self, inputs: np.ndarray) -> Recorded:
        """Run float32 ``inputs`` (k, *input_shape)."""
        return self.outline.recorded(self.tensors(inputs, self.outline.wanted()))

    def tensors(self, inputs: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The tensors ``names`` of the program for ``inputs`` (k, *input_shape), the samples first: (k * factor, ...)."""
        asked = list(dict.fromkeys(names))
        run = self._runner
        return in_pieces(
            shaped(inputs, self.input_shape),
            run.fixed_batch,
            lambda batch: self.outline.samples_first(run.run(batch, asked)),
        )

    def moved(
        self, inputs: np.ndarray, names: list[str]
    ) -> tuple[dict[str, np.ndarray], Callable[[Mapping[str, np.ndarray]], np.ndarray]]:
        """The tensors ``names`` as the program holds them for ``inputs``, and what gives the outputs with noise added to them."""
        run, output = self._runner, self.outline.output_tensor
        values = run.values(shaped(inputs, self.input_shape))
        own = run.run(values, names)
        kind = onnx.helper.np_dtype_to_tensor_dtype(own[names[0]].dtype)
        found = noisy(run.model, run.input, names, output, kind, run.network)
        return own, lambda noise: found(values, noise)

    @property
    def takes_whole_numbers(self) -> bool:
        return self._runner.dtype.kind != "f"

    def weights(self) -> dict[str, np.ndarray]:
        """Its own tensors by their names in the file."""
        return dict(self._own)

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> OnnxNetwork:
        """The same network with the tensors ``changed`` in the place of its own."""
        model = self.changed_model(changed)
        return OnnxNetwork(model, self._runner.network, self._asked_shape, self.sha256, self.outline)

    def changed_model(self, changed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The file's content with the tensors ``changed`` in the place of its own; nothing else differs."""
        return changed_model(self._model, changed, self._runner.network)


class Runner:
    """A model with its sessions; ``model`` may be one that computes the same, written out."""

    def __init__(self, model: onnx.ModelProto, network: str, asked: tuple[int, ...] | None) -> None:
        value = _only_input(model, network)
        kind = value.type.tensor_type.elem_type
        dtype = FLOATS.get(kind) or WHOLE.get(kind)
        if dtype is None:
            raise UnsupportedOperator(
                f"{network}: the input {value.name!r} is of type {onnx.TensorProto.DataType.Name(kind)}; float, double, int32 or int64 is "
                "needed."
            )
        self.dtype = np.dtype(dtype)
        self.model = model
        self.network = network
        self.input = value.name
        self.rows: int | None = None
        self.fixed_batch, self.shape = _input_shape(value, network, asked)
        if prod(self.shape) * (self.fixed_batch or 1) > _MOST_VALUES:
            raise InputError(
                f"{network} takes {self.fixed_batch or 1} sample(s) of shape {self.shape} at once; at most {_MOST_VALUES} "
                "values are taken. Export it with an open batch size, or check its input."
            )
        self._sessions: dict[tuple[str, ...], Any] = {}

    def batches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Two batches of random samples that differ in sample 1, None for a network that takes one sample at a time."""
        return probe_batches(self.shape, self.dtype, self.rows, self.fixed_batch or PROBE_SAMPLES)

    def batch(self) -> np.ndarray:
        """A batch of random samples."""
        return probe_batch(self.shape, self.dtype, self.rows, self.fixed_batch)

    def changed(self, tensors: Mapping[str, np.ndarray]) -> Runner:
        """It with ``tensors`` in the place of its own."""
        other = copy(self)
        other.model, other._sessions = changed_model(self.model, tensors, self.network), {}
        return other

    def values(self, batch: np.ndarray) -> np.ndarray:
        """``batch`` in the type that the network takes."""
        values = batch if self.dtype.kind == "f" else whole_numbers(batch, self.rows, self.network)
        return values.astype(self.dtype)

    def run(self, batch: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        """The tensors ``names`` for ``batch`` (k, *shape), as the program holds them."""
        values = self.values(batch)
        asked = tuple(name for name in dict.fromkeys(names) if name != self.input)
        if asked not in self._sessions:
            self._sessions[asked] = self._open(asked)
        try:
            found = self._sessions[asked].run(list(asked), {self.input: values}) if asked else []
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"{self.network} failed in ONNX Runtime on {len(values)} samples of shape {self.shape}: {error}"
            ) from error
        result = dict(zip(asked, found, strict=True))
        return {**result, self.input: values} if self.input in names else result

    def zeros(self, names: list[str], batch: int) -> list[np.ndarray] | None:
        """The tensors ``names`` for ``batch`` samples of zeros (a fixed batch stays what it is), None where it cannot be run."""
        try:
            return self._zeros(names, batch)
        except Exception:  # what is wrong is said where the shapes of all tensors are found
            return None

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor ``name`` for the probe's batch, None where it cannot be run."""
        found = self.zeros([name], PROBE_SAMPLES)
        return None if found is None else tuple(found[0].shape)

    def layouts(self, program: Program) -> dict[str, Layout | None]:
        """Where each tensor has its samples, found by running batches of zeros of two sizes."""
        names = [op.output for op in program.ops]
        found: dict[str, Layout | None] = {self.input: Layout(self.shape)}
        if not names:
            return found
        try:
            first = [tuple(value.shape) for value in self._zeros(names, PROBE_SAMPLES)]
        except Exception as error:  # onnxruntime's exceptions share no base class
            program.refuse_unknown(self.network)  # may say more
            raise InputError(
                f"{self.network} cannot be run on samples of shape {self.shape}: {error}. Pass --input-shape."
            ) from error
        second = None if self.fixed_batch else self.zeros(names, PROBE_SAMPLES + 2)
        if second is None:
            size = self.fixed_batch or PROBE_SAMPLES
            return found | {name: fixed_layout(shape, size) for name, shape in zip(names, first, strict=True)}
        sizes = (PROBE_SAMPLES, PROBE_SAMPLES + 2)
        for name, small, large in zip(names, first, second, strict=True):
            found[name] = layout_of(small, tuple(large.shape), sizes)
        return found

    def _zeros(self, names: list[str], batch: int) -> list[np.ndarray]:
        zeros = np.zeros((self.fixed_batch or batch, *self.shape), dtype=self.dtype)
        values: list[np.ndarray] = self._open(names, limited=True).run(names, {self.input: zeros})
        return values

    def _open(self, names: Iterable[str], limited: bool = False) -> Any:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self.model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return opened(exposed, self.network, limited)


def _only_input(model: onnx.ModelProto, network: str) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise UnsupportedOperator(
            f"{network} has {len(inputs)} inputs and {len(model.graph.output)} outputs; exactly one of each is needed."
        )
    return inputs[0]


def _input_shape(
    value: onnx.ValueInfoProto, network: str, asked: tuple[int, ...] | None
) -> tuple[int | None, tuple[int, ...]]:
    """(fixed batch size or None, one sample's shape)."""
    if not value.type.tensor_type.HasField("shape") or not value.type.tensor_type.shape.dim:
        if asked is None:
            raise InputError(f"{network} does not declare the shape of its input. Pass --input-shape.")
        return None, asked
    first, *rest = value.type.tensor_type.shape.dim
    declared = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in rest)
    fixed = first.dim_value if first.HasField("dim_value") and first.dim_value > 0 else None
    if asked is not None:
        if len(asked) != len(declared) or any(
            d not in (None, a) for d, a in zip(declared, asked, strict=True)
        ):
            raise InputError(
                f"--input-shape {asked} does not fit the input {declared} that {network} declares."
            )
        return fixed, asked
    if any(dim is None or dim <= 0 for dim in declared):
        raise InputError(
            f"{network} declares samples of shape {declared}, with open dimensions. Pass --input-shape."
        )
    return fixed, tuple(int(dim) for dim in declared if dim is not None)


def read_onnx(path: Path, input_shape: tuple[int, ...] | None) -> OnnxNetwork:
    """The network in ``path``. Raises InputError, FormatError or UnsupportedOperator."""
    if not path.is_file():
        raise InputError(f"the network {path} does not exist. Check the path.")
    try:
        onnx.checker.check_model(str(path))  # by path: weights may lie in files beside it
        model = onnx.load(path)
    except Exception as error:  # protobuf, checker and file errors alike
        raise FormatError(f"{path} is not a valid ONNX file: {' '.join(str(error).split())[:400]}") from error
    if opset(model) < _MIN_OPSET:
        raise UnsupportedOperator(
            f"{path} uses opset {opset(model)}; {_MIN_OPSET} or newer is needed. Export it again, or convert it with "
            "onnx.version_converter."
        )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    digest = hashlib.sha256(path.read_bytes())
    for tensor in model.graph.initializer:  # weights may lie in files beside it
        try:
            digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
        except Exception as error:  # onnx's own checker lets some tensors pass that its reader refuses
            raise FormatError(
                f"{path}: the weights {tensor.name!r} cannot be read: {describe(error)}. Export it again."
            ) from error
    return OnnxNetwork(model, str(path), input_shape, digest.hexdigest())
