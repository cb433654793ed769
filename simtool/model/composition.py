"""Implicit models put together by matrix algebra: cascade, concatenation, weighted sum, affine maps (IDL section 2.4).

Every law here leaves A block triangular, so the strongly connected components of the whole are those of its parts.
The whole is therefore well-posed exactly where every part is (IDL Theorems 2.7 and 2.8), by the same theorem, and its
Perron-Frobenius eigenvalue of diag(L)|A| is the largest of the parts'. Only feedback can lose well-posedness
(:mod:`simtool.model.feedback_loops`); products are cascades with a bounded square (:mod:`simtool.model.multiplication`).

Conventions. The states of the part that is evaluated last stand first. A block ``h`` of the part called ``outer``
becomes ``outer/h``; parents are what the matrices of the whole really use. Biases are the constant-1 row, last in U:
the whole has one row for all parts, and the constant passes through a cascade. Certificates, which judge rows that no
longer exist, are dropped, and so is ``scale``, which is found anew on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from simtool.errors import InputError
from simtool.model.assembly import Weight, assemble, input_size, operator, plain, split, stack
from simtool.model.implicit import ImplicitModel


def cascade(
    outer: ImplicitModel,
    inner: ImplicitModel,
    *,
    names: tuple[str, str] = ("outer", "inner"),
    strip_output_map: bool = False,
) -> ImplicitModel:
    """y = outer(inner(u)), with x = (x_outer, x_inner) (IDL section 2.4, Figure 2; thesis Figure 2.2).

    With inner = 1, outer = 2 and the bias columns b, d set apart,

        M = [A2  B2 C1 | B2 D1   B2 d1 + b2]
            [0   A1    | B1      b1        ]
            [C2  D2 C1 | D2 D1   D2 d1 + d2]

    as printed there, plus the constant 1 that outer's bias takes besides inner's outputs. (IDL states well-posedness
    for phi(z1, z2) = (phi_1(z1), phi_2(z2)), the other order; the thesis has it right.) The whole has a bias row
    where one of the two has. ``outer``'s output map is the whole's; ``inner``'s is refused unless ``strip_output_map``.

    Raises InputError where inner's outputs are not as many as outer's inputs.
    """
    inner = plain(inner, names[1], strip_output_map)
    if inner.q != input_size(outer):
        raise InputError(
            f"{names[1]!r} has {inner.q} outputs, {names[0]!r} takes {input_size(outer)} inputs besides its bias; both must be "
            "equal. Put an affine map between them, or connect another model."
        )
    (b2, b2_bias), (d2, d2_bias) = split(outer.B, outer), split(outer.D, outer)
    (b1, b1_bias), (d1, d1_bias) = split(inner.B, inner), split(inner.D, inner)
    has_bias = outer.has_bias or inner.has_bias
    bias = [[b2 @ d1_bias + b2_bias], [b1_bias], [d2 @ d1_bias + d2_bias]] if has_bias else [[], [], []]
    zero = sparse.csr_array((inner.n, outer.n))
    return assemble(
        {
            "A": stack([outer.A, b2 @ inner.C], [zero, inner.A]),
            "B": stack([b2 @ d1, *bias[0]], [b1, *bias[1]]),
            "C": stack([outer.C, d2 @ inner.C]),
            "D": stack([d2 @ d1, *bias[2]]),
        },
        [(names[0], outer), (names[1], inner)],
        has_bias=has_bias,
        input_shape=inner.input_shape,
        output_map=outer.output_map,
    )


def affine_map(
    weight: np.ndarray | sparse.sparray, bias: np.ndarray | None = None, input_shape: tuple[int, ...] = ()
) -> ImplicitModel:
    """y = weight u + bias as an implicit model without states: D = [weight bias], and A, B, C are empty."""
    if weight.ndim != 2:
        raise InputError(f"the weight of an affine map must be a matrix, got shape {weight.shape}.")
    matrix = sparse.csr_array(weight, dtype=np.float64)
    rows, columns = matrix.shape
    if bias is not None:
        offset = np.asarray(bias, dtype=np.float64)
        if offset.shape not in ((), (rows,)):
            raise InputError(
                f"the bias of an affine map of {rows} outputs must be a number or {rows} numbers, got shape {offset.shape}."
            )
        matrix = stack([matrix, sparse.csr_array(np.broadcast_to(offset, (rows,)).reshape(-1, 1))])
    return ImplicitModel(
        A=sparse.csr_array((0, 0)),
        B=sparse.csr_array((0, matrix.shape[1])),
        C=sparse.csr_array((rows, 0)),
        D=matrix,
        blocks=(),
        has_bias=bias is not None,
        input_shape=input_shape or (columns,),
    )


def affine(
    model: ImplicitModel,
    *,
    weight: Weight | None = None,
    bias: Any = None,
    input_weight: Weight | None = None,
    input_bias: Any = None,
    input_shape: tuple[int, ...] = (),
    strip_output_map: bool = False,
) -> ImplicitModel:
    """y = weight model(input_weight u + input_bias) + bias: cascades with models that have no activation (IDL 2.4).

    A weight is a number, a diagonal or a matrix. Names of blocks are kept. Where ``input_weight`` is a matrix, the new
    samples have ``input_shape`` (default: a vector). A change of the outputs is refused for a model with an output map
    unless ``strip_output_map``. Raises InputError for shapes that do not fit.
    """
    result = model
    if weight is not None or bias is not None:
        after = affine_map(operator(1.0 if weight is None else weight, model.q, "weight"), bias)
        result = cascade(after, result, names=("", ""), strip_output_map=strip_output_map)
    if input_weight is not None or input_bias is not None:
        size = input_size(model)
        before = operator(1.0 if input_weight is None else input_weight, size, "input_weight", rows=True)
        diagonal = input_weight is None or (not sparse.issparse(input_weight) and np.ndim(input_weight) < 2)
        if diagonal and not input_shape:
            input_shape = model.input_shape
        result = cascade(result, affine_map(before, input_bias, input_shape), names=("", ""))
    return result


def concatenate(
    *models: ImplicitModel,
    separate_inputs: bool = False,
    names: Sequence[str] | None = None,
    strip_output_map: bool = False,
) -> ImplicitModel:
    """y = (y_1(u), y_2(u), ...), or with ``separate_inputs`` y = (y_1(u_1), y_2(u_2), ...) of u = (u_1, u_2, ...).

    All of A and C are block diagonal, and B and D too for separate inputs; IDL section 2.4 leaves the details to the
    reader. Parts are called part1, part2, ... by default. Raises InputError where shared inputs differ in size.
    """
    if not models:
        raise InputError("no model was given; concatenate needs at least one.")
    called = [f"part{i + 1}" for i in range(len(models))] if names is None else list(names)
    if len(called) != len(models):
        raise InputError(f"{len(models)} models and {len(called)} names: {called}. Give one name to each.")
    models = tuple(plain(model, name, strip_output_map) for model, name in zip(models, called, strict=True))
    sizes = [input_size(model) for model in models]
    shapes = {model.input_shape for model in models}
    if not separate_inputs and len(set(sizes)) > 1:
        raise InputError(
            f"models that share their input must take inputs of one size, got {sizes}. Pass separate_inputs=True to give each its own."
        )
    has_bias = any(model.has_bias for model in models)
    blocks = {
        "A": _diagonal([model.A for model in models]),
        "C": _diagonal([model.C for model in models]),
    }
    for name in "BD":
        inputs, bias = zip(*(split(getattr(model, name), model) for model in models), strict=True)
        whole = _diagonal(inputs) if separate_inputs else stack(*([piece] for piece in inputs))
        blocks[name] = stack([whole, stack(*([piece] for piece in bias))]) if has_bias else whole
    if separate_inputs:
        shape = shapes.pop() if len(models) == 1 else (sum(sizes),)
    else:
        shape = shapes.pop() if len(shapes) == 1 else (sizes[0],)
    return assemble(blocks, list(zip(called, models, strict=True)), has_bias=has_bias, input_shape=shape)


def parallel_sum(
    *models: ImplicitModel,
    weights: Sequence[float] | None = None,
    separate_inputs: bool = False,
    names: Sequence[str] | None = None,
    strip_output_map: bool = False,
) -> ImplicitModel:
    """y(u) = sum_i weights_i y_i(u); IDL section 2.4 prints y(u_1, u_2) = y_1(u_1) + y_2(u_2), ``separate_inputs``.

    A = diag(A_i), C = [w_1 C_1, w_2 C_2, ...], D = sum_i w_i D_i for a shared input and [w_1 D_1, w_2 D_2, ...] else.
    """
    outputs = {model.q for model in models}
    if len(outputs) > 1:
        raise InputError(f"models of different numbers of outputs, {sorted(outputs)}, cannot be summed.")
    factors = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(factors) != len(models):
        raise InputError(f"{len(models)} models and {len(factors)} weights. Give one weight to each.")
    whole = concatenate(
        *models, separate_inputs=separate_inputs, names=names, strip_output_map=strip_output_map
    )
    total = stack([sparse.csr_array(sparse.diags_array(np.full(models[0].q, w))) for w in factors])
    return affine(whole, weight=total)


def _diagonal(matrices: Sequence[sparse.csr_array]) -> sparse.csr_array:
    return sparse.csr_array(sparse.block_diag(list(matrices), format="csr"))
