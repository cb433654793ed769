"""From the functional ATen program that torch.export makes to a :class:`Program`: constants computed, operators translated."""

from __future__ import annotations

import operator as operator_module
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from simtool.errors import UnsupportedOperator
from simtool.networks import torch_layers, torch_ops
from simtool.networks.layouts import Layout, fixed_layout, layout_of
from simtool.networks.program import Op, Program

_BATCHES = (7, 11)  # sizes for which the symbolic shapes are looked at
# Operators that put a tensor's values elsewhere and change none, whatever the values are.
_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "t", "numpy_T", "transpose", "swapaxes", "permute", "movedim", "flip", "slice", "select", "narrow", "index_select", "split", "chunk",
        "split_with_sizes", "tensor_split", "unsafe_split", "unbind", "view", "_unsafe_view", "reshape", "flatten", "unflatten",
        "squeeze", "unsqueeze", "expand", "clone", "contiguous", "alias", "detach", "lift_fresh_copy",
    )
)  # fmt: skip
_SAME = frozenset({"aten.to", "aten._to_copy", "aten.type_as"})  # but for their type
_DROPOUTS = frozenset({"aten.dropout", "aten.feature_dropout", "aten.alpha_dropout"})
_Pick = Callable[[], Any]


class Translator:
    """fx nodes to a :class:`Program`; ``layouts`` says where the samples lie in each tensor."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        tensors: dict[str, torch.Tensor],
        network: str,
        fixed_batch: int | None = None,
    ) -> None:
        self._fixed = fixed_batch
        self._exported = exported
        self._tensors = tensors
        self._network = network
        self._constants: dict[str, torch.Tensor] = {}
        self._several: dict[str, Any] = {}  # results of constant operators that give several
        self._roots: dict[str, frozenset[str]] = {}
        self._picks: dict[str, _Pick] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self.layouts: dict[str, Layout | None] = {}

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
            self.layouts[node.name] = _layout(node.meta["val"], self._fixed)
            ops.append(self._translate(node))
        constants = {name: array(value) for name, value in self._constants.items()}
        return Program(ops, constants, source, self._output(), self._roots, self._sizes)

    def picks(self, name: str) -> np.ndarray | None:
        """For each entry of the constant ``name`` which entry of the network's own tensor it is; None for one that is computed."""
        pick = self._picks.get(name)
        return None if pick is None else np.asarray(pick().numpy())

    def _inputs(self) -> str:
        user = torch.export.graph_signature.InputKind.USER_INPUT
        sources = []
        specs = self._exported.graph_signature.input_specs
        placeholders = [node for node in self._exported.graph.nodes if node.op == "placeholder"]
        first: dict[tuple[Any, ...], str] = {}  # a tensor may go by several names (tied weights)
        for node, spec in zip(placeholders, specs, strict=True):
            if spec.kind == user:
                sources.append(node.name)
                self.layouts[node.name] = _layout(node.meta["val"], self._fixed)
            else:
                value = self._tensors[str(spec.target)]
                place = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
                target = first.setdefault(place, str(spec.target)) if value.numel() else str(spec.target)
                self._root(node.name, target, value)
        if len(sources) != 1:
            raise UnsupportedOperator(f"{self._network} takes {len(sources)} inputs; exactly one is needed.")
        return sources[0]

    def _root(self, name: str, root: str, value: torch.Tensor) -> None:
        self._constants[name] = value.detach()
        if value.is_floating_point() and value.dim() > 0:
            self._roots[name] = frozenset({root})
            self._picks[name] = lambda: torch.arange(value.numel()).reshape(value.shape)
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
        parents, known, value = node.all_input_nodes, {**self._several, **self._constants}, node.meta["val"]
        results = [value] if isinstance(value, torch.Tensor) else list(value)
        if any(parent.name not in known for parent in parents):
            return False
        if not all(isinstance(r, torch.Tensor) and all(isinstance(d, int) for d in r.shape) for r in results):
            return False
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda parent: known[parent.name])
        with torch.no_grad():
            found = node.target(*arguments[0], **arguments[1])  # type: ignore[operator, index]
        (self._constants if isinstance(value, torch.Tensor) else self._several)[node.name] = found
        roots = [self._roots.get(p.name, frozenset()) for p in parents]
        self._roots[node.name] = frozenset().union(*roots)
        pick = self._moved(node, known)
        if pick is not None:
            self._picks[node.name] = pick
        return True

    def _moved(self, node: fx.Node, known: dict[str, Any]) -> _Pick | None:
        """What moves the indices of a weight as the folded ``node`` moves its values; None where it computes new ones."""
        target = str(node.target)
        operator = target.rpartition(".")[0] or target
        parents = [parent for parent in node.all_input_nodes if self._roots.get(parent.name)]
        if len(parents) != 1 or not node.args or node.args[0] is not parents[0]:
            return None
        before = self._picks.get(parents[0].name)
        if before is None:
            return None
        if operator in _DROPOUTS:
            return before if len(node.args) > 2 and node.args[2] is False else None
        if operator in _SAME:
            old, new = parents[0].meta["val"].dtype, node.meta["val"].dtype
            return before if torch.promote_types(old, new) == new else None
        if operator not in _MOVES and node.target is not operator_module.getitem:
            return None

        def pick() -> Any:
            values = {**known, parents[0].name: before()}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda parent: values[parent.name])  # type: ignore[misc]
            return node.target(*args, **kwargs)  # type: ignore[operator]

        return pick

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
            before = self._picks.get(names[1])
            if before is not None:
                self._picks[turned] = lambda: before().t()
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


def array(value: torch.Tensor) -> np.ndarray:
    return (
        value.detach().to(torch.float64).cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
    )


def _layout(value: Any, fixed: int | None) -> Layout | None:
    """Where the samples lie, from the symbolic shape; None where no axis, or more than one, depends on their number."""
    if not isinstance(value, torch.Tensor):
        return None
    if fixed is not None:
        return fixed_layout(tuple(int(dim) for dim in value.shape), fixed)
    small, large = (tuple(_size(dim, batch) for dim in value.shape) for batch in _BATCHES)
    return layout_of(small, large, _BATCHES)


def _size(dim: int | torch.SymInt, batch: int) -> int:
    """A size for so many samples, -1 for one that does not follow from them."""
    if isinstance(dim, int):
        return dim
    expression = dim.node.expr
    found = expression.subs(dict.fromkeys(expression.free_symbols, batch))
    return int(found) if found.is_Integer else -1
