"""A network as both readers first write it down: a flat list of operators on named tensors, and constants.

The readers only translate names and attributes into an :class:`Op`. Patterns (``patterns``) and meaning (``symbolic``)
are then the same for PyTorch and ONNX.

Kinds, with their operands and attributes: ``linear`` (x, weight (out, in), bias), ``matmul`` (x, weight (in, out)), ``convolution``
(x, kernel, bias; stride, pads, dilation, groups, transposed), ``batch_norm`` (x, the tensors that ``parts`` names; eps), ``add`` ``sub``
``mul`` ``div`` ``pow`` (two operands), ``neg``, ``fill`` (value), ``erf``, ``greater``, ``where``, ``activation`` (activation), ``clamp`` (low, high, slope,
offset), ``hardswish``, ``maximum`` ``minimum`` (two operands), ``max_pool`` ``average_pool`` (kernel, stride, pads, dilation, axes), ``adaptive_average``
(axes), ``mean`` ``sum`` ``max_over`` (axes), ``permute`` (order), ``swap`` (axes), ``slice`` (keys), ``take`` (x, indices; axis), ``flip``
(axes), ``pad`` (pads), ``expand``, ``tile`` (repeats), ``nearest``, ``concatenate`` (axis, stack), ``map`` (map, axis), ``pass``, and
``unsupported`` (why). Axes are the network's own: the batch is axis 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtool.errors import UnsupportedOperator

# Operators that mean something only inside a written-out activation.
_ONLY_IN_PATTERNS = ("erf", "pow", "greater", "where")


# What PyTorch and ONNX call layers that users know under another name.
_READABLE = {
    "_native_batch_norm_legit_no_training": "batch norm",
    "_native_batch_norm_legit": "batch norm",
    "native_batch_norm": "batch norm",
    "batchnormalization": "batch norm",
    "native_layer_norm": "layer norm",
    "layernormalization": "layer norm",
    "native_group_norm": "group norm",
    "convolution": "convolution",
    "_convolution": "convolution",
    "conv": "convolution",
    "scaled_dot_product_attention": "attention",
    "_scaled_dot_product_flash_attention": "attention",
    "_native_multi_head_attention": "attention",
}
_LAYERS = frozenset(
    {*_READABLE.values(), "conv1d", "conv2d", "conv3d", "lstm", "gru", "rnn tanh", "rnn relu", "embedding"}
)


def readable(operator: str) -> str:
    """The name of an operator as users know it: ``aten.conv2d.default`` is conv2d."""
    parts = operator.split(".")
    base = parts[1] if parts[0] == "aten" and len(parts) > 1 else operator
    return _READABLE.get(base.lower()) or (base.strip("_").replace("_", " ") if parts[0] == "aten" else base)


@dataclass(frozen=True)
class Op:
    """One operator: ``kind`` is its meaning, ``operator`` and ``name`` are what the network calls it."""

    kind: str
    operator: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a message calls it: its readable name first, then the network's own names."""
        name = readable(self.operator)
        if name == self.operator:
            return f"{name} (node {self.name})"
        return f"{name} ({self.operator}, node {self.name})"


@dataclass
class Program:
    """Operators in execution order on named tensors.

    ``roots`` says for each constant from which of the network's own tensors it was computed, and ``sizes`` gives (non-zeros, entries) of
    each such tensor, so that a weight used twice is counted once.
    """

    ops: list[Op]
    constants: dict[str, np.ndarray]
    input: str
    output: str
    roots: dict[str, frozenset[str]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def prune(self) -> None:
        """Drop the operators that the output does not need."""
        needed = {self.output}
        kept: list[Op] = []
        for op in reversed(self.ops):
            if op.output in needed:
                kept.append(op)
                needed.update(op.inputs)
        self.ops = kept[::-1]

    def uses(self) -> Counter[str]:
        """How many operators (and the output) read each tensor."""
        counts = Counter(name for op in self.ops for name in op.inputs)
        counts[self.output] += 1
        return counts

    def scalar(self, name: str) -> float | None:
        """The value of a one-element constant, None for anything else."""
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def refuse_unknown(self, network: str) -> None:
        """Raise UnsupportedOperator with every operator that has no meaning here, all at once."""
        unknown = [op for op in self.ops if op.kind in ("unsupported", *_ONLY_IN_PATTERNS)]
        # Picking one of several results is not the fault: what gives several is in the list itself.
        unknown = [op for op in unknown if "getitem" not in op.operator] or unknown
        # A layer explains more than the slices and zeros around it.
        unknown.sort(key=lambda op: readable(op.operator) not in _LAYERS)
        refused = []
        for op in unknown:
            why = op.attributes.get("why")
            refused.append(op.title + (f": {why}" if why else ""))
        if refused:
            raise UnsupportedOperator(
                f"{network} holds {len(refused)} operator(s) that cannot become rows and activations: "
                f"{'; '.join(refused)}. Taken are linear layers, convolutions, batch norms in evaluation mode, pooling, sums, products "
                "with constants, reshapes, slices, permutations, concatenations, clamps and the activations relu, leaky_relu, tanh, "
                "sigmoid, elu, hardswish, silu, gelu, softplus; a softmax only at the end. "
                "Replace the operator or cut the network before it.",
                refused=tuple(refused),
            )
