"""Feedback connections of implicit models (IDL section 2.4), which are not well-posed for free.

Two things can go wrong when outputs are fed back as inputs. The outputs may depend on themselves without any state in
between: y = C x + D (u + K y) determines y only where I - D K is regular (the algebraic, or D-loop). And the closed
A + B K (I - D K)^-1 C may have no or several states for some input, even if A is well-posed and the loop is regular.
The first is always refused; the second unless the caller asks for the model all the same.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simtool.blocks import lipschitz
from simtool.errors import InputError
from simtool.model.assembly import Weight, assemble, input_size, operator, plain
from simtool.model.composition import affine, concatenate
from simtool.model.implicit import ImplicitModel
from simtool.model.levels import solve_nonnegative

_WORST_CONDITION = 1e12  # of I - D K; four digits of the outputs are left


def _gain(model: ImplicitModel, K: Weight) -> sparse.csr_array:
    size = input_size(model)
    matrix = operator(K, model.q, "K")
    if matrix.shape[0] != size:
        raise InputError(
            f"K must map the {model.q} outputs to the {size} inputs besides the bias, a matrix of shape ({size}, {model.q}), got "
            f"{matrix.shape}. Without K, and for a number or a vector, outputs and inputs must be equally many."
        )
    if not np.isfinite(matrix.data).all():
        raise InputError("K holds NaN or infinite values; all must be finite.")
    return matrix


def feedback(
    model: ImplicitModel,
    K: Weight = 1.0,
    *,
    allow_unproven: bool = False,
    strip_output_map: bool = False,
) -> ImplicitModel:
    """The model with its outputs fed back, u = u' + K y; ``K`` is a number, a diagonal or a matrix (inputs, outputs).

    From y = C x + D (u' + K y) + d follows y = R (C x + D u' + d) with R = (I - D K)^-1, and so

        A' = A + B K R C,   B' = B + B K R D,   b' = b + B K R d,   C' = R C,   D' = R D,   d' = R d,

    b and d the bias columns: the constant 1 is not fed back. IDL prints D = 0, where R = I.

    Raises InputError where I - D K is singular (or so ill-conditioned that no digits are left), and where the closed
    loop is not proven well-posed (see :mod:`simtool.model.wellposed`) unless ``allow_unproven``. :func:`loop_gain` < 1
    is enough for the proof. A has no block structure to lean on any more: IDL notes that the parts being well-posed
    does not help.
    """
    model = plain(model, "feedback", strip_output_map)
    gain = _gain(model, K)
    size = input_size(model)
    c, d = model.C, model.D
    loop = sparse.csr_array(model.D[:, :size] @ gain)
    loop.eliminate_zeros()
    if loop.nnz:
        inverse = _inverse(np.eye(model.q) - loop.toarray())
        c, d = sparse.csr_array(inverse @ model.C), sparse.csr_array(inverse @ model.D)
    entering = sparse.csr_array(model.B[:, :size] @ gain)
    result = assemble(
        {"A": model.A + entering @ c, "B": model.B + entering @ d, "C": c, "D": d},
        [("", model)],
        has_bias=model.has_bias,
        input_shape=model.input_shape,
        closed=True,
    )
    verdict = result.well_posedness()
    if not verdict.well_posed and not allow_unproven:
        known = loop_gain(model, gain)
        shown = (
            "unknown, since the open loop is not proven by perron-frobenius"
            if known is None
            else f"{known:.6g}"
        )
        raise InputError(
            f"the feedback connection is not proven well-posed: {verdict.explanation} The loop gain ||S|K| ||_inf is {shown}; a "
            "smaller K, with a loop gain below 1, is always proven. Pass allow_unproven=True for the model all the same."
        )
    return result


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of I - D K; refused above _WORST_CONDITION."""
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            inverse: np.ndarray = np.linalg.inv(matrix)
        except np.linalg.LinAlgError:
            condition = np.inf
        else:
            condition = float(np.linalg.norm(matrix, 1) * np.linalg.norm(inverse, 1))
            if condition <= _WORST_CONDITION:
                return inverse
    raise InputError(
        f"the feedback loop has no unique outputs: I - D K is singular (condition {condition:.3g}, allowed {_WORST_CONDITION:.0e}), so "
        "that y = C x + D (u + K y) does not determine y. Change K, or feed back a model with D = 0."
    )


def feedback_pair(
    forward: ImplicitModel,
    backward: ImplicitModel,
    *,
    names: tuple[str, str] = ("forward", "backward"),
    allow_unproven: bool = False,
    strip_output_map: bool = False,
) -> ImplicitModel:
    """Two models in a loop: u_1 = u + y_2, u_2 = y_1 = y (IDL section 2.4), with x = (x_1, x_2).

    For D_1 = D_2 = 0, as printed there (where the state equation lacks the index of B_i),

        M = [A1     B1 C2 | B1]
            [B2 C1  A2    | 0 ]
            [C1     0     | 0 ]

    In general it is :func:`feedback` of both side by side with K = [0 I; I 0], so that R = (I - D K)^-1 exists where
    I - D_1 D_2 is regular, and A, B, C, D follow from there; the constant 1 feeds both biases. Raises as feedback does.
    """
    n1, n2 = input_size(forward), input_size(backward)
    if n1 != backward.q or n2 != forward.q:
        raise InputError(
            f"a loop needs {names[1]!r} to take the {forward.q} outputs of {names[0]!r} and to give its {n1} inputs; it takes {n2} "
            f"and gives {backward.q}."
        )
    both = concatenate(
        forward, backward, separate_inputs=True, names=names, strip_output_map=strip_output_map
    )
    first, second = sparse.eye_array(n1), sparse.eye_array(n2)
    swap = sparse.block_array([[None, first], [second, None]], format="csr")
    closed = feedback(both, sparse.csr_array(swap), allow_unproven=allow_unproven)
    enters = sparse.csr_array(sparse.eye_array(n1 + n2, n1))
    leaves = sparse.csr_array(sparse.eye_array(forward.q, forward.q + backward.q))
    return affine(closed, weight=leaves, input_weight=enters, input_shape=forward.input_shape)


def loop_gain(model: ImplicitModel, K: Weight = 1.0) -> float | None:
    """||S|K| ||_inf with IDL's sensitivity matrix S = |C| (I - L|A|)^-1 L|B| + |D| (Theorem 4.2); the bias does not count.

    Below 1 the closed loop is well-posed by the Perron-Frobenius condition (2.5): the non-negative matrix

        [L|A|  L|B||K|]
        [|C|   |D||K| ]

    has an eigenvalue below 1 exactly where L|A| and its Schur complement S|K| have, and eliminating its second row
    bounds L|A'| of the closed loop entry by entry. None where the model itself is not proven by that condition.
    """
    gain = _gain(model, K)
    if any(component.pf >= 1.0 for component in model.well_posedness().components):
        return None
    size = input_size(model)
    ones = np.asarray(abs(gain).sum(axis=1), dtype=np.float64)
    constants = lipschitz(model.blocks)
    states = solve_nonnegative(
        model.components, constants, constants * np.asarray(abs(model.B[:, :size]) @ ones)
    )
    if states is None:
        return None
    values = np.asarray(abs(model.C) @ states + abs(model.D[:, :size]) @ ones)
    return float(values.max()) if values.size else 0.0
