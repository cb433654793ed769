"""What both readers make of a program: the graph, if all of it is affine forms and activations, and the linear layers in any case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from simtool.errors import UnsupportedOperator
from simtool.networks.graph import Graph, OperatorUse
from simtool.networks.layers import Found, Layer, find_layers
from simtool.networks.network import Recorded, collect, wanted_tensors
from simtool.networks.operators import Shape
from simtool.networks.program import Op, Program
from simtool.networks.symbolic import Interpreter


@dataclass(frozen=True, eq=False)
class Outline:
    """A network as it was understood.

    Attributes
    ----------
    program, shapes : what the reader wrote down, and one sample's shape of each tensor
    found : the layers whose weights become rows
    whole : the graph, None where some operator is neither affine nor a known activation; ``reason`` says which
    input_shape, output_tensor, output_shape, output_map : one sample in and out; the tensor is the map's input
    baseline_nnz, baseline_parameters : non-zero and all explicit parameters, each tensor counted once
    operators : every operator with its role
    """

    program: Program
    shapes: Mapping[str, Shape | None]
    found: Found
    whole: Graph | None
    reason: UnsupportedOperator | None
    input_shape: Shape
    output_tensor: str
    output_shape: Shape
    output_map: str | None
    baseline_nnz: int
    baseline_parameters: int
    operators: tuple[OperatorUse, ...]

    @property
    def graph(self) -> Graph:
        """The graph. Raises UnsupportedOperator where there is none."""
        if self.whole is None:
            assert self.reason is not None
            raise self.reason
        return self.whole

    @property
    def output_size(self) -> int:
        """Numbers of the output of one sample."""
        return prod(self.output_shape)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.found.layers

    def wanted(self) -> tuple[str, ...]:
        """The reader's tensors that :meth:`recorded` needs."""
        return (self.output_tensor,) if self.whole is None else wanted_tensors(self.whole)

    def recorded(self, tensors: dict[str, np.ndarray]) -> Recorded:
        """The record of one batch; without a graph there are no states in it."""
        return self.output(tensors) if self.whole is None else collect(self.whole, tensors)

    def output(self, tensors: Mapping[str, np.ndarray]) -> Recorded:
        """The record of one batch without its states."""
        y = tensors[self.output_tensor]
        return Recorded({}, {}, np.asarray(y, dtype=np.float32).reshape(len(y), -1))


def outline(
    program: Program,
    shapes: Mapping[str, Shape | None],
    tensors: Mapping[str, np.ndarray],
    input_shape: Shape,
    network: str,
) -> Outline:
    """Understand ``program``, whose own weights are ``tensors``.

    Raises UnsupportedOperator where there is neither a graph nor a layer, or the output is not one vector a sample.
    """
    found = find_layers(program, shapes, tensors)
    try:
        program.refuse_unknown(network)
        graph = Interpreter(program, dict(shapes), input_shape).run()
    except UnsupportedOperator as error:
        if not found.layers:
            raise
        return _without_graph(program, shapes, found, error, input_shape, network)
    return outlined(graph, program, shapes, found)


def outlined(
    graph: Graph,
    program: Program | None = None,
    shapes: Mapping[str, Shape | None] | None = None,
    found: Found | None = None,
) -> Outline:
    """The outline of a network that is a ``graph`` as a whole; without a program it has no layers of shared weights."""
    known = shapes or {}
    return Outline(
        program=program or Program([], {}, "", ""),
        shapes=known,
        found=found or Found((), ()),
        whole=graph,
        reason=None,
        input_shape=graph.input_shape,
        output_tensor=graph.output_tensor,
        output_shape=known.get(graph.output_tensor) or (graph.output_size,),
        output_map=graph.output_map,
        baseline_nnz=graph.baseline_nnz,
        baseline_parameters=graph.baseline_parameters,
        operators=graph.operators,
    )


def _without_graph(
    program: Program,
    shapes: Mapping[str, Shape | None],
    found: Found,
    reason: UnsupportedOperator,
    input_shape: Shape,
    network: str,
) -> Outline:
    tensor, output_map = _output(program, shapes)
    shape = shapes.get(tensor)
    if shape is None:
        raise UnsupportedOperator(
            f"the output of {network} does not keep the samples apart on its first axis. Return one row for each sample."
        )
    taken = {id(use.op) for layer in found.layers for use in layer.uses}
    left = {id(op): why for op, why in found.left}
    uses = []
    for op in program.ops:
        role = "linear" if id(op) in taken else "passed" if op.kind == "pass" else "glue"
        if op.output == program.output and output_map is not None:
            role = "map"
        why = left.get(id(op))
        uses.append(OperatorUse(op.operator, op.name, f"glue ({why})" if why else role))
    roots = _parameters(program)
    sizes = [program.sizes[root] for root in sorted(roots) if root in program.sizes]
    return Outline(
        program=program,
        shapes=shapes,
        found=found,
        whole=None,
        reason=reason,
        input_shape=input_shape,
        output_tensor=tensor,
        output_shape=shape,
        output_map=output_map,
        baseline_nnz=sum(nonzero for nonzero, _ in sizes),
        baseline_parameters=sum(entries for _, entries in sizes),
        operators=tuple(uses),
    )


def _output(program: Program, shapes: Mapping[str, Shape | None]) -> tuple[str, str | None]:
    """The output before a map that prints it, and that map."""
    last: Op | None = next((op for op in program.ops if op.output == program.output), None)
    one_axis = last is not None and last.kind == "map" and len(shapes.get(last.inputs[0]) or ()) == 1
    if last is not None and one_axis and last.attributes["axis"] in (-1, 1):
        return last.inputs[0], str(last.attributes["map"])
    return program.output, None


def _parameters(program: Program) -> set[str]:
    """The network's own tensors that its operators read; the running statistics of a batch norm are no parameters."""
    roots: set[str] = set()
    for op in program.ops:
        names = list(op.inputs)
        if op.kind == "batch_norm":
            parts = op.attributes["parts"]
            names = [n for n, part in zip(op.inputs[1:], parts, strict=True) if part in ("weight", "bias")]
        for name in names:
            roots |= program.roots.get(name, frozenset())
    return roots
