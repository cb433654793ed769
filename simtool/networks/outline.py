"""What both readers make of a program: the graph, if all of it is affine forms and activations, and the linear layers in any case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np

from simtool.errors import UnsupportedOperator
from simtool.networks.graph import Graph, OperatorUse
from simtool.networks.layer_check import confirmed
from simtool.networks.layer_search import Picks, find_layers
from simtool.networks.layers import Found, Layer
from simtool.networks.layouts import Layout, settled
from simtool.networks.network import Recorded, collect, wanted_tensors
from simtool.networks.operators import Shape
from simtool.networks.program import Op, Program
from simtool.networks.symbolic import Interpreter


class Probe(Protocol):
    """Runs a reader's program as it stands."""

    def batches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Two batches of random samples that differ in sample 1; None where only one sample can be run at a time."""
        ...

    def batch(self) -> np.ndarray:
        """A batch of random samples."""
        ...

    def changed(self, tensors: Mapping[str, np.ndarray]) -> Probe:
        """It with ``tensors`` in the place of the network's own."""
        ...

    def run(self, batch: np.ndarray, names: list[str]) -> Mapping[str, np.ndarray]:
        """The tensors ``names``, as the program holds them."""
        ...


@dataclass(frozen=True, eq=False)
class Outline:
    """A network as it was understood.

    Attributes
    ----------
    program, layouts : what the reader wrote down, and where the samples lie in each tensor
    found : the layers whose weights become rows
    whole : the graph, None where some operator is neither affine nor a known activation; ``reason`` says which
    input_shape, output_tensor, output_shape, output_map : one sample in and out; the tensor is the map's input
    baseline_nnz, baseline_parameters : non-zero and all explicit parameters, each tensor counted once
    operators : every operator with its role
    """

    program: Program
    layouts: Mapping[str, Layout | None]
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

    def samples_first(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``tensors`` of a batch of k samples, each with the samples on its first axis: (k * factor, ...)."""
        known = {name: self.layouts.get(name) for name in tensors}
        return {
            name: value if (layout := known[name]) is None else layout.first(value)
            for name, value in tensors.items()
        }

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
    layouts: Mapping[str, Layout | None],
    tensors: Mapping[str, np.ndarray],
    picks: Picks,
    input_shape: Shape,
    network: str,
    probe: Probe,
    like: Outline | None = None,
) -> Outline:
    """Understand ``program``, whose own weights are ``tensors``; ``probe`` runs it where the samples must be told apart.

    ``picks`` says which entries of them a constant holds (:func:`simtool.networks.layer_search.find_layers`).
    ``like`` is the outline of the same network with other weights, which says where its layers are.

    Raises UnsupportedOperator where there is neither a graph nor a layer, or the output is not one row a sample.
    """
    if like is not None:
        found = like.found.moved(program, tensors)
        if like.whole is None:
            nonzero, entries = _counts(program)
            return replace(
                like, program=program, found=found, baseline_nnz=nonzero, baseline_parameters=entries
            )
    else:
        found = find_layers(program, layouts, tensors, picks)
    try:
        program.refuse_unknown(network)
        graph = Interpreter(program, layouts, input_shape).run()
    except UnsupportedOperator as error:
        if not found.layers:
            raise _nothing(error, found) from error
        layouts = _told_apart(program, layouts, found, error, network, probe)
        found = confirmed(find_layers(program, layouts, tensors, picks), layouts, tensors, probe)
        if not found.layers:
            raise _nothing(error, found) from error
        return _without_graph(program, layouts, found, error, input_shape, network)
    if like is None:
        found = confirmed(found, layouts, tensors, probe)
    return outlined(graph, program, layouts, found)


def _nothing(error: UnsupportedOperator, found: Found) -> UnsupportedOperator:
    """The error of a network of which nothing can be taken, with the reasons of its layers."""
    why = "; ".join(f"{op.title}: {reason}" for op, reason in found.left)
    return UnsupportedOperator(
        f"{error} No linear layer of it can be taken either: {why}." if why else str(error), error.refused
    )


def _told_apart(
    program: Program,
    layouts: Mapping[str, Layout | None],
    found: Found,
    reason: UnsupportedOperator,
    network: str,
    probe: Probe,
) -> dict[str, Layout | None]:
    """The layouts with the samples of every layer's tensors told apart, as running the network shows them."""
    output, _ = _output(program, layouts)
    pair = probe.batches()
    if pair is None:  # one sample at a time: nothing to be told apart
        return dict(layouts)
    known = settled(layouts, [*found.tensors, output], probe.run, *pair)
    if known.get(output, Layout(())) is None:
        one, two = (probe.run(pair[0], [output])[output] for _ in range(2))
        what = (
            f"the output of {network} for one sample depends on the other samples of its batch, so that there is no one answer for a "
            "sample. Check which axis its attention, norms and recurrent layers take for the batch."
            if np.array_equal(one, two, equal_nan=True)
            else f"{network} gives another output each time it runs."
        )
        raise UnsupportedOperator(f"{what} ({reason})", reason.refused)
    return {**layouts, **known}


def outlined(
    graph: Graph,
    program: Program | None = None,
    layouts: Mapping[str, Layout | None] | None = None,
    found: Found | None = None,
) -> Outline:
    """The outline of a network that is a ``graph`` as a whole; without a program it has no layers of shared weights."""
    known = layouts or {}
    output = known.get(graph.output_tensor)
    return Outline(
        program=program or Program([], {}, "", ""),
        layouts=known,
        found=found or Found((), ()),
        whole=graph,
        reason=None,
        input_shape=graph.input_shape,
        output_tensor=graph.output_tensor,
        output_shape=(output.whole if output is not None else None) or (graph.output_size,),
        output_map=graph.output_map,
        baseline_nnz=graph.baseline_nnz,
        baseline_parameters=graph.baseline_parameters,
        operators=graph.operators,
    )


def _without_graph(
    program: Program,
    layouts: Mapping[str, Layout | None],
    found: Found,
    reason: UnsupportedOperator,
    input_shape: Shape,
    network: str,
) -> Outline:
    tensor, output_map = _output(program, layouts)
    layout = layouts.get(tensor)
    shape = None if layout is None or layout.axis else layout.whole
    if shape is None:
        raise UnsupportedOperator(
            f"the output of {network} does not keep the samples apart on its first axis. Return one row for each sample."
        )
    taken = {id(use.op) for layer in found.layers for use in layer.uses}
    uses = []
    for op in program.ops:
        role = "linear" if id(op) in taken else "passed" if op.kind == "pass" else "glue"
        if op.output == program.output and output_map is not None:
            role = "map"
        uses.append(OperatorUse(op.operator, op.name, role))
    nonzero, entries = _counts(program)
    return Outline(
        program=program,
        layouts=layouts,
        found=found,
        whole=None,
        reason=reason,
        input_shape=input_shape,
        output_tensor=tensor,
        output_shape=shape,
        output_map=output_map,
        baseline_nnz=nonzero,
        baseline_parameters=entries,
        operators=tuple(uses),
    )


def _output(program: Program, layouts: Mapping[str, Layout | None]) -> tuple[str, str | None]:
    """The output before a map that prints it, and that map."""
    last: Op | None = next((op for op in program.ops if op.output == program.output), None)
    before = layouts.get(last.inputs[0]) if last is not None and last.kind == "map" else None
    one_axis = before is not None and len(before.whole or ()) == 1
    if last is not None and one_axis and last.attributes["axis"] in (-1, 1):
        return last.inputs[0], str(last.attributes["map"])
    return program.output, None


def _counts(program: Program) -> tuple[int, int]:
    """Non-zeros and entries of the network's parameters."""
    sizes = [program.sizes[root] for root in _parameters(program) if root in program.sizes]
    return sum(nonzero for nonzero, _ in sizes), sum(entries for _, entries in sizes)


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
