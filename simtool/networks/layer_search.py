"""Which operators of a program are linear layers with the network's own weights, and why the others with weights are none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from simtool.layers import LayerSpec
from simtool.networks.layers import Found, Layer, Use
from simtool.networks.layouts import Layout
from simtool.networks.operators import Shape, Window
from simtool.networks.program import Op, Program
from simtool.networks.symbolic.layers import windows_of

# For each entry of a constant, which entry of the network's own tensor it is; None for one that is computed.
Picks = Callable[[str], np.ndarray | None]
# Why the weight of an embedding is none of a layer.
LOOKS_UP = "it looks rows of its table up by whole numbers"


@dataclass
class _Finder:
    program: Program
    layouts: Mapping[str, Layout | None]
    tensors: Mapping[str, np.ndarray]
    picks: Picks

    def __post_init__(self) -> None:
        self.readers: dict[str, list[Op]] = {}
        self.producers = {op.output: op for op in self.program.ops}
        self.places: dict[tuple[str, bool], tuple[bool, int]] = {}
        for op in self.program.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)

    def find(self) -> Found:
        groups: dict[tuple[object, ...], list[tuple[LayerSpec, Use]]] = {}
        left: list[tuple[Op, str]] = []
        for op in self.program.ops:
            why = self._no_layer(op)
            if why is not None:
                left += [(op, why)] if why else []
                continue
            try:
                spec, use = self._one(op)
            except ValueError as error:
                left.append((op, str(error)))
                continue
            key = (
                spec.weight,
                spec.rows_first,
                spec.start,
                spec.rows,
                spec.bias,
                spec.groups,
                spec.alpha,
                spec.beta,
            )
            groups.setdefault((spec.kind, *key), []).append((spec, use))
        taken: list[Layer] = []
        for members in groups.values():
            spec, uses = members[0][0], tuple(use for _, use in members)
            objection = self._read_elsewhere(spec, uses) or self._shared(spec, groups.values())
            if objection:
                left += [(use.op, objection) for use in uses]
                continue
            reads = any(member.reads_input for member, _ in members)
            gives = any(member.is_output for member, _ in members)
            spec = replace(spec, reads_input=reads, is_output=gives)
            bias = None if spec.bias is None else self.tensors[spec.bias]
            taken.append(Layer(spec, uses, self.tensors[spec.weight], bias))
        return Found(tuple(taken), tuple(left))

    def _no_layer(self, op: Op) -> str | None:
        """None for an operator that may be a layer, else why it is none, "" where nobody would think so."""
        constants = [name for name in op.inputs if np.ndim(self.program.constants.get(name, 0.0)) > 1]
        weights = sorted({root for name in constants for root in self.program.roots.get(name, ())})
        if op.kind in ("linear", "matmul", "convolution") and len(op.inputs) > 1:
            if op.inputs[1] in self.program.constants:
                return None
            return "its weight stands before what it multiplies" if weights else ""
        if op.kind == "take" and op.inputs[0] in self.program.constants and weights:
            return LOOKS_UP
        if op.kind != "unsupported" or not (weights or op.operator in ("If", "Loop", "Scan")):
            return ""
        return (
            op.attributes.get("why")
            or f"it reads the weight {weights[0]}, but is no linear layer that is known"
        )

    def _one(self, op: Op) -> tuple[LayerSpec, Use]:
        source, weight = op.inputs[:2]
        result, bias = op.output, op.inputs[2] if len(op.inputs) > 2 else None
        layout, given = self._layout(source), self._layout(result)
        in_shape, out_shape = layout.shape, given.shape
        if (layout.axis, layout.outer, layout.inner) != (given.axis, given.outer, given.inner):
            raise ValueError("its samples lie elsewhere than those of its operand")
        if 0 in (*in_shape, *out_shape):
            raise ValueError("it has the width 0")
        if op.kind != "convolution" and layout.axis == len(in_shape):
            raise ValueError("it takes its values from different samples")
        root = self._root(weight)
        stored, constant = self.tensors[root], self.program.constants[weight]
        alpha, beta = (float(op.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
        if not (alpha and beta and np.isfinite(alpha) and np.isfinite(beta)):
            raise ValueError(f"it multiplies its weights by {alpha} and {beta}")
        rows_first, start, groups = True, 0, 1
        windows: tuple[Window, ...] = ()
        if op.kind == "convolution":
            if layout.axis:
                raise ValueError(f"its samples lie on axis {layout.axis}")
            kind = "transposed-convolution" if op.attributes["transposed"] else "convolution"
            if stored.shape != constant.shape or not self._is_part(weight, 0):
                raise ValueError("its kernel is computed from the network's weights")
            groups = int(op.attributes["groups"])
            image, places = (out_shape, in_shape) if op.attributes["transposed"] else (in_shape, out_shape)
            windows = windows_of(op.attributes, image[1:], places[1:], constant.shape[2:])
            rows = out_shape[0]
            fan_in = constant.size // rows
        else:
            kind = "linear"
            table = constant if op.kind == "linear" else constant.T
            if table.ndim != 2 or table.shape[1] != in_shape[-1] or table.shape[0] != out_shape[-1]:
                raise ValueError(f"a weight of shape {constant.shape} takes {in_shape} to {out_shape}")
            rows_first, start = self._place(weight, op.kind == "linear", stored.shape)
            rows, fan_in = table.shape
            if bias is None:
                result, bias = self._added(op, start, rows)
        bias_root: str | None = None
        bias_shape: Shape = ()
        if bias is not None:
            bias_root = self._root(bias)
            bias_shape = tuple(int(size) for size in self.tensors[bias_root].shape)
            if self.program.constants[bias].size != rows or not self._is_part(bias, start):
                raise ValueError("its bias is computed from the network's weights")
        name = root.removesuffix(".weight") + (
            f"[{start}:{start + rows}]" if rows != self._rows(stored, rows_first, kind, groups) else ""
        )
        spec = LayerSpec(
            name=name,
            kind=kind,
            weight=root,
            weight_shape=tuple(int(size) for size in stored.shape),
            rows_first=rows_first,
            start=start,
            alpha=alpha,
            bias=bias_root,
            bias_shape=bias_shape,
            beta=beta,
            rows=int(rows),
            groups=groups,
            fan_in=int(fan_in),
            reads_input=self._passed(source) == self.program.input,
            is_output=result in self._outputs,
            columns=1,
        )
        return spec, Use(op, source, result, in_shape, out_shape, windows, layout.factor)

    def _is_part(self, name: str, start: int) -> bool:
        """Whether the constant ``name`` is its tensor's entries from ``start`` on, one after the other."""
        found = self.picks(name)
        return found is not None and np.array_equal(found.reshape(-1), start + np.arange(found.size))

    def _place(self, weight: str, rows_are_first: bool, stored: Shape) -> tuple[bool, int]:
        """How the rows that an operator reads lie in the network's tensor: (rows first, first row). Raises ValueError.

        A tensor of more axes (the directions of a recurrent layer) is a matrix of all its rows. What the operator reads is followed
        by indices: values may agree by chance, as those of a symmetric matrix and of its transpose do.
        """
        if (weight, rows_are_first) not in self.places:
            found = self.picks(weight)
            if found is None:
                raise ValueError("its weight is computed from the network's weights")
            self.places[weight, rows_are_first] = _place(found if rows_are_first else found.T, stored)
        return self.places[weight, rows_are_first]

    @staticmethod
    def _rows(stored: np.ndarray, rows_first: bool, kind: str, groups: int) -> int:
        if kind == "linear":
            return int(stored.size // stored.shape[-1] if rows_first else stored.shape[-1])
        return int(stored.shape[1] * groups if kind == "transposed-convolution" else stored.shape[0])

    def _layout(self, name: str) -> Layout:
        layout = self.layouts.get(name)
        if layout is None or not layout.shape:
            raise ValueError(f"the samples of {name} cannot be told apart")
        return layout

    def _root(self, name: str) -> str:
        roots = self.program.roots.get(name, frozenset())
        if len(roots) != 1 or next(iter(roots)) not in self.tensors:
            raise ValueError(f"{name} is computed from {len(roots)} of the network's weights, one is needed")
        return next(iter(roots))

    def _added(self, op: Op, start: int, rows: int) -> tuple[str, str | None]:
        """The result and the bias of a matrix product that only an addition of a vector of parameters reads."""
        readers = self.readers.get(op.output, [])
        if len(readers) == 1 and readers[0].kind == "add" and self.program.output != op.output:
            add = readers[0]
            other = next((name for name in add.inputs if name != op.output), None)
            value = self.program.constants.get(other) if other is not None else None
            roots = self.program.roots.get(other or "", frozenset())
            plain = float(add.attributes.get("alpha", 1.0)) == 1.0
            if value is None or value.shape[-1:] != (rows,) or value.size != rows or not plain:
                return op.output, None
            own = len(roots) == 1 and next(iter(roots)) in self.tensors
            if (
                own
                and other is not None
                and self._is_part(other, start)
                and self._only_bias(other, op)
                and self.layouts.get(add.output) == self.layouts.get(op.output)
            ):
                return add.output, other
        return op.output, None

    def _only_bias(self, bias: str | None, op: Op) -> bool:
        """Whether ``bias`` is added to products with the weight of ``op`` alone; it may go by several names."""
        roots, weight = self.program.roots.get(bias or ""), self.program.roots.get(op.inputs[1])
        root = self.tensors[next(iter(roots or ()))]
        for name, found in self.program.roots.items():
            if found != roots or (name != bias and self.program.constants[name].size != root.size):
                continue
            for reader in self.readers.get(name, []):
                products = [self.producers.get(other) for other in reader.inputs if other != name]
                used = [
                    self.program.roots.get(p.inputs[1])
                    for p in products
                    if p is not None and len(p.inputs) > 1
                ]
                if reader.kind != "add" or used != [weight]:
                    return False
        return True

    def _passed(self, name: str) -> str:
        """``name`` without the operators before it that change no value."""
        while (op := self.producers.get(name)) is not None and op.kind in ("pass", "permute", "swap"):
            name = op.inputs[0]
        return name

    @cached_property
    def _outputs(self) -> set[str]:
        """The tensors that are the network's output but for an output map."""
        name, found = self.program.output, {self.program.output}
        while (op := self.producers.get(name)) is not None and op.kind in ("pass", "map"):
            name = op.inputs[0]
            found.add(name)
        if op is not None and op.kind == "activation" and op.attributes["activation"].name == "sigmoid":
            found.add(op.inputs[0])
        return found

    def _read_elsewhere(self, spec: LayerSpec, uses: tuple[Use, ...]) -> str | None:
        """Why a weight or bias that other operators read too (tied embeddings) is not replaced."""
        own = {id(use.op) for use in uses} | {id(self.producers[use.result]) for use in uses}
        for constant, roots in self.program.roots.items():
            tensor = next((name for name in (spec.weight, spec.bias) if name in roots), None)
            if tensor is None:
                continue
            for op in self.readers.get(constant, []):
                if id(op) in own or op.kind in ("linear", "matmul", "convolution"):
                    continue
                # Another part of a packed bias may well be added elsewhere.
                all_read = self.program.constants[constant].size == self.tensors[tensor].size
                if tensor == spec.weight or all_read or spec.rows == prod(spec.bias_shape):
                    return f"its {tensor} is read by {op.title} too"
        return None

    @staticmethod
    def _shared(spec: LayerSpec, groups: Collection[list[tuple[LayerSpec, Use]]]) -> str | None:
        """Why a weight or bias with rows that another layer has too (a matrix and its transpose) is not replaced."""
        for other in (members[0][0] for members in groups):
            apart = other.rows_first == spec.rows_first and (
                other.start + other.rows <= spec.start or spec.start + spec.rows <= other.start
            )
            if other is spec or apart:
                continue
            for tensor in (spec.weight, spec.bias):
                if tensor is not None and tensor in (other.weight, other.bias):
                    return f"its {tensor} belongs to another layer too ({other.name})"
        return None


def _place(index: np.ndarray, stored: Shape) -> tuple[bool, int]:
    """(rows first, first row) of a table (rows, features) whose entries are those ``index`` of a tensor of shape ``stored``."""
    rows, features = index.shape
    first = int(index[0, 0])
    whole = len(stored) > 1 and stored[-1] == features and first % features == 0
    if whole and np.array_equal(index.reshape(-1), first + np.arange(index.size)):
        return True, first // features
    if len(stored) == 2 and stored[0] == features and first + rows <= stored[1]:
        turned = first + np.arange(rows)[:, None] + stored[1] * np.arange(features)
        if np.array_equal(index, turned):
            return False, first
    raise ValueError("its weight holds the network's weights in another order than its tensor")


def find_layers(
    program: Program, layouts: Mapping[str, Layout | None], tensors: Mapping[str, np.ndarray], picks: Picks
) -> Found:
    """The layers of ``program``; ``layouts`` say where the samples lie in each tensor, ``tensors`` are the network's own weights.

    ``picks`` gives for each entry of a constant which entry of the network's own tensor it is, None for a constant that is computed.
    """
    return _Finder(program, layouts, tensors, picks).find()
