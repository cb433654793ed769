"""Gradients through the fixed point, by implicit differentiation: no iteration is stored or unrolled.

With S = phi'(Z), a small change of the pre-activations obeys dX = S (A dX + B dU + dz), so the adjoint is

    lambda = C^T dY + A^T (S lambda),    w = S lambda,    dL/dU = B^T w + D^T dY,    dL/dz = w,

solved against the order of evaluation: by substitution between components, and inside a cyclic component by the
same contraction that proves it well-posed (or by one dense solve per sample where nothing is proven).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simtool.blocks import Block
from simtool.errors import ConvergenceError, InputError
from simtool.model.forward import FixedPoint, Forward, averaging_step
from simtool.model.implicit import ImplicitModel
from simtool.model.levels import Component
from simtool.model.wellposed import ComponentVerdict

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


def slopes(blocks: tuple[Block, ...], z: np.ndarray) -> np.ndarray:
    """phi'(z), block by block, (n, m)."""
    result = np.empty_like(z)
    for block in blocks:
        result[block.rows] = block.activation.slope(z[block.rows])
    return result


def state_adjoint(
    model: ImplicitModel,
    z: np.ndarray,
    d_output: np.ndarray,
    options: FixedPoint = FixedPoint(),  # noqa: B008 (frozen)
) -> np.ndarray:
    """w = dL/dz (n, m), the effect on L of a small change of each pre-activation, for ``d_output`` = dL/dY (q, m)."""
    slope = slopes(model.blocks, z)
    direct = model.C.T @ d_output
    w = np.zeros_like(z)
    components = model.components
    verdicts = list(model.well_posedness().components)
    for component in reversed(components):
        rows = component.rows
        value = direct[rows] + component.outgoing @ w
        if component.cyclic:
            value = _solve_cyclic(component, verdicts.pop(), slope[rows], value, options)
        w[rows] = slope[rows] * value
    if not np.isfinite(w).all():
        raise ConvergenceError(
            "the gradient overflows double precision. Check the scale of the model's weights."
        )
    return w


def _solve_cyclic(
    component: Component,
    verdict: ComponentVerdict,
    slope: np.ndarray,
    right: np.ndarray,
    options: FixedPoint,
) -> np.ndarray:
    """v with v = right + A_cc^T (slope v), (k, m)."""
    transposed = sparse.csr_array(component.inner.T)
    if verdict.by is None:
        return _solve_directly(transposed, slope, right, verdict)
    # |slope| <= L: the spectral radius (norm, Perron-Frobenius) or the matrix measure of A_cc^T diag(slope) is
    # bounded as that of the forward iteration, so the same step contracts.
    step = averaging_step(component.inner) if verdict.by == "mu-inf" else 1.0
    value = right.copy()
    active = np.arange(right.shape[1])
    result = np.empty_like(right)
    s, r = slope, right
    previous = np.full(len(active), np.inf)
    for _ in range(options.max_iterations):
        image = r + transposed @ (s * value)
        change = np.abs(image - value).max(axis=0)
        size = np.maximum(np.abs(image).max(axis=0), np.finfo(np.float64).tiny)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(previous > 0, change / previous, 0.0)
        rate = np.minimum(np.where(np.isfinite(rate), rate, 1.0), 1.0 - 1e-12)
        error = change * np.maximum(1.0, rate / (1.0 - rate))
        done = (error <= options.tolerance * size) | (change <= _ROUNDING * size)
        value = image if step == 1.0 else value + step * (image - value)
        previous = change
        if done.any():
            result[:, active[done]] = value[:, done]
            keep = ~done
            active = active[keep]
            if active.size == 0:
                return result
            value, s, r, previous = value[:, keep], s[:, keep], r[:, keep], previous[keep]
    raise ConvergenceError(
        f"the adjoint fixed point did not converge in the component of blocks {', '.join(verdict.blocks)}: residual "
        f"{float(previous.max()):.3g} after {options.max_iterations} iterations. Raise max_iterations."
    )


def _solve_directly(
    transposed: sparse.csr_array, slope: np.ndarray, right: np.ndarray, verdict: ComponentVerdict
) -> np.ndarray:
    """One dense solve per sample: right for any component with a regular I - A_cc^T diag(slope)."""
    dense = transposed.toarray()
    identity = np.eye(len(dense))
    result = np.empty_like(right)
    for j in range(right.shape[1]):
        try:
            result[:, j] = np.linalg.solve(identity - dense * slope[:, j], right[:, j])
        except np.linalg.LinAlgError as error:
            raise ConvergenceError(
                f"the gradient does not exist at sample {j}: I - A^T phi'(z) is singular in the component of blocks "
                f"{', '.join(verdict.blocks)}. Make the model well-posed, for instance with a smaller kappa."
            ) from error
    return result


def input_gradient(
    model: ImplicitModel,
    U: np.ndarray,
    forward: Forward,
    d_output: np.ndarray,
    options: FixedPoint = FixedPoint(),  # noqa: B008 (frozen)
) -> np.ndarray:
    """dL/dU (p, m) for ``d_output`` = dL/dY (q, m) at ``forward`` = model.forward(U).

    The last row is the derivative with respect to the bias row, where the model has one. Raises InputError where
    shapes do not fit, ConvergenceError where the adjoint does not exist.
    """
    d_output = np.asarray(d_output, dtype=np.float64)
    if d_output.shape != (model.q, np.shape(U)[1]) or forward.Z.shape != (model.n, np.shape(U)[1]):
        raise InputError(
            f"dL/dY has shape {d_output.shape} and Z {forward.Z.shape}; for this U they must be "
            f"({model.q}, {np.shape(U)[1]}) and ({model.n}, {np.shape(U)[1]})."
        )
    w = state_adjoint(model, forward.Z, d_output, options)
    return np.asarray(model.B.T @ w + model.D.T @ d_output)


def output_sensitivity(model: ImplicitModel, forward: Forward, output: int) -> np.ndarray:
    """dy_output/dz (n, m): what a small change of each pre-activation does to one output."""
    if not 0 <= output < model.q:
        raise InputError(f"output must be in 0..{model.q - 1}, got {output}.")
    d_output = np.zeros((model.q, forward.Z.shape[1]))
    d_output[output] = 1.0
    return state_adjoint(model, forward.Z, d_output)


def state_sensitivity(model: ImplicitModel, U: np.ndarray) -> np.ndarray:
    """E ||dy/dz_i||^2 (n,): mean over the columns of ``U`` (p, m) of the summed squares over all outputs."""
    forward = model.forward(U)
    if forward.Z.shape[1] == 0:
        raise InputError("a sensitivity needs at least one sample, U has no columns.")
    total = np.zeros(model.n)
    for output in range(model.q):
        total += np.square(output_sensitivity(model, forward, output)).sum(axis=1)
    return total / forward.Z.shape[1]
