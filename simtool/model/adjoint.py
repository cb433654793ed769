"""Gradients through the fixed point, by implicit differentiation: no iteration is stored or unrolled.

With S = phi'(Z), a small change of the pre-activations obeys dX = S (A dX + B dU + dz), so the adjoint is

    lambda = C^T dY + A^T (S lambda),    w = S lambda,    dL/dU = B^T w + D^T dY,    dL/dz = w,

solved against the order of evaluation: by substitution between components, and inside a cyclic component by
Jacobi's iteration, which converges wherever the component is proven well-posed and ends under the same bound as the
forward iteration; or by one dense solve per sample where that is slow or nothing is proven.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simtool.errors import ConvergenceError, InputError
from simtool.model.forward import FixedPoint, Forward, fast_operator, remaining, slopes
from simtool.model.implicit import ImplicitModel
from simtool.model.levels import Component
from simtool.model.wellposed import DIRECT_STATES, ComponentVerdict

_EPS = float(np.finfo(np.float64).eps)
_LOOK, _DIRECT_AFTER, _DIRECT_ENTRIES = 4, 64, 2**24


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
    if z.shape[1] == 0:
        return w
    components = model.components
    verdicts = list(model.well_posedness().components)
    for component in reversed(components):
        rows = component.rows
        value = direct[rows] + component.outgoing @ w
        if component.cyclic:
            with np.errstate(over="ignore", invalid="ignore"):
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
    """v with v = right + A_cc^T (slope v), (k, m).

    Jacobi's iteration takes each sample's own diagonal, 1 - s_i a_ii > 0, to the left. A column ends when the error
    that the proof allows is within the tolerance of every state's scale, |right| + sum_j |a_ji| L_j |v_j| over the
    diagonal; or when it no longer moves by more than rounding.
    """
    bound = verdict.majorant
    if bound.factor is None:
        return _solve_directly(component, slope, right, verdict)
    k, m = right.shape
    loops = component.inner.diagonal()
    transposed = sparse.csr_array(component.inner.T - sparse.diags_array(loops))
    off = fast_operator(transposed)
    terms = fast_operator(sparse.csr_array(abs(transposed) @ sparse.diags_array(bound.constants)))
    rounding = (_EPS * (np.diff(transposed.indptr) + 8))[:, None]
    active = np.arange(m)
    result = np.empty_like(right)
    s, r, divisor = slope, right, 1.0 - slope * loops[:, None]
    value = right / divisor
    last = np.full(m, np.inf)
    for count in range(1, options.max_iterations + 1):
        image = (r + off @ (s * value)) / divisor
        if count % _LOOK == 0 or count == options.max_iterations:
            change = np.abs(image - value)
            scale = (np.abs(r) + terms @ np.abs(image)) / divisor
            # the residual of the equation at ``value`` is divisor (image - value); the error of image is not larger
            error = bound.relative_error(divisor * change, scale, transposed=True)
            done = error <= options.tolerance
            settled = (change <= rounding * scale).all(axis=0) & ~(error < last)
            if k > DIRECT_STATES:
                done |= settled
            else:
                _, wait = remaining(error, last, _LOOK, options.tolerance)
                slow = (count >= _DIRECT_AFTER) & ~(wait <= 2 * k + 50)
                direct = ~done & (settled | slow | (count == options.max_iterations) | ~np.isfinite(error))
                if direct.any():
                    image[:, direct] = _solve_directly(component, s[:, direct], r[:, direct], verdict)
                    done |= direct
            last = error
            if done.any():
                result[:, active[done]] = image[:, done]
                keep = ~done
                active = active[keep]
                if active.size == 0:
                    return result
                image, s, r, divisor = image[:, keep], s[:, keep], r[:, keep], divisor[:, keep]
                last = last[keep]
        value = image
    raise ConvergenceError(
        f"the adjoint fixed point did not converge in the component of blocks {', '.join(verdict.blocks)}: relative error "
        f"at most {float(last.max()):.3g} after {options.max_iterations} iterations. Raise max_iterations."
    )


def _solve_directly(
    component: Component, slope: np.ndarray, right: np.ndarray, verdict: ComponentVerdict
) -> np.ndarray:
    """One dense solve per sample: right for any component with a regular I - A_cc^T diag(slope).

    Solved in the units of the proof's vector, and refined once.
    """
    k, m = right.shape
    v = verdict.majorant.vector[:, None]
    balanced = (component.inner.toarray() / v * v.T).T
    right = right * v
    result = np.empty_like(right)
    width = max(1, _DIRECT_ENTRIES // k**2)
    for start in range(0, m, width):
        part = slice(start, min(start + width, m))
        system = np.eye(k) - balanced * slope[:, part].T[:, None, :]
        goal = right[:, part].T[:, :, None]
        try:
            found = np.linalg.solve(system, goal)
            result[:, part] = (found + np.linalg.solve(system, goal - system @ found))[:, :, 0].T
        except np.linalg.LinAlgError as error:
            singular = int(np.argmax(np.linalg.det(system) == 0.0))
            raise ConvergenceError(
                f"the gradient does not exist at sample {start + singular}: I - A^T phi'(z) is singular in the component "
                f"of blocks {', '.join(verdict.blocks)}. Make the model well-posed, for instance with a smaller kappa."
            ) from error
    return result / v


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
