"""An implicit model as a PyTorch module whose pattern is fixed and whose values can be trained.

States that depend on no cycle are plain autograd. A cyclic component is solved by the tool's own fixed point, under
the same rule and the same proof (:class:`simtool.model.FixedPoint`; in float64 on the CPU whatever the module's type and
device), and differentiated implicitly: with S = diag(phi'(z)), the loss's gradient g with respect to x becomes

    lambda = g + A^T (S lambda),    dL/db = S lambda =: w,    dL/dA_ij = w_i x_j     for x = phi(A x + b),

solved to the same tolerance by :mod:`simtool.model.adjoint`. No iteration is stored or unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simtool import blocks as blocks_module
from simtool.blocks import BIAS, INPUT, Block
from simtool.errors import InputError, OptionError
from simtool.export.plan import FROM_INPUT, Entries, Step, plan
from simtool.model import FixedPoint, ImplicitModel
from simtool.model.adjoint import state_adjoint

_DENSE_ENTRIES = 2**24  # a step whose matrix has more entries is multiplied sparsely
_DTYPES = (torch.float32, torch.float64)


def _gelu_tanh(z: Tensor) -> Tensor:
    return nn.functional.gelu(z, approximate="tanh")


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": _gelu_tanh,
}
_WITH_PARAMETER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "leaky_relu": lambda z, slope: nn.functional.leaky_relu(z, slope),
    "elu": lambda z, alpha: nn.functional.elu(z, alpha),
    # the default threshold of 20 is a jump of 2e-9; from 40 on float64 sees none
    "softplus": lambda z, beta: nn.functional.softplus(z, beta, 40.0),
    "clip": lambda z, bound: nn.functional.hardtanh(z, -bound, bound),
    "square": lambda z, bound: nn.functional.hardtanh(z, -bound, bound).square(),
}
OUTPUT_MAPS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "softmax": lambda y: torch.softmax(y, dim=1),
    "log_softmax": lambda y: torch.log_softmax(y, dim=1),
    "sigmoid": torch.sigmoid,
}


def activate(spec: str, z: Tensor) -> Tensor:
    """phi(z) as :mod:`simtool.activations` defines it, for an activation's text form."""
    name, _, parameter = spec.partition(":")
    return _WITH_PARAMETER[name](z, float(parameter)) if parameter else _PLAIN[name](z)


class _Component:
    """x = phi(A x + b) for one cyclic component: a small model of its own, judged again only where A changed."""

    def __init__(self, inner: Entries, blocks: tuple[Block, ...], size: int, options: FixedPoint) -> None:
        self.shape, self.options = (size, size), options
        self.entries = inner
        # as text, since activations hold functions, which do not pickle
        self.blocks = blocks_module.to_json([replace(block, parents=(INPUT, BIAS)) for block in blocks])
        self._values: np.ndarray | None = None
        self._model: ImplicitModel | None = None

    def model(self, values: np.ndarray) -> ImplicitModel:
        """The component with the entries ``values`` of A: B and C are the identity, D is 0."""
        if self._model is None or self._values is None or not np.array_equal(self._values, values):
            k = self.shape[0]
            self._model = ImplicitModel(
                A=sparse.csr_array((values, (self.entries.rows, self.entries.columns)), shape=self.shape),
                B=sparse.eye_array(k, format="csr"),
                C=sparse.eye_array(k, format="csr"),
                D=sparse.csr_array(self.shape),
                blocks=blocks_module.from_json(self.blocks),
                has_bias=False,
            )
            self._values = values.copy()
        return self._model

    def products(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """sum over samples of w_i x_j for every entry (i, j), from ``w`` and ``x`` (k, m)."""
        rows, columns = self.entries.rows, self.entries.columns
        if len(rows) * 8 > w.shape[0] ** 2:  # one product of BLAS, of which the pattern is taken
            return np.asarray((w @ x.T)[rows, columns])
        total = np.zeros(len(rows))
        for one, other in zip(w.T, x.T, strict=True):
            total += one[rows] * other[columns]
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_values": None}


def _numbers(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


class _Solve(torch.autograd.Function):
    """x (m, k) with x = phi(A x + b) for ``values`` of A's entries and b = ``outside`` (m, k)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, outside: Tensor, component: _Component) -> Tensor:
        model = component.model(_numbers(values))
        found = model.forward(_numbers(outside).T, component.options)
        ctx.component, ctx.model, ctx.found = component, model, found
        return torch.from_numpy(np.ascontiguousarray(found.X.T)).to(outside.device, outside.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        component, found = ctx.component, ctx.found
        w = state_adjoint(ctx.model, found.Z, np.ascontiguousarray(_numbers(gradient).T), component.options)

        def back(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(gradient.device, gradient.dtype)

        values = back(component.products(w, found.X)) if ctx.needs_input_grad[0] else None
        return values, back(w.T), None


class _StepModule(nn.Module):
    """One step of the plan; its buffers say where the values of A and B (or C and D) go."""

    states: Tensor
    inputs: Tensor
    at: Tensor
    bias: Tensor
    bias_at: Tensor
    inner: Tensor

    def __init__(self, step: Step, dense: bool | None, options: FixedPoint) -> None:
        super().__init__()
        self.size, self.width, self.sources = step.size, step.width, step.sources
        self.pieces = tuple((activation.spec, size) for activation, size in step.pieces)
        self.dense = step.size * step.width <= _DENSE_ENTRIES if dense is None else dense
        rows = np.concatenate([step.states.rows, step.inputs.rows])
        columns = np.concatenate([step.states.columns, step.inputs.columns])
        at = rows * step.width + columns if self.dense else np.stack([rows, columns])
        buffers = {
            "states": step.states.take,
            "inputs": step.inputs.take,
            "at": at,
            "bias": step.bias.take,
            "bias_at": step.bias.rows,
        }
        self.component: _Component | None = None
        if step.inner is not None:
            buffers["inner"] = step.inner.take
            self.component = _Component(step.inner, step.blocks, step.size, options)
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.asarray(array, dtype=np.int64)), persistent=False)

    def outside(self, flat: Tensor, found: list[Tensor], states: Tensor, inputs: Tensor) -> Tensor:
        """W s + bias, (m, size)."""
        count = flat.shape[0]
        if self.sources:
            parts = [flat if source == FROM_INPUT else found[source] for source in self.sources]
            side = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            entries = torch.cat([states[self.states], inputs[self.inputs]])
            if self.dense:
                weight = entries.new_zeros(self.size * self.width).scatter(0, self.at, entries)
                z = nn.functional.linear(side, weight.view(self.size, self.width))
            else:
                shape = (self.size, self.width)
                weight = torch.sparse_coo_tensor(self.at, entries, shape, check_invariants=False)
                z = torch.sparse.mm(weight, side.T).T
        else:
            z = flat.new_zeros((count, self.size))
        if len(self.bias):
            z = z + inputs.new_zeros(self.size).scatter(0, self.bias_at, inputs[self.bias])
        return z

    def forward(self, flat: Tensor, found: list[Tensor], states: Tensor, inputs: Tensor) -> Tensor:
        z = self.outside(flat, found, states, inputs)
        if self.component is not None:
            solved: Tensor = _Solve.apply(states[self.inner], z, self.component)
            return solved
        if len(self.pieces) == 1:
            return activate(self.pieces[0][0], z)
        parts = z.split([size for _, size in self.pieces], dim=1)
        return torch.cat(
            [activate(spec, part) for (spec, _), part in zip(self.pieces, parts, strict=True)], dim=1
        )


class ImplicitModule(nn.Module):
    """x = phi(A x + B u), y = C x + D u with trainable values; build it with :func:`to_torch`.

    ``A``, ``B``, ``C``, ``D`` are parameters, (nnz,) in CSR order; the buffers ``A_indices``, ``A_indptr``, ... hold the
    pattern, which nothing changes. All of them are in ``state_dict()``.
    """

    A: nn.Parameter
    B: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        model: ImplicitModel,
        dtype: torch.dtype,
        output_map: bool,
        dense: bool | None,
        options: FixedPoint,
    ) -> None:
        super().__init__()
        self.input_shape = model.input_shape
        self.input_size = model.p - int(model.has_bias)
        self.output_map = model.output_map if output_map else None
        for name in "ABCD":
            matrix = getattr(model, name)
            setattr(self, name, nn.Parameter(torch.tensor(matrix.data, dtype=dtype)))
            for part in ("indices", "indptr"):
                array = getattr(matrix, part).astype(np.int64)
                self.register_buffer(f"{name}_{part}", torch.from_numpy(array))
        self.steps = nn.ModuleList(_StepModule(step, dense, options) for step in plan(model))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (k, q) for ``inputs`` (k, *input_shape), or any shape of the same size."""
        size = 1
        for length in inputs.shape[1:]:
            size *= length
        if inputs.ndim == 0 or size != self.input_size:
            raise InputError(
                f"a sample has shape {tuple(inputs.shape[1:])}, the model takes {self.input_shape} "
                f"({self.input_size} numbers). Pass data of that size."
            )
        flat = inputs.reshape(inputs.shape[0], self.input_size).to(self.D.dtype)
        found: list[Tensor] = []
        steps = cast("list[_StepModule]", list(self.steps))
        for step in steps[:-1]:
            found.append(step(flat, found, self.A, self.B))
        return OUTPUT_MAPS[self.output_map](steps[-1].outside(flat, found, self.C, self.D))


def to_torch(
    model: ImplicitModel,
    *,
    dtype: torch.dtype = torch.float32,
    output_map: bool = True,
    dense: bool | None = None,
    options: FixedPoint = FixedPoint(),  # noqa: B008 (frozen)
) -> ImplicitModule:
    """``model`` as a module that takes (k, *input_shape) and returns (k, q).

    Parameters
    ----------
    dtype : torch.float32 or torch.float64, of the values and of the outputs; inputs are cast to it
    output_map : apply the model's output map, as ``model.predict`` does; False returns Y, which a loss such as
        cross-entropy wants
    dense : multiply by matrices with their zeros (True), by sparse ones (False), or by size (None)
    options : how cyclic components are solved, forwards and backwards

    Raises OptionError for another dtype; the module raises InputError for a wrong shape, ConvergenceError where a fixed
    point or its gradient does not exist.
    """
    if dtype not in _DTYPES:
        raise OptionError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    return ImplicitModule(model, dtype, output_map, dense, options)


def from_torch(module: nn.Module, model: ImplicitModel) -> ImplicitModel:
    """``model`` with the values of ``module``, which :func:`to_torch` made from it (and training may have changed).

    The pattern is the same, but for values that became exactly 0. Certificates are dropped: they spoke of other rows. Weights
    that a convolution shared are values of their own now, and are counted as such.
    Well-posedness and the rescaling are judged again; ask ``well_posedness()`` before you rely on a cyclic model.

    Raises InputError for another module, another pattern, or values that are not finite.
    """
    if not isinstance(module, ImplicitModule):
        raise InputError(
            f"from_torch takes a module made by to_torch, got {type(module).__name__}. Pass that module, not a wrapper."
        )
    matrices: dict[str, sparse.csr_array] = {}
    for name in "ABCD":
        old = getattr(model, name)
        indices, indptr = (getattr(module, f"{name}_{part}").cpu().numpy() for part in ("indices", "indptr"))
        if not (np.array_equal(indices, old.indices) and np.array_equal(indptr, old.indptr)):
            raise InputError(
                f"the pattern of {name} in the module is not the model's ({len(indices)} entries, the model has {old.nnz}). "
                "Pass the model that the module was made from."
            )
        matrices[name] = sparse.csr_array((_numbers(getattr(module, name)), indices, indptr), shape=old.shape)
    structure = model.structure
    if structure == "exact":  # no longer what the network computes
        structure = "free" if any(part.cyclic for part in model.components) else "dag"
    tuned = replace(
        model,
        **matrices,
        certificates=None,
        scale=None,
        structure=structure,
        parameters_nnz=None,
        header_extra={**model.header_extra, "values_from": "torch"},
    )
    return replace(tuned, scale=tuned.rescaling())
