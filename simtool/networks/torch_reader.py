"""The PyTorch reader: torch.export makes a functional ATen program, which is translated and, later, run with recording.

Exporting with ``run_decompositions({})`` removes in-place writes (an in-place relu would overwrite the Z it was computed from) and
makes every use of a module that is called twice an operator of its own.
"""

from __future__ import annotations

import hashlib
import logging
import operator as operator_module
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from simtool.errors import InputError, UnsupportedOperator
from simtool.importing import describe
from simtool.networks import patterns, torch_layers, torch_ops
from simtool.networks.graph import Graph
from simtool.networks.network import Recorded, shaped
from simtool.networks.operators import Dense, Diagonal, signature
from simtool.networks.outline import Outline, outline
from simtool.networks.program import Op, Program
from simtool.networks.tracing import trace

log = logging.getLogger("simtool")


class TorchNetwork:
    """A PyTorch network as it was understood; ``run`` records every activation's input and output."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        constants: dict[str, torch.Tensor],
        found: Outline,
        dtype: torch.dtype,
        description: dict[str, Any],
    ) -> None:
        self._exported = exported
        self._constants = constants
        self._dtype = dtype
        self.outline = found
        self.description = description
        self.sha256 = _fingerprint(constants, found)

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
        """The tensors ``names`` of the program for ``inputs`` (k, *input_shape), each (k, ...)."""
        # torch warns about arrays that are not writable, as batches read from a file are: those are copied.
        array = np.require(shaped(inputs, self.input_shape), requirements=["C", "W"])
        batch = torch.from_numpy(array).to(self._dtype)
        recorder = _Recorder(self._exported.graph_module, frozenset(names))
        arguments = [
            batch if value is None else value for value in _arguments(self._exported, self._constants)
        ]
        try:
            with torch.no_grad():
                recorder.run(*arguments)
        except RuntimeError as error:
            raise InputError(
                f"{self.description['network']} failed on a batch of {len(inputs)} samples: {describe(error)}. Check the network."
            ) from error
        return {name: value.numpy() for name, value in recorder.found.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """Its own tensors by their names in the state_dict, buffers included."""
        return {name: value.detach().cpu().numpy() for name, value in self._constants.items()}

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> TorchNetwork:
        """The same network with the tensors ``changed`` in the place of its own."""
        constants = dict(self._constants)
        for name, value in changed.items():
            constants[name] = torch.from_numpy(np.array(value)).to(constants[name].dtype)
        return _understood(self._exported, constants, self.input_shape, self._dtype, self.description)


class _Recorder(fx.Interpreter):
    """Runs a functional graph and keeps the wanted tensors."""

    def __init__(self, module: fx.GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.found[n.name] = value.detach()
        return value


def _constants(exported: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    return {**exported.constants, **exported.state_dict}


def _arguments(
    exported: torch.export.ExportedProgram, constants: dict[str, torch.Tensor]
) -> list[torch.Tensor | None]:
    """The arguments of the graph's placeholders in order; None stands for the sample batch."""
    user = torch.export.graph_signature.InputKind.USER_INPUT
    specs = exported.graph_signature.input_specs
    return [None if spec.kind == user else constants[str(spec.target)].detach() for spec in specs]


def _fingerprint(constants: dict[str, torch.Tensor], found: Outline) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(constants.items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    for use in found.operators:
        digest.update(f"{use.operator} {use.role}\n".encode())
    if found.whole is None:
        for op in found.program.ops:
            digest.update(f"{op.name} {op.inputs} {sorted(op.attributes)}\n".encode())
        return digest.hexdigest()
    graph = found.whole
    for node in graph.nodes:
        digest.update(f"{node.name} {node.activation.spec} {node.form.parents}\n".encode())
    digest.update(f"{graph.output.parents} {graph.output_map}".encode())
    for piece in _geometry(graph):
        digest.update(piece)
    return digest.hexdigest()


def _geometry(graph: Graph) -> Iterator[bytes]:
    """What the weights do not tell: strides, paddings, windows, bounds. Nothing where all is dense layers and sums, as it ever was."""
    forms = [*(node.form for node in graph.nodes), graph.output]
    operators = [operator for form in forms for _, operator in form.terms]
    if all(isinstance(operator, Dense | Diagonal) for operator in operators) and all(
        node.z_tensor for node in graph.nodes
    ):
        return
    for form in forms:
        for source, operator in form.terms:
            yield source.encode()
            yield from signature(operator)
        yield b"" if form.bias is None else form.bias.tobytes()


def first_linear(module: torch.nn.Module) -> int | None:
    """in_features of the first nn.Linear, if the module's first layer with weights is one."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            return layer.in_features
        if not any(True for _ in layer.children()) and any(True for _ in layer.parameters()):
            return None
    return None


def grey_axes(module: torch.nn.Module) -> int | None:
    """The axes of the images that the module takes, if its first layer with weights is a convolution of one channel."""
    for layer in module.modules():
        for axes, kind in enumerate((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), start=1):
            if isinstance(layer, kind):
                return axes if layer.in_channels == 1 else None
        if not any(True for _ in layer.children()) and any(True for _ in layer.parameters()):
            return None
    return None


def read_module(
    module: torch.nn.Module, input_shape: tuple[int, ...], description: dict[str, Any]
) -> TorchNetwork:
    """Trace ``module`` (put into evaluation mode) on samples of ``input_shape``.

    Raises InputError if it cannot be traced, UnsupportedOperator for what is not linear or a known activation.
    """
    network = str(description["network"])
    module = module.eval().cpu()
    dtypes = {p.dtype for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()}
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    if dtypes and dtype not in (torch.float32, torch.float64):
        log.info("%s has weights of type %s: it is run in float32.", network, sorted(map(str, dtypes)))
        module, dtype = module.float(), torch.float32
    return read_exported(trace(module, input_shape, dtype, network), input_shape, dtype, description)


def read_exported(
    exported: torch.export.ExportedProgram,
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    description: dict[str, Any],
) -> TorchNetwork:
    """A network from a functional exported program."""
    return _understood(exported, _constants(exported), input_shape, dtype, description)


def _understood(
    exported: torch.export.ExportedProgram,
    constants: dict[str, torch.Tensor],
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    description: dict[str, Any],
) -> TorchNetwork:
    network = str(description["network"])
    translator = _Translator(exported, constants, network)
    program = translator.program()
    patterns.rewrite(program)
    own = {name: _array(value) for name, value in constants.items() if value.is_floating_point()}
    found = outline(program, translator.shapes, own, input_shape, network)
    return TorchNetwork(exported, constants, found, dtype, description)


class _Translator:
    """fx nodes to a :class:`Program`."""

    def __init__(
        self, exported: torch.export.ExportedProgram, tensors: dict[str, torch.Tensor], network: str
    ) -> None:
        self._exported = exported
        self._tensors = tensors
        self._network = network
        self._constants: dict[str, torch.Tensor] = {}
        self._roots: dict[str, frozenset[str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self.shapes: dict[str, tuple[int, ...] | None] = {}

    def program(self) -> Program:
        """The program; constant sub-expressions (a transposed weight) are computed."""
        ops: list[Op] = []
        source = self._inputs()
        for node in self._exported.graph.nodes:
            if node.op != "call_function" or not isinstance(
                node.meta.get("val"), torch.Tensor | tuple | list
            ):
                continue  # sizes and assertions
            if self._fold(node):
                continue
            self.shapes[node.name] = _sample_shape(node.meta["val"])
            ops.append(self._translate(node))
        constants = {name: _array(value) for name, value in self._constants.items()}
        return Program(ops, constants, source, self._output(), self._roots, self._sizes)

    def _inputs(self) -> str:
        user = torch.export.graph_signature.InputKind.USER_INPUT
        sources = []
        specs = self._exported.graph_signature.input_specs
        placeholders = [node for node in self._exported.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, specs, strict=True):
            if spec.kind == user:
                sources.append(node.name)
                self.shapes[node.name] = _sample_shape(node.meta["val"])
            else:
                self._root(node.name, str(spec.target), self._tensors[str(spec.target)])
        if len(sources) != 1:
            raise UnsupportedOperator(f"{self._network} takes {len(sources)} inputs; exactly one is needed.")
        return sources[0]

    def _root(self, name: str, root: str, value: torch.Tensor) -> None:
        self._constants[name] = value.detach()
        if value.is_floating_point() and value.dim() > 0:
            self._roots[name] = frozenset({root})
            self._sizes[root] = (int(torch.count_nonzero(value)), value.numel())

    def _output(self) -> str:
        kinds = torch.export.graph_signature.OutputKind
        specs = self._exported.graph_signature.output_specs
        if any(spec.kind == kinds.USER_INPUT_MUTATION for spec in specs):
            raise UnsupportedOperator(
                f"{self._network} changes its input in place when it runs (as x.mul_() does); its input must stay as it is. Compute a "
                "new tensor instead."
            )
        mutated = [str(spec.target) for spec in specs if spec.kind != kinds.USER_OUTPUT]
        if mutated:
            raise UnsupportedOperator(
                f"{self._network} changes its own buffers {', '.join(mutated)} when it runs; a fixed network is needed. Take "
                "such updates out of forward()."
            )
        outputs = next(node for node in self._exported.graph.nodes if node.op == "output").args[0]
        if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
            raise UnsupportedOperator(
                f"{self._network} returns {len(outputs)} values; exactly one tensor is needed."
            )
        return str(outputs[0].name)

    def _fold(self, node: fx.Node) -> bool:
        """Compute ``node`` if nothing in it depends on the input."""
        parents = node.all_input_nodes
        if not isinstance(node.meta["val"], torch.Tensor) or any(
            p.name not in self._constants for p in parents
        ):
            return False
        if not all(isinstance(dim, int) for dim in node.meta["val"].shape):
            return False
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda parent: self._constants[parent.name])
        with torch.no_grad():
            self._constants[node.name] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator, index]
        roots = [self._roots.get(p.name, frozenset()) for p in parents]
        self._roots[node.name] = frozenset().union(*roots)
        return True

    def _translate(self, node: fx.Node) -> Op:
        whole = _whole(node)  # of which this picks one result, else this node itself
        target = str(node.target if whole is None else whole.target)
        operator = target.rpartition(".")[0] or target
        if whole is None:
            kind, operands, attributes = torch_ops.meaning(operator, node.args, dict(node.kwargs))
        else:
            call = (whole.args, dict(whole.kwargs))
            kind, operands, attributes = torch_layers.part(operator, call, whole.meta["val"], node.args[1])  # type: ignore[arg-type]
        if operator in ("aten.to", "aten._to_copy") and not self._keeps_type(node):
            kind, operands, attributes = torch_ops.unsupported("changes the element type")
        if kind == "unsupported":
            operands = tuple(node.all_input_nodes)
        names = [self._operand(node, index, operand) for index, operand in enumerate(operands)]
        if attributes.pop("transpose", False) and names[1] in self._constants:
            turned = f"{names[1]}.T"
            self._constants[turned] = self._constants[names[1]].t()
            self._roots[turned] = self._roots.get(names[1], frozenset())
            names[1] = turned
        if whole is not None and kind != "unsupported":
            return Op(kind, target, whole.name, tuple(names), node.name, attributes)
        return Op(kind, str(node.target), node.name, tuple(names), node.name, attributes)

    def _operand(self, node: fx.Node, index: int, operand: Any) -> str:
        if isinstance(operand, fx.Node):
            return str(operand.name)
        name = f"{node.name}#{index}"
        self._constants[name] = torch.tensor(float(operand), dtype=torch.float64)
        return name

    @staticmethod
    def _keeps_type(node: fx.Node) -> bool:
        value = node.meta["val"]
        return all(
            value.dtype == parent.meta["val"].dtype
            for parent in node.all_input_nodes
            if isinstance(parent.meta.get("val"), torch.Tensor)
        )


def _whole(node: fx.Node) -> fx.Node | None:
    """The operator with several results one of which ``node`` picks."""
    if node.target is not operator_module.getitem or not isinstance(node.args[0], fx.Node):
        return None
    return node.args[0] if isinstance(node.args[1], int) else None


def _array(value: torch.Tensor) -> np.ndarray:
    return (
        value.detach().to(torch.float64).cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
    )


def _sample_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of one sample, None where the first dimension is not the batch or another one varies."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return None
    batch, *rest = value.shape
    if isinstance(batch, int) or not all(isinstance(dim, int) for dim in rest):
        return None
    return tuple(int(dim) for dim in rest)
