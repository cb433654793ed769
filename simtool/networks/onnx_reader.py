"""The ONNX reader: the file is translated into a program, and run by ONNX Runtime with extra graph outputs.

Exposing an activation's input and output as graph outputs also keeps ONNX Runtime from fusing them away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from onnx import numpy_helper

from simtool.errors import FormatError, InputError, UnsupportedOperator
from simtool.importing import describe
from simtool.networks import onnx_layers, onnx_ops, onnx_shapes, patterns
from simtool.networks.graph import Graph
from simtool.networks.network import Recorded, shaped
from simtool.networks.outline import outline
from simtool.networks.program import Op, Program

_MIN_OPSET = 9
_PROBE_BATCH = 3
# What loading may take beside the file, in memory.
_PROBE_BYTES = 2**28
_PROBE_FACTOR = 8
_MOST_VALUES = 2**24  # of one sample: an image of 4096 x 4096
_FLOATS: dict[int, type[np.floating[Any]]] = {
    int(onnx.TensorProto.FLOAT): np.float32,
    int(onnx.TensorProto.DOUBLE): np.float64,
}


class OnnxNetwork:
    """An ONNX network with its graph; ``run`` records every activation's input and output."""

    def __init__(
        self, model: onnx.ModelProto, network: str, input_shape: tuple[int, ...] | None, sha256: str
    ) -> None:
        self._network = network
        self._model = model
        self._asked_shape = input_shape
        value = _only_input(model, network)
        self._input = value.name
        self._dtype = _FLOATS.get(value.type.tensor_type.elem_type)
        if self._dtype is None:
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            raise UnsupportedOperator(
                f"{network}: the input {value.name!r} is of type {kind}; float or double is needed."
            )
        self._fixed_batch, self.input_shape = _input_shape(value, network, input_shape)
        if prod(self.input_shape) * (self._fixed_batch or 1) > _MOST_VALUES:
            raise InputError(
                f"{network} takes {self._fixed_batch or 1} sample(s) of shape {self.input_shape} at once; at most {_MOST_VALUES} "
                "values are taken. Export it with an open batch size, or check its input."
            )
        translator = _Translator(model, network, self._input, self._probe)
        program = translator.program()
        patterns.rewrite(program)
        self.outline = outline(program, self._shapes(program), translator.own, self.input_shape, network)
        self._own = translator.own
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}
        self.sha256 = sha256
        self.description: dict[str, Any] = {
            "network": network,
            "format": "onnx",
            "opset": _opset(model),
            "input_shape": list(self.input_shape),
        }

    @property
    def graph(self) -> Graph:
        return self.outline.graph

    @property
    def output_size(self) -> int:
        return self.outline.output_size

    def run(self, inputs: np.ndarray) -> Recorded:
        """Run float32 ``inputs`` (k, *input_shape)."""
        return self.outline.recorded(self.tensors(inputs, self.outline.wanted()))

    def tensors(self, inputs: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The tensors ``names`` of the program for ``inputs`` (k, *input_shape), each (k, ...)."""
        batch = shaped(inputs, self.input_shape).astype(self._dtype)
        asked = tuple(name for name in dict.fromkeys(names) if name != self._input)
        if asked not in self._sessions:
            self._sessions[asked] = self._open(asked)
        values = dict(zip(asked, self._run(self._sessions[asked], list(asked), batch), strict=True))
        return {**values, self._input: batch}

    def weights(self) -> dict[str, np.ndarray]:
        """Its own tensors by their names in the file."""
        return dict(self._own)

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> OnnxNetwork:
        """The same network with the tensors ``changed`` in the place of its own."""
        return OnnxNetwork(self.changed_model(changed), self._network, self._asked_shape, self.sha256)

    def changed_model(self, changed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The file's content with the tensors ``changed`` in the place of its own; nothing else differs."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        left = set(changed)
        for tensor in model.graph.initializer:
            if tensor.name in changed:
                left.discard(tensor.name)
                tensor.CopyFrom(_replacement(tensor, changed[tensor.name]))
        for node in model.graph.node:
            if node.op_type == "Constant" and node.output[0] in changed:
                left.discard(node.output[0])
                for attribute in node.attribute:
                    if attribute.name == "value":
                        attribute.t.CopyFrom(_replacement(attribute.t, changed[node.output[0]]))
        if left:
            raise InputError(f"{self._network} has no tensors named {', '.join(sorted(left))}.")
        return model

    def _run(
        self, session: onnxruntime.InferenceSession, names: list[str], batch: np.ndarray
    ) -> list[np.ndarray]:
        if not names:
            return []
        size = self._fixed_batch or max(len(batch), 1)
        parts: list[list[np.ndarray]] = []
        for start in range(0, len(batch), size):
            piece = batch[start : start + size]
            # A network exported for a fixed batch size gets full batches; what the padding gives is dropped.
            padding = [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
            padded = np.pad(piece, padding) if self._fixed_batch else piece
            try:
                results = session.run(names, {self._input: padded})
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise InputError(
                    f"{self._network} failed in ONNX Runtime on {len(padded)} samples of shape {batch.shape[1:]}: {error}"
                ) from error
            parts.append([result[: len(piece)] for result in results])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _open(self, names: Iterable[str], limited: bool = False) -> onnxruntime.InferenceSession:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self._model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return _session(exposed, self._network, limited)

    def _probe(self, names: list[str], batch: int) -> list[np.ndarray] | None:
        """The tensors ``names`` for ``batch`` samples of zeros (a fixed batch stays what it is), None where it cannot be run."""
        zeros = np.zeros((self._fixed_batch or batch, *self.input_shape), dtype=self._dtype)
        try:
            values: list[np.ndarray] = self._open(names, limited=True).run(names, {self._input: zeros})
        except Exception:  # what is wrong is said where the shapes of all tensors are found
            return None
        return values

    def _shapes(self, program: Program) -> dict[str, tuple[int, ...] | None]:
        """Each tensor's shape per sample, found by running a batch of zeros."""
        names = [op.output for op in program.ops]
        batch = self._fixed_batch or _PROBE_BATCH
        shapes: dict[str, tuple[int, ...] | None] = {self._input: self.input_shape}
        if names:
            zeros = np.zeros((batch, *self.input_shape), dtype=self._dtype)
            session = self._open(names, limited=True)
            try:
                values = session.run(names, {self._input: zeros})
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise InputError(
                    f"{self._network} cannot be run on samples of shape {self.input_shape}: {error}. Pass --input-shape."
                ) from error
            for name, value in zip(names, values, strict=True):
                keeps = value.ndim > 0 and value.shape[0] == batch
                shapes[name] = tuple(value.shape[1:]) if keeps else None
        return shapes


def _replacement(old: onnx.TensorProto, value: np.ndarray) -> onnx.TensorProto:
    kind = onnx.helper.tensor_dtype_to_np_dtype(old.data_type)
    return numpy_helper.from_array(np.ascontiguousarray(value, dtype=kind), old.name)


def _limit_memory(size: int) -> None:
    """Let the sessions that are limited take ``size`` bytes from now on, all of them together."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    as_requested = 1  # a block is as large as what is asked for, not twice the last one
    onnxruntime.create_and_register_allocator(
        memory, onnxruntime.OrtArenaCfg({"max_mem": size, "arena_extend_strategy": as_requested})
    )


def _session(model: onnx.ModelProto, network: str, limited: bool = False) -> onnxruntime.InferenceSession:
    """``limited`` for a session on constants or few samples: a small file can ask for terabytes (Expand, Tile, Range)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    if limited:
        _limit_memory(_PROBE_BYTES + _PROBE_FACTOR * model.ByteSize())
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(f"ONNX Runtime cannot load {network}: {error}") from error


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[0]) if versions else 0


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


class _Translator:
    """ONNX nodes to a :class:`Program`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: str,
        source: str,
        probe: Callable[[list[str], int], list[np.ndarray] | None],
    ) -> None:
        self._probe = probe
        self._model = model
        self._network = network
        self._source = source
        self._constants: dict[str, np.ndarray] = {}
        self.own: dict[str, np.ndarray] = {}  # the network's own tensors of floats
        self._roots: dict[str, frozenset[str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def program(self) -> Program:
        """The program; constant sub-expressions are computed by ONNX Runtime."""
        for tensor in self._model.graph.initializer:
            self._root(tensor.name, numpy_helper.to_array(tensor))
        self._fold()
        self._constants |= onnx_shapes.fixed_values(
            onnx_shapes.shape_nodes(self._model, self._constants), self._probe
        )
        ops: list[Op] = []
        for node in self._model.graph.node:
            if node.op_type == "Split" and not node.domain:
                ops += [self._part(node, index) for index, name in enumerate(node.output) if name]
            elif node.output[0] not in self._constants:
                ops.append(self._translate(node))
                ops += [self._extra_output(node, name) for name in node.output[1:] if name]
        output = self._model.graph.output[0].name
        return Program(ops, self._constants, self._source, output, self._roots, self._sizes)

    def _root(self, name: str, value: np.ndarray) -> None:
        self._constants[name] = value
        if value.ndim > 0 and value.dtype.kind == "f":
            self._roots[name] = frozenset({name})
            self._sizes[name] = (int(np.count_nonzero(value)), int(value.size))
            self.own[name] = value

    def _fold(self) -> None:
        """Compute every node that does not depend on the input."""
        folded: list[onnx.NodeProto] = []
        for node in self._model.graph.node:
            inputs = [name for name in node.input if name]
            nested = any(
                attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for attribute in node.attribute
            )
            if (
                nested
                or len(node.output) != 1
                or any(name not in self._roots_or_constants(folded) for name in inputs)
            ):
                continue
            folded.append(node)
            roots = [self._roots.get(name, frozenset()) for name in inputs]
            self._roots[node.output[0]] = frozenset().union(*roots)
        if not folded:
            return
        names = [node.output[0] for node in folded]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for field in (model.graph.node, model.graph.output, model.graph.input, model.graph.value_info):
            del field[:]
        model.graph.node.extend(folded)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            values = _session(model, self._network, limited=True).run(names, {})
        except InputError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"the constants of {self._network} cannot be computed by ONNX Runtime: {describe(error)}. Export it again."
            ) from error
        for node, value in zip(folded, values, strict=True):
            if node.op_type == "Constant":
                self._root(node.output[0], np.asarray(value))
            else:
                self._constants[node.output[0]] = np.asarray(value)

    def _roots_or_constants(self, folded: list[onnx.NodeProto]) -> set[str]:
        return {*self._constants, *(node.output[0] for node in folded)}

    def _translate(self, node: onnx.NodeProto) -> Op:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        kind, indices, found = onnx_ops.meaning(
            node.domain, node.op_type, attributes, self._known_inputs(node)
        )
        operands = [node.input[i] for i in indices if i < len(node.input) and node.input[i]]
        if kind == "unsupported":
            operands = [name for name in node.input if name and name not in self._constants]
        elif why := self._objection(node, attributes):
            kind, found = "unsupported", {"why": why}
        if kind == "map" and found["axis"] is None:
            found["axis"] = 1 if _opset(self._model) < 13 else -1
        if found.pop("transpose", False) and operands[1] in self._constants:
            turned = f"{operands[1]}.T"
            self._constants[turned] = self._constants[operands[1]].T
            self._roots[turned] = self._roots.get(operands[1], frozenset())
            operands[1] = turned
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        return Op(kind, operator, node.name or node.output[0], tuple(operands), node.output[0], found)

    def _known_inputs(self, node: onnx.NodeProto) -> list[np.ndarray | None]:
        """The constants among the inputs; None for what is computed, empty for what is left out."""
        return [self._constants.get(name) if name else np.empty(0) for name in node.input]

    def _part(self, node: onnx.NodeProto, index: int) -> Op:
        """One of the results of a Split."""
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        inputs = self._known_inputs(node)
        kind, _, found = onnx_layers.part(attributes, inputs, len(node.output), index)
        name = node.output[index]
        return Op(kind, node.op_type, node.name or name, (node.input[0],), name, found)

    def _extra_output(self, node: onnx.NodeProto, name: str) -> Op:
        """A second output (the mask of a dropout, the indices of a pooling): nothing that is taken has one that matters."""
        values = tuple(i for i in node.input if i and i not in self._constants)
        why = {"why": f"its further output {name} is used"}
        return Op("unsupported", node.op_type, node.name or node.output[0], values, name, why)

    def _objection(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str | None:
        """Why a node that is taken in general is refused here."""
        if node.op_type == "Dropout":
            training = self._constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            if (training is not None and bool(training)) or (
                len(node.input) > 2 and node.input[2] and training is None
            ):
                return "dropout in training mode"
        if node.op_type == "Cast" and attributes.get("to") not in _FLOATS:
            return "casts to a type that is not float or double"
        return None


def read_onnx(path: Path, input_shape: tuple[int, ...] | None) -> OnnxNetwork:
    """The network in ``path``. Raises InputError, FormatError or UnsupportedOperator."""
    if not path.is_file():
        raise InputError(f"the network {path} does not exist. Check the path.")
    try:
        onnx.checker.check_model(str(path))  # by path: weights may lie in files beside it
        model = onnx.load(path)
    except Exception as error:  # protobuf, checker and file errors alike
        raise FormatError(f"{path} is not a valid ONNX file: {' '.join(str(error).split())[:400]}") from error
    if _opset(model) < _MIN_OPSET:
        raise UnsupportedOperator(
            f"{path} uses opset {_opset(model)}; {_MIN_OPSET} or newer is needed. Export it again, or convert it with "
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
