"""How far states and outputs move when the entries of A, B, C, D do (IDL Theorem 5.1, with the formula that holds).

Let x0 = phi(A0 x0 + B0 u) and x = phi(A x + B u), with |A - A0| <= E_A and |B - B0| <= E_B entry by entry and L the Lipschitz
constants of the activations. Then A x - A0 x0 = A (x - x0) + (A - A0) x0, and so

    |x - x0| <= diag(L) ( |A| |x - x0| + E_A |x0| + E_B |u| ),    |A| <= |A0| + E_A.

Where the Perron-Frobenius eigenvalue of P = diag(L) (|A0| + E_A) is below 1, (I - P)^-1 >= 0 exists, both models are well-posed, and

    |x - x0| <= (I - P)^-1 diag(L) ( E_A |x0| + E_B |u| ),
    |y - y0| <= (|C0| + E_C) |x - x0| + E_C |x0| + E_D |u|.

IDL prints (I - |A0 + E|)^-1 E x0: both moduli are in the wrong place. (A0 = -.5 S, E = .4 S, S a swap of two states, identity
activations: the error can be 8 where that gives .89.) Where all slopes lie in [0, 1] a self loop a_ii < 0 only helps,
(1 - s a_ii) |d| <= s |rest| with 0 <= s <= 1, so that P may have max(a_ii + e_ii, 0) on its diagonal; see
:class:`simtool.model.wellposed.Majorant`.

Solutions of I - P are made upper bounds in floating-point arithmetic too: if d falls short of d >= P d + r, a multiple of
the vector v > 0 with P v <= f v, f < 1, is added. What is left to trust is x0, a fixed point found to 13 digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from simtool import blocks as blocks_module
from simtool.blocks import lipschitz
from simtool.errors import InputError
from simtool.model import levels
from simtool.model.forward import FixedPoint
from simtool.model.implicit import ImplicitModel
from simtool.model.wellposed import collatz_wielandt, local_blocks, majorant

_PRECISE = FixedPoint(tolerance=1e-13)
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class PerturbationBound:
    """``states`` (n, m) >= |x - x0| and ``outputs`` (q, m) >= |y - y0| (before the output map), for m inputs; ``nominal``
    (n, m) are the states x0, or the bound on |x0| that was given."""

    states: np.ndarray
    outputs: np.ndarray
    nominal: np.ndarray


def perturbation_bound(
    model: ImplicitModel,
    E_A: Any = None,
    E_B: Any = None,
    E_C: Any = None,
    E_D: Any = None,
    *,
    U: np.ndarray | None = None,
    x0: np.ndarray | None = None,
) -> PerturbationBound:
    """The bounds above for every model whose entries differ from those of ``model`` by at most E_A, E_B, E_C, E_D.

    Parameters
    ----------
    E_A (n, n), E_B (n, p), E_C (q, n), E_D (q, p) : non-negative, dense or sparse; None is zero. The bias is a column of E_B and E_D
    U (p, m) : the inputs, with the bias row. Together with ``x0``, any bounds on their absolute values
    x0 (n, m) : the states for ``U``, or bounds on their absolute values; by default they are computed. With
        :func:`state_bound` the result holds for all inputs of a box

    Raises InputError for shapes, negative or non-finite entries, and where the eigenvalue is not proven to be below 1;
    ConvergenceError where the model's own states cannot be found.
    """
    errors = [
        _error(entries, name, getattr(model, name))
        for name, entries in zip("ABCD", (E_A, E_B, E_C, E_D), strict=True)
    ]
    if x0 is None:
        if U is None:
            raise InputError("the bound needs the inputs U or the states x0, and neither was given.")
        x0 = model.forward(U, _PRECISE).X
    nominal = np.asarray(x0, dtype=np.float64)
    size, inputs = np.abs(_matrix(nominal, model.n, "x0")), None
    if U is not None:
        inputs = np.abs(_matrix(U, model.p, "U"))
        if inputs.shape[1] != size.shape[1]:
            raise InputError(
                f"U has {inputs.shape[1]} columns and x0 has {size.shape[1]}; both must be equal."
            )
    elif errors[1].nnz or errors[3].nnz:
        raise InputError("E_B and E_D multiply the inputs: pass U, or bounds on |U|, with the bias row.")
    reach = sparse.csr_array(abs(model.A) + errors[0])
    loops = model.A.diagonal() + errors[0].diagonal()
    return _bound(model, reach, loops, abs(model.C) + errors[2], errors, size, inputs, nominal)


def difference_bound(model: ImplicitModel, other: ImplicitModel, U: np.ndarray) -> PerturbationBound:
    """The bounds above for one known model ``other``: with |A| of that model in the place of |A0| + E_A, which is tighter.

    Both models need the same blocks, inputs and outputs. Raises as :func:`perturbation_bound` does.
    """
    errors = list(entry_errors(model, other))
    nominal = model.forward(U, _PRECISE).X
    inputs = np.abs(np.asarray(U, dtype=np.float64))
    return _bound(
        model, abs(other.A), other.A.diagonal(), abs(other.C), errors, np.abs(nominal), inputs, nominal
    )


def entry_errors(model: ImplicitModel, other: ImplicitModel) -> tuple[sparse.csr_array, ...]:
    """|A - A'|, |B - B'|, |C - C'|, |D - D'| of two models with the same blocks. Raises InputError where they differ."""
    ours, theirs = ([(b.activation.spec, b.offset, b.size) for b in each.blocks] for each in (model, other))
    if ours != theirs or (model.p, model.q, model.has_bias) != (other.p, other.q, other.has_bias):
        raise InputError(
            f"the models differ in more than the values of A, B, C, D: {model.n} states, {model.p} inputs, {model.q} outputs in blocks "
            f"{ours}, and {other.n}, {other.p}, {other.q} in {theirs}. Pass models of the same shape and activations."
        )
    return tuple(sparse.csr_array(abs(getattr(model, name) - getattr(other, name))) for name in "ABCD")


def state_bound(model: ImplicitModel, radius: np.ndarray) -> np.ndarray:
    """Bounds on |x| (n, m) for all inputs with |u| <= ``radius`` (p, m), whose bias row is 1.

    |x| <= |phi(0)| + diag(L) (|A| |x| + |B| |u|), solved for |x| where the Perron-Frobenius eigenvalue of diag(L) |A| is proven
    to be below 1. Raises InputError where it is not.
    """
    size = np.abs(_matrix(radius, model.p, "radius"))
    still = np.abs(blocks_module.apply(model.blocks, np.zeros((model.n, 1))))
    right = still + lipschitz(model.blocks)[:, None] * (abs(model.B) @ size)
    return _solve(model, abs(model.A), model.A.diagonal(), right)


def _bound(
    model: ImplicitModel,
    reach: sparse.csr_array,
    loops: np.ndarray,
    reading: sparse.csr_array,
    errors: list[sparse.csr_array],
    size: np.ndarray,
    inputs: np.ndarray | None,
    nominal: np.ndarray,
) -> PerturbationBound:
    moved, seen = errors[0] @ size, errors[2] @ size
    if inputs is not None:
        moved, seen = moved + errors[1] @ inputs, seen + errors[3] @ inputs
    states = _solve(model, reach, loops, lipschitz(model.blocks)[:, None] * moved)
    return PerturbationBound(states, reading @ states + seen, nominal)


def _solve(model: ImplicitModel, reach: sparse.csr_array, loops: np.ndarray, right: np.ndarray) -> np.ndarray:
    """d (n, m) >= (I - P)^-1 ``right`` with P = diag(L) ``reach``, component by component; ``loops`` are the signed self loops."""
    constants = lipschitz(model.blocks)
    solution = np.zeros_like(right)
    for component in levels.order(reach):
        rows = component.rows
        value = right[rows] + constants[rows][:, None] * (component.incoming @ solution)
        value *= 1.0 + 8.0 * _EPS * (component.incoming.shape[1] + 8)  # the rounding of these sums
        if component.cyclic:
            value = _solve_cycle(model, component.inner, loops[rows], rows, value)
        solution[rows] = value
    if not np.isfinite(solution).all():
        raise InputError(
            "the bound overflows double precision: the entries of A, or of the errors, are too large."
        )
    return solution


def _solve_cycle(
    model: ImplicitModel, inner: sparse.csr_array, loops: np.ndarray, rows: np.ndarray, value: np.ndarray
) -> np.ndarray:
    constants = lipschitz(model.blocks)[rows]
    unit = all(block.activation.unit_slopes for block in local_blocks(rows, model.blocks))
    if unit and (loops < 0.0).any():
        signed = inner.tolil()
        signed.setdiag(loops)
        inner = sparse.csr_array(signed)
    found = majorant(inner, constants, unit)
    if found.factor is None:
        weighted = sparse.csr_array(sparse.diags_array(constants) @ found.terms)
        names = ", ".join(block.name for block in local_blocks(rows, model.blocks))
        raise InputError(
            f"no error bound is known: in a component of {len(rows)} states in blocks {names} the Perron-Frobenius eigenvalue of "
            f"diag(L) (|A| + E) is not proven to be below 1 (bound {collatz_wielandt(weighted)[0]:.6g}). Pass a smaller error E, or a "
            "model with a smaller kappa."
        )
    v = found.vector
    weighted = sparse.csr_array(sparse.diags_array(constants) @ found.terms)
    balanced = sparse.csr_array(sparse.diags_array(1.0 / v) @ weighted @ sparse.diags_array(v))
    solved = levels.solve_inner(balanced, value / v[:, None])
    d = value if solved is None else np.maximum(v[:, None] * solved, 0.0)
    # d + t v is an upper bound as soon as it is at least value + P (d + t v)
    image = weighted @ d
    rounding = 8.0 * _EPS * (np.diff(weighted.indptr)[:, None] + 8) * (value + image + d)
    short = np.maximum(value + image - d, 0.0) + rounding
    step = (short / v[:, None]).max(axis=0) / (1.0 - found.factor)
    return np.asarray(d + step * v[:, None])


def _matrix(values: Any, rows: int, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != rows:
        raise InputError(f"{name} must have shape ({rows}, m), one column for each input, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite values; all must be finite.")
    return array


def _error(entries: Any, name: str, like: sparse.csr_array) -> sparse.csr_array:
    """``entries`` as a non-negative matrix of the shape of ``like``."""
    if entries is None:
        return sparse.csr_array(like.shape)
    matrix = (
        sparse.csr_array(entries, dtype=np.float64)
        if np.ndim(entries) == 2 or sparse.issparse(entries)
        else None
    )
    if matrix is None or matrix.shape != like.shape:
        raise InputError(
            f"E_{name} must be a matrix of the shape of {name}, {like.shape}, got shape {np.shape(entries)}."
        )
    if not np.isfinite(matrix.data).all() or (matrix.data < 0.0).any():
        raise InputError(
            f"E_{name} bounds the absolute error of each entry of {name}: all its entries must be finite and at least 0, got one of "
            f"{matrix.data[~(matrix.data >= 0.0) | ~np.isfinite(matrix.data)][0]}."
        )
    return matrix
