"""The PyTorch reader: torch.export makes a functional ATen program, which is translated and, later, run with recording.

Exporting with ``run_decompositions({})`` removes in-place writes (an in-place relu would overwrite the Z it was computed from) and
makes every use of a module that is called twice an operator of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from simtool.errors import InputError
from simtool.importing import describe
from simtool.networks import by_example, patterns
from simtool.networks.graph import Graph
from simtool.networks.inputs import (
    PROBE_SAMPLES,
    in_pieces,
    probe_batch,
    probe_batches,
    table_rows,
    whole_numbers,
)
from simtool.networks.network import Recorded, shaped
from simtool.networks.operators import Dense, Diagonal, signature
from simtool.networks.outline import Outline, outline
from simtool.networks.torch_program import Translator, array
from simtool.networks.torch_sensitivity import squared_gradients
from simtool.networks.tracing import Untraceable, takes_whole_numbers, trace

log = logging.getLogger("simtool")
SIGN_PROBES = 8


class TorchNetwork:
    """A PyTorch network as it was understood; ``run`` records every activation's input and output."""

    def __init__(self, runner: Runner, found: Outline, description: dict[str, Any]) -> None:
        self._runner = runner
        self.outline = found
        self.description = description
        self.sha256 = _fingerprint(runner.constants, found)

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
        run, asked = self._runner, list(names)
        return in_pieces(
            shaped(inputs, self.input_shape),
            run.fixed_batch,
            lambda batch: self.outline.samples_first(run.run(batch, asked)),
        )

    def sensitivities(self, inputs: np.ndarray, names: Iterable[str], seed: int = 0) -> dict[str, np.ndarray]:
        """sum_k (dy_k/dt)^2 for every entry of the tensors ``names``, the samples first, as :meth:`tensors` gives them."""
        found = self._runner.squared_gradients(
            shaped(inputs, self.input_shape), list(names), self.outline.output_tensor, seed
        )
        return self.outline.samples_first(found)

    @property
    def takes_whole_numbers(self) -> bool:
        return not self._runner.dtype.is_floating_point

    def weights(self) -> dict[str, np.ndarray]:
        """Its own tensors by their names in the state_dict, buffers included."""
        return {name: value.detach().cpu().numpy() for name, value in self._runner.constants.items()}

    def state(self) -> dict[str, np.ndarray]:
        """What ``load_state_dict`` of its own class takes."""
        names = self._runner.exported.state_dict
        return {name: value for name, value in self.weights().items() if name in names}

    def module(self) -> torch.nn.Module:
        """It as a module, with its weights."""
        module = self._runner.exported.module(check_guards=False)
        state = {name: self._runner.constants[name] for name in self._runner.exported.state_dict}
        module.load_state_dict(state)
        return module

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> TorchNetwork:
        """The same network with the tensors ``changed`` in the place of its own."""
        return _understood(self._runner.changed(changed), self.input_shape, self.description, self.outline)


@dataclass(frozen=True, eq=False)
class Runner:
    """A functional program with its weights; ``rows`` are those of the table that whole-numbered inputs choose from."""

    exported: torch.export.ExportedProgram
    constants: dict[str, torch.Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]
    network: str
    rows: int | None = None
    fixed_batch: int | None = None

    def batches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Two batches of random samples that differ in sample 1."""
        return probe_batches(self.shape, self._kind, self.rows, self.fixed_batch or PROBE_SAMPLES)

    def batch(self) -> np.ndarray:
        """A batch of random samples."""
        return probe_batch(self.shape, self._kind, self.rows, self.fixed_batch)

    @property
    def _kind(self) -> np.dtype:
        return np.dtype(np.float32 if self.dtype.is_floating_point else np.int64)

    def changed(self, tensors: Mapping[str, np.ndarray]) -> Runner:
        """It with ``tensors`` in the place of its own. Raises InputError for a name that it does not have."""
        unknown = [name for name in tensors if name not in self.constants]
        if unknown:
            raise InputError(f"{self.network} has no tensor named {', '.join(sorted(unknown))}.")
        return replace(self, constants=_changed(self.constants, tensors))

    def run(self, batch: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        """The tensors ``names`` for ``batch`` (k, *shape), as the program holds them."""
        recorder = _Recorder(self.exported.graph_module, frozenset(names))
        arguments = self._arguments(batch)
        try:
            with torch.no_grad():
                recorder.run(*arguments)
        except (RuntimeError, IndexError, ValueError) as error:
            raise InputError(
                f"{self.network} failed on a batch of {len(batch)} samples: {describe(error)}. Check the network."
            ) from error
        return {name: value.numpy() for name, value in recorder.found.items()}

    def squared_gradients(
        self, batch: np.ndarray, names: list[str], output: str, seed: int
    ) -> dict[str, np.ndarray]:
        """See :func:`simtool.networks.torch_sensitivity.squared_gradients`; an output of few values takes as many probes."""
        arguments = self._arguments(batch)
        found = squared_gradients(self.exported.graph_module, arguments, names, output, SIGN_PROBES, seed)
        return {name: value.numpy() for name, value in found.items()}

    def _arguments(self, batch: np.ndarray) -> list[torch.Tensor]:
        if not self.dtype.is_floating_point:
            batch = whole_numbers(batch, self.rows, self.network)
        # torch warns about arrays that are not writable, as batches read from a file are: those are copied.
        values = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self.dtype)
        return [values if value is None else value for value in _arguments(self.exported, self.constants)]


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


def _changed(
    constants: Mapping[str, torch.Tensor], tensors: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """``constants`` with ``tensors`` in their place; those that lie in the same memory (tied weights) change together."""
    found = dict(constants)
    together: dict[int, list[str]] = {}
    for name, value in constants.items():
        own = id(value) if not value.numel() else value.untyped_storage().data_ptr()
        together.setdefault(own, []).append(name)
    for names in together.values():
        given = [name for name in names if name in tensors]
        if not given:
            continue
        if len(names) == 1:
            found[names[0]] = _tensor(tensors[names[0]], constants[names[0]])
            continue
        memory = constants[names[0]].untyped_storage().clone()
        for name in names:
            old = constants[name]
            empty = torch.empty(0, dtype=old.dtype)
            found[name] = empty.set_(memory, old.storage_offset(), old.size(), old.stride())  # type: ignore[call-overload]
        for name in given:
            # What is given under another name as it was does not undo a change.
            new, old = _tensor(tensors[name], constants[name]), constants[name].detach()
            differs = new != old
            found[name][differs] = new[differs]
    return found


def _tensor(value: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(value)).to(like.dtype)


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
    if takes_whole_numbers(module, input_shape, dtype):
        log.info("%s takes whole numbers.", network)
        dtype = torch.int64
    try:
        exported, batch = trace(module, input_shape, dtype, network), None
    except Untraceable as error:
        exported = by_example.traced(module, input_shape, dtype, network, error)
        batch = by_example.BATCH
    return read_exported(exported, input_shape, dtype, description, batch)


def read_exported(
    exported: torch.export.ExportedProgram,
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    description: dict[str, Any],
    fixed_batch: int | None = None,
) -> TorchNetwork:
    """A network from a functional exported program, which may take batches of one size only."""
    network = str(description["network"])
    runner = Runner(exported, _constants(exported), dtype, input_shape, network, fixed_batch=fixed_batch)
    return _understood(runner, input_shape, description)


def _understood(
    runner: Runner, input_shape: tuple[int, ...], description: dict[str, Any], like: Outline | None = None
) -> TorchNetwork:
    translator = Translator(runner.exported, runner.constants, runner.network, runner.fixed_batch)
    program = translator.program()
    if like is None:
        runner = replace(runner, rows=table_rows(program))
    patterns.rewrite(program)
    own = {name: array(value) for name, value in runner.constants.items() if value.is_floating_point()}
    picks = translator.picks
    found = outline(program, translator.layouts, own, picks, input_shape, runner.network, runner, like)
    return TorchNetwork(runner, found, description)
