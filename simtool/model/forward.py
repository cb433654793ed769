"""x = phi(A x + B u): substitution where A is acyclic, a fixed point inside cyclic components only.

Methods inside a cyclic component, with b = what comes from outside:
``picard``     x <- phi(A x + b); contracts under the norm and Perron-Frobenius conditions
``averaged``   x <- x + s (phi(A x + b) - x), s = 1 / (1 - min_i min(a_ii, 0)); contracts under mu_inf(A) < 1 (slides)
``absorption`` picard on A' = (I - diag A)^-1 (A - diag A), b' = (I - diag A)^-1 b. For relu and identity states with
               a_ii < 1 the solutions are the same: the self loop of a relu is positive feedback with a known gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from simtool import blocks as blocks_module
from simtool.blocks import Block
from simtool.errors import ConvergenceError, OptionError
from simtool.model.levels import Component
from simtool.model.wellposed import ComponentVerdict

METHODS = ("auto", "picard", "averaged", "absorption")
_ROUNDING = 64 * float(np.finfo(np.float64).eps)
_DIVERGED = 1e100
_DENSE_ENTRIES = 2**25
_ABSORBED = ("relu", "identity")


@dataclass(frozen=True)
class FixedPoint:
    """How cyclic components are solved.

    ``tolerance`` bounds the estimated error of a column (its last change, times r/(1-r) for the observed contraction
    rate r, so that slow contractions are not trusted too early), relative to max(1, max|x|).
    """

    method: str = "auto"
    tolerance: float = 1e-9
    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if not 0.0 < self.tolerance < 1.0:
            raise OptionError(f"tolerance must be in (0, 1), got {self.tolerance!r}. Pass 1e-9.")
        if self.max_iterations < 1:
            raise OptionError(f"max_iterations must be at least 1, got {self.max_iterations!r}.")


@dataclass(frozen=True, eq=False)
class Forward:
    """Z, X (n, m), Y (q, m) before the output map; X = phi(Z) exactly.

    ``iterations`` (m,) are evaluations of phi, the most that any cyclic component needed (0 where A is acyclic);
    ``converged`` (m,) is all True, since a column that does not converge is an error.
    """

    Z: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray


def local_blocks(rows: np.ndarray, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks of the sorted states ``rows``, renumbered so that they tile ``range(len(rows))``."""
    result: list[Block] = []
    for block in blocks:
        low, high = np.searchsorted(rows, [block.offset, block.offset + block.size])
        if high > low:
            size = int(high - low)
            result.append(Block(block.name, block.activation, int(low), size, (size,), block.parents))
    return tuple(result)


def absorbable(component: Component, blocks: tuple[Block, ...]) -> bool:
    """Diagonal absorption is exact: every self loop is below 1 and sits on a relu or identity state."""
    diagonal = component.inner.diagonal()
    local = local_blocks(component.rows, blocks)
    return bool((diagonal < 1.0).all()) and all(
        b.activation.name in _ABSORBED or not diagonal[b.rows].any() for b in local
    )


def absorbed(inner: sparse.csr_array) -> sparse.csr_array:
    """(I - diag A)^-1 (A - diag A)."""
    diagonal = inner.diagonal()
    off = sparse.csr_array(inner - sparse.diags_array(diagonal))
    return sparse.csr_array(sparse.diags_array(1.0 / (1.0 - diagonal)) @ off)


def _row_norm(matrix: sparse.csr_array) -> float:
    return float(np.asarray(abs(matrix).sum(axis=1)).max())


def choose_method(
    component: Component, verdict: ComponentVerdict, blocks: tuple[Block, ...], asked: str
) -> str:
    """The method for ``component``; ``asked`` is ``auto`` or a method, which must be applicable."""
    if asked == "absorption" and not absorbable(component, blocks):
        raise OptionError(
            f"diagonal absorption needs relu (or identity) states with a_ii < 1, which blocks "
            f"{', '.join(verdict.blocks)} do not have. Use method 'auto' or 'averaged'."
        )
    if asked != "auto":
        return asked
    if verdict.by in ("norm", "perron-frobenius"):
        return "picard"
    possible = absorbable(component, blocks)
    if verdict.by == "mu-inf":
        return "absorption" if possible else "averaged"
    loops = bool(component.inner.diagonal().any())
    helps = possible and loops and _row_norm(absorbed(component.inner)) < _row_norm(component.inner)
    return "absorption" if helps else "picard"


def averaging_step(inner: sparse.csr_array) -> float:
    """The step of the averaged iteration, 1 / (1 - min_i min(a_ii, 0)) (slides)."""
    return 1.0 / (1.0 - min(0.0, float(inner.diagonal().min())))


def solve_component(
    component: Component,
    verdict: ComponentVerdict,
    blocks: tuple[Block, ...],
    outside: np.ndarray,
    options: FixedPoint,
) -> tuple[np.ndarray, np.ndarray]:
    """z (k, m) of the component, and the iterations (m,), for ``outside`` (k, m) = what enters it.

    Raises ConvergenceError, naming the residual and the blocks, on divergence or after max_iterations.
    """
    method = choose_method(component, verdict, blocks, options.method)
    local = local_blocks(component.rows, blocks)
    matrix, step, b = component.inner, 1.0, outside
    diagonal = component.inner.diagonal()
    if method == "absorption":
        matrix = absorbed(component.inner)
        b = outside / (1.0 - diagonal)[:, None]
    elif method == "averaged":
        step = averaging_step(matrix)
    z, iterations = _iterate(matrix, local, b, step, verdict, method, options)
    if method == "absorption":
        # back to z = A x + b: equal to x where a relu is open, (1 - a_ii) z' where it is closed
        for block in local:
            if block.activation.name == "relu":
                rows = block.rows
                z[rows] = np.where(z[rows] > 0, z[rows], (1.0 - diagonal[rows])[:, None] * z[rows])
    return z, iterations


def _fast_operator(matrix: sparse.csr_array) -> sparse.csr_array | np.ndarray:
    """``matrix`` dense where that multiplies faster: BLAS is about ten times as fast an entry as CSR."""
    entries = matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if matrix.nnz > 0.1 * entries and entries <= _DENSE_ENTRIES else matrix


def _iterate(
    matrix: sparse.csr_array,
    local: tuple[Block, ...],
    b: np.ndarray,
    step: float,
    verdict: ComponentVerdict,
    method: str,
    options: FixedPoint,
) -> tuple[np.ndarray, np.ndarray]:
    k, m = b.shape
    z_final = np.empty((k, m))
    iterations = np.zeros(m, dtype=np.int64)
    active = np.arange(m)
    x = np.zeros((k, m))
    b_active = b
    previous = np.full(m, np.inf)
    rate = np.ones(m)
    slowest_possible = 1.0 - 1e-12
    if method == "picard" and verdict.by == "norm" and verdict.factor is not None:
        slowest_possible = min(slowest_possible, verdict.factor)
    # the last evaluation multiplies an error of x by ||A||, which a stiff self loop can make large
    gain = max(1.0, _row_norm(matrix))
    rounding = _ROUNDING * gain
    operator = _fast_operator(matrix)
    tolerance = max(options.tolerance / gain, rounding)
    for count in range(1, options.max_iterations + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            z = operator @ x + b_active
            image = blocks_module.apply(local, z)
            change = np.abs(image - x).max(axis=0)
            size = np.maximum(1.0, np.abs(image).max(axis=0))
        if not np.isfinite(change).all() or not (size < _DIVERGED).all():
            raise _failure("diverged", method, verdict, count, float(previous.max()), options)
        x = image if step == 1.0 else x + step * (image - x)
        with np.errstate(divide="ignore", invalid="ignore"):
            now = np.where(previous > 0, change / previous, 0.0)
        now = np.where(np.isfinite(now), now, 1.0)
        slowest = np.minimum(np.maximum(rate, now), slowest_possible)
        error = change * np.maximum(1.0, slowest / (1.0 - slowest))
        done = (error <= tolerance * size) | (change <= rounding * size)
        rate, previous = now, change
        if done.any():
            z_final[:, active[done]] = z[:, done]
            iterations[active[done]] = count
            keep = ~done
            active = active[keep]
            if active.size == 0:
                return z_final, iterations
            x, b_active = x[:, keep], b_active[:, keep]
            rate, previous = rate[keep], previous[keep]
    raise _failure(
        "did not converge", method, verdict, options.max_iterations, float(previous.max()), options
    )


def _failure(
    what: str, method: str, verdict: ComponentVerdict, count: int, residual: float, options: FixedPoint
) -> ConvergenceError:
    shown = f"{residual:.3g}" if np.isfinite(residual) else "unbounded"
    proof = "no theorem proves a unique state for it"
    if verdict.by is not None:
        proof = f"it is well-posed by {verdict.by}"
    return ConvergenceError(
        f"the fixed point {what} in the component of {len(verdict.rows)} states in blocks "
        f"{', '.join(verdict.blocks)}: residual {shown} after {count} iterations of method {method!r} "
        f"(tolerance {options.tolerance:g}); {proof}. Raise max_iterations or the tolerance, try another method "
        "('averaged', 'absorption'), or make the model with a smaller kappa or a layered structure."
    )
