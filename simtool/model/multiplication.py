"""Products of two models' outputs (IDL section 2.4): bounded factors, written with squares.

A product is not Lipschitz continuous unless its factors are bounded. For activations with constants gamma_i and
|phi_i| <= c_i, IDL's map phi(u) = phi_1(u_1) phi_2(u_2) has the constant max(c_2 gamma_1, c_1 gamma_2) in the l1 norm.
It is a map of two values to one, which as a block of a state vector would be filled up with a zero. The states of a
model here are elementwise (slopes are numbers, not matrices, in every theorem and solver), so that it is written as

    v_1 v_2 = s((v_1 + v_2) / 2) - s((v_1 - v_2) / 2),     v_i = phi_i(u_i) / c_i,    s(z) = min(|z|, 1)^2.

|v_i| <= 1 keeps both arguments in [-1, 1], where s is the square: nothing is ever cut off, and the product is exact
for every input, up to rounding. What is lost is a factor of 2: bounds that add absolute values, as all of the theorems
here do, see the constants 2 c_2 gamma_1 and 2 c_1 gamma_2, twice IDL's. An acyclic model is well-posed whatever they are.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simtool import activations
from simtool.activations import Activation
from simtool.blocks import INPUT, Block
from simtool.errors import InputError
from simtool.model.assembly import plain
from simtool.model.composition import cascade, concatenate
from simtool.model.implicit import ImplicitModel


def elementwise(activation: Activation | str, size: int) -> ImplicitModel:
    """y = phi(u) as an implicit model: A = 0, B = C = I, D = 0, no bias; its block has the activation's name."""
    phi = activations.parse(activation) if isinstance(activation, str) else activation
    if size < 1:
        raise InputError(f"an activation needs at least one value, got size {size}.")
    return ImplicitModel(
        A=sparse.csr_array((size, size)),
        B=sparse.eye_array(size),
        C=sparse.eye_array(size),
        D=sparse.csr_array((size, size)),
        blocks=(Block(phi.name, phi, 0, size, (size,), (INPUT,)),),
        output_parents=(phi.name,),
        has_bias=False,
        structure="dag",
    )


def output_bound(model: ImplicitModel) -> np.ndarray:
    """c (q,) with |y_i(u)| <= c_i for every u, from the bounds of the activations; infinite where none follows.

    An output that depends on an input directly (a non-zero in D) is not bounded.
    """
    bounds = np.concatenate([np.zeros(0), *(np.full(b.size, b.activation.bound) for b in model.blocks)])
    direct = abs(model.D)
    if model.has_bias:
        constant = direct[:, [-1]].toarray()[:, 0]
        direct = sparse.csr_array(direct[:, :-1])
    else:
        constant = np.zeros(model.q)
    bounded = np.diff(direct.indptr) == 0
    return np.where(bounded, np.asarray(abs(model.C) @ bounds) + constant, np.inf)


def multiply(
    first: ImplicitModel,
    second: ImplicitModel,
    *,
    gates: tuple[Activation | str | None, Activation | str | None] = (None, None),
    separate_inputs: bool = False,
    names: tuple[str, str] = ("first", "second"),
    strip_output_map: bool = False,
) -> ImplicitModel:
    """y = phi_1(y_1(u)) * phi_2(y_2(u)) output by output, or of (u_1, u_2) with ``separate_inputs``.

    ``gates`` names the bounded activations phi_i: "tanh", "sigmoid", or "clip:c", which cuts off at +-c, so that the
    result is y_1 y_2 exactly where |y_i| <= c_i, and the product of the cut off values elsewhere. None stands for no
    activation and needs outputs that are bounded already: sums of tanh, sigmoid, clip or square states and a bias.

    The result is the cascade of the gates and of 2 q squares (block ``product/square``) on top of both models side by
    side, and well-posed exactly where they are. Raises InputError for outputs that differ in number or have no bound.
    """
    if first.q != second.q:
        raise InputError(
            f"{names[0]!r} has {first.q} outputs and {names[1]!r} {second.q}; products need equally many."
        )
    factors, bounds = [], []
    for model, gate, name in zip((first, second), gates, names, strict=True):
        factor = plain(model, name, strip_output_map)
        if gate is not None:
            factor = cascade(elementwise(gate, model.q), factor, names=("gate", ""))
        bound = output_bound(factor)
        if not np.isfinite(bound).all():
            raise InputError(
                f"output {int(np.argmin(np.isfinite(bound)))} of {name!r} is not bounded, and a product of unbounded factors is not "
                "Lipschitz continuous. Pass gates with 'tanh', 'sigmoid' or 'clip:c' for it; 'clip:c' keeps values up to c."
            )
        factors.append(factor)
        bounds.append(np.where(bound > 0.0, bound, 1.0))
    both = concatenate(*factors, separate_inputs=separate_inputs, names=names)
    return cascade(_product(*bounds), both, names=("product", ""))


def _product(first: np.ndarray, second: np.ndarray) -> ImplicitModel:
    """(v_1, v_2) -> v_1 v_2 for |v_1| <= ``first`` and |v_2| <= ``second``, both (q,)."""
    q = len(first)
    one, two = sparse.diags_array(0.5 / first), sparse.diags_array(0.5 / second)
    product = sparse.diags_array(first) @ sparse.diags_array(second)
    return ImplicitModel(
        A=sparse.csr_array((2 * q, 2 * q)),
        B=sparse.block_array([[one, two], [one, -two]]),
        C=sparse.hstack([product, -product]),
        D=sparse.csr_array((q, 2 * q)),
        blocks=(Block("square", activations.make("square", 1.0), 0, 2 * q, (2 * q,), (INPUT,)),),
        output_parents=("square",),
        has_bias=False,
        structure="dag",
    )
