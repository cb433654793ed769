"""x = phi(A x + B u): substitution where A is acyclic, a fixed point inside cyclic components only.

Methods inside a cyclic component, with b = what comes from outside:
``picard``     x <- phi(A x + b); contracts under the norm and Perron-Frobenius conditions
``averaged``   x <- x + s (phi(A x + b) - x), s = 1 / (1 - min_i min(a_ii, 0)); contracts under mu_inf(A) < 1 (slides)
``absorption`` picard on A' = (I - diag A)^-1 (A - diag A), b' = (I - diag A)^-1 b. For relu and identity states with
               a_ii < 1 the solutions are the same: the self loop of a relu is positive feedback with a known gain.

A column is finished when the error that the proof allows (:class:`simtool.model.wellposed.Majorant`), not the last
change, is small relative to each state's own scale; both move with any diagonal scaling of the states. Columns that
would need very many more iterations are finished by Newton's method, under the same bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from simtool import blocks as blocks_module
from simtool.blocks import Block
from simtool.errors import ConvergenceError, OptionError
from simtool.model.levels import Component
from simtool.model.wellposed import (
    DIRECT_STATES,
    ComponentVerdict,
    Majorant,
    absorbable,
    absorbed,
    local_blocks,
    quotient,
    row_norm,
)

METHODS = ("auto", "picard", "averaged", "absorption")
_EPS = float(np.finfo(np.float64).eps)
_DENSE_ENTRIES = 2**25
_FIRST_LOOK, _LONGEST_WAIT = 5, 16  # iterations before the first error bound, and at most between two
_NEWTON_AFTER, _NEWTON_STEPS, _NEWTON_ENTRIES = 64, 30, 2**24


@dataclass(frozen=True)
class FixedPoint:
    """How cyclic components are solved.

    ``tolerance`` bounds the error of every state relative to its own scale: phi of the sum of the absolute terms
    |a_ij x_j| and |b_i| that make it (a closed relu x_j counts with the z_j that it cuts off). The bound is a proof where
    the component is proven well-posed (in one weighted norm above 2000 states); elsewhere it is estimated from the
    observed contraction rate. A column also ends where rounding alone keeps it from the tolerance.
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
    helps = verdict.absorbed is not None and row_norm(verdict.absorbed.terms) < row_norm(abs(component.inner))
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
    matrix, step, b, bound = component.inner, 1.0, outside, verdict.majorant
    diagonal = component.inner.diagonal()
    if method == "absorption":
        matrix = absorbed(component.inner)
        b = outside / (1.0 - diagonal)[:, None]
        bound = verdict.absorbed or bound  # the same where there is no self loop
    elif method == "averaged":
        step = averaging_step(matrix)
    equation = _Equation(matrix, local, bound, options.tolerance)
    z, iterations = _iterate(equation, b, step, verdict, method, options)
    if method == "absorption":
        # back to z = A x + b: equal to x where a relu is open, (1 - a_ii) z' where it is closed
        for block in local:
            if block.activation.name == "relu":
                rows = block.rows
                z[rows] = np.where(z[rows] > 0, z[rows], (1.0 - diagonal[rows])[:, None] * z[rows])
    return z, iterations


def fast_operator(matrix: sparse.csr_array) -> sparse.csr_array | np.ndarray:
    """``matrix`` dense where that multiplies faster: BLAS is about ten times as fast an entry as CSR."""
    entries = matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if matrix.nnz > 0.1 * entries and entries <= _DENSE_ENTRIES else matrix


@dataclass(frozen=True, eq=False)
class _Look:
    """What is known of some columns: the error relative to the scale, and whether all of the rest is rounding."""

    error: np.ndarray
    rounding: np.ndarray


class _Equation:
    """x = phi(A x + b) in one component, and how far an x is from its solution."""

    def __init__(
        self, matrix: sparse.csr_array, local: tuple[Block, ...], bound: Majorant, tolerance: float
    ) -> None:
        self.matrix, self.local, self.bound, self.tolerance = matrix, local, bound, tolerance
        self.operator = fast_operator(matrix)
        self.proven = bound.factor is not None
        self.newton = self.proven and matrix.shape[0] <= DIRECT_STATES
        self._terms = fast_operator(bound.terms)
        self._damping = bound.damping[:, None]
        self._damped = bool((bound.damping > 1.0).any())
        self._homogeneous = all(block.activation.homogeneous for block in local)
        terms = np.diff(matrix.indptr) + 8
        self._rounding = (_EPS * terms * np.maximum(bound.constants, 1.0))[:, None]

    def evaluate(self, x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A x + b and phi of it."""
        z = self.operator @ x + b
        return z, blocks_module.apply(self.local, z)

    def look(self, x: np.ndarray, b: np.ndarray, z: np.ndarray, image: np.ndarray) -> _Look:
        """The bound on the error of ``image`` (the residual, where nothing is proven), NaN where values overflow."""
        reach = self._reach(np.abs(z), image)
        sums = self._terms @ reach + np.abs(b)
        scale = self._reach(sums / self._damping if self._damped else sums)
        residual = np.abs(image - x)
        noise = scale
        if self._damped or not self._homogeneous:
            noise = np.maximum(sums + (self._damping - 1.0) * reach, scale)
        rounding = (residual <= self._rounding * noise).all(axis=0)
        finite = np.isfinite(scale.max(axis=0)) & np.isfinite(residual.max(axis=0))
        if not finite.all():
            return _Look(np.where(finite, 0.0, np.nan), finite)
        if self.proven:
            error = self.bound.relative_error(residual, scale, image=True)
        else:
            error = quotient(residual, scale).max(axis=0)
        return _Look(error, rounding)

    def _reach(self, z: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """How large |phi| is at pre-activations of the size ``z`` >= 0; ``image`` saves its cost where it is no relu."""
        result = np.empty_like(z)
        for block in self.local:
            phi, rows = block.activation, block.rows
            part = z[rows]
            if not phi.homogeneous:
                part = np.abs(phi(part) if image is None else image[rows])
            result[rows] = max(1.0, phi.lipschitz) * part
        return result

    def finish(self, x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Newton's method from ``x``: z (k, m), which columns are solved, and the evaluations of phi, (m,).

        (I - S A) d = phi(A x + b) - x with the slopes S, in the units of the proof's vector.
        """
        k, m = x.shape
        v = self.bound.vector
        balanced = self.matrix.toarray() / v[:, None] * v
        z_found, solved, used = np.zeros((k, m)), np.zeros(m, dtype=bool), np.zeros(m, dtype=np.int64)
        width = max(1, _NEWTON_ENTRIES // k**2)
        for start in range(0, m, width):
            left = np.arange(start, min(start + width, m))
            now = x[:, left]
            for step in range(_NEWTON_STEPS):
                z, image = self.evaluate(now, b[:, left])
                seen = self.look(now, b[:, left], z, image)
                used[left] += 1
                done = (seen.error <= self.tolerance) | (seen.rounding & (step > 0))
                z_found[:, left[done]], solved[left[done]] = z[:, done], True
                keep = ~done & ~np.isnan(seen.error)
                left = left[keep]
                if left.size == 0:
                    break
                system = np.eye(k) - slopes(self.local, z[:, keep]).T[:, :, None] * balanced
                residual = (image - now)[:, keep] / v[:, None]
                try:
                    now = (
                        now[:, keep] + v[:, None] * np.linalg.solve(system, residual.T[:, :, None])[:, :, 0].T
                    )
                except np.linalg.LinAlgError:
                    break
        return z_found, solved, used


def slopes(blocks: tuple[Block, ...], z: np.ndarray) -> np.ndarray:
    """phi'(z), block by block, (n, m)."""
    result = np.empty_like(z)
    for block in blocks:
        result[block.rows] = block.activation.slope(z[block.rows])
    return result


def remaining(
    error: np.ndarray, last: np.ndarray, gap: np.ndarray | int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The contraction rate from errors ``gap`` iterations apart, and how many more it needs (m,), where that is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(error > 0.0, error / last, 0.0) ** (1.0 / gap)
        rate = np.minimum(np.where(np.isfinite(rate), rate, 1.0), 1.0 - 1e-12)
        wait = np.log(tolerance / error) / np.log(np.maximum(rate, 1e-300))
    return rate, np.maximum(np.ceil(wait), 1.0)


@dataclass
class _Pace:
    """How the columns that are not solved yet come along: when to look next, what was seen last."""

    due: np.ndarray
    seen_at: np.ndarray
    error: np.ndarray
    rate: np.ndarray

    def keep(self, columns: np.ndarray) -> _Pace:
        """Only ``columns`` from now on."""
        return _Pace(self.due[columns], self.seen_at[columns], self.error[columns], self.rate[columns])

    def note(
        self, columns: np.ndarray, count: int, error: np.ndarray, tolerance: float, proven: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The error to trust, and the iterations still to come as the contraction rate since the last look tells."""
        last = self.error[columns]
        rate, wait = remaining(error, last, count - self.seen_at[columns], tolerance)
        trusted = error
        if not proven:
            # the change is not the error, and a first look knows no rate
            slowest = np.maximum(rate, self.rate[columns])
            trusted = np.where(error > 0.0, error * np.maximum(1.0, slowest / (1.0 - slowest)), 0.0)
            trusted = np.where(np.isfinite(last) | (error == 0.0), trusted, np.inf)
        wait = np.where(np.isfinite(last) & np.isfinite(wait), wait, _FIRST_LOOK)
        self.error[columns], self.seen_at[columns], self.rate[columns] = error, count, rate
        self.due[columns] = count + (np.minimum(wait, _LONGEST_WAIT).astype(np.int64) if proven else 1)
        return trusted, wait


def _iterate(
    equation: _Equation,
    b: np.ndarray,
    step: float,
    verdict: ComponentVerdict,
    method: str,
    options: FixedPoint,
) -> tuple[np.ndarray, np.ndarray]:
    """z (k, m) and the evaluations of phi (m,); columns leave as they are solved. Raises ConvergenceError."""
    k, m = b.shape
    z_final = np.empty((k, m))
    iterations = np.zeros(m, dtype=np.int64)
    if m == 0:
        return z_final, iterations
    active, x = np.arange(m), np.zeros((k, m))
    tried = np.full(m, _NEWTON_AFTER)
    first = _FIRST_LOOK if equation.proven else 1
    pace = _Pace(np.full(m, first), np.zeros(m, dtype=np.int64), np.full(m, np.inf), np.zeros(m))
    residual = np.inf
    change = before = np.ones(0)
    for count in range(1, options.max_iterations + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            z, image = equation.evaluate(x, b)
            looked = (pace.due == count) | (count == options.max_iterations)
            if count == 1:
                looked |= (image == x).all(axis=0)
            if equation.proven and _FIRST_LOOK - 1 <= count <= _FIRST_LOOK:
                # no more than a guess of the rate, for the time of the second look
                change, before = np.abs(image - x).max(axis=0), change
            columns = np.flatnonzero(looked)
            done = np.zeros(len(active), dtype=bool)
            if columns.size:
                part = slice(None) if columns.size == active.size else columns
                seen = equation.look(x[:, part], b[:, part], z[:, part], image[:, part])
                residual = float(np.abs(image[:, part] - x[:, part]).max())
                if np.isnan(seen.error).any():
                    raise _failure("diverged", method, verdict, count, residual, options)
                if equation.proven and count == _FIRST_LOOK:
                    pace.error = seen.error * quotient(before, change)
                    pace.seen_at = np.full(active.size, count - 1)
                last = pace.error[columns]
                error, wait = pace.note(columns, count, seen.error, options.tolerance, equation.proven)
                good = error <= options.tolerance
                iterations[active[columns]] = count
                if equation.newton:
                    good |= seen.rounding & (tried[columns] > _NEWTON_AFTER)  # Newton knew no better
                    slow = (count >= tried[columns]) & (wait > 2 * k + 50)
                    helped = columns[~good & (seen.rounding | slow)]
                    if helped.size:
                        found, solved, used = equation.finish(x[:, helped], b[:, helped])
                        z[:, helped[solved]] = found[:, solved]
                        done[helped] = solved
                        iterations[active[helped]] += used
                        tried[helped] = 8 * count
                else:
                    good |= seen.rounding & (seen.error >= last)
                done[columns[good]] = True
            x = image if step == 1.0 else x + step * (image - x)
        if done.any():
            z_final[:, active[done]] = z[:, done]
            keep = ~done
            active = active[keep]
            if active.size == 0:
                return z_final, iterations
            x, b, tried, pace = x[:, keep], b[:, keep], tried[keep], pace.keep(keep)
    raise _failure("did not converge", method, verdict, options.max_iterations, residual, options)


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
