"""Rows that must match their target exactly, by a cone solver: SIM (2b), (2c) with (4), (6), (8) and (9).

    minimise over w   sum_j pen(w_j)   subject to   W^T w = z,   ||w_S||_1 <= kappa,   lower <= w <= upper

W^T w = z is m equations, of which only k = rank W say anything; the states are float32, so what lies outside W's row space
is rounding. With W = diag(norms) L S R (thin, features at unit norm) the constraint is L^T (norms * w) = S^-1 R z: k
equations with orthonormal rows. Directions below float32's rounding are left out unless a row needs them to match.

A row is solved without a cone solver where its equations leave no choice (k = d), or where the least norm is asked for or
good enough. Else it is a linear or quadratic program: Clarabel, SCS or MOSEK through CVXPY, compiled once per set of
allowed features. Small coefficients are then set to zero and the rest moved back onto the equations by the smallest
correction. Where the norm of the target outside the row space is too large, or no row meets kappa and the box, the row is
infeasible, and the row of least residual is returned.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace

import cvxpy as cp
import numpy as np

from simtool.equality import MATCH_TOLERANCE, certify_equality, mismatch
from simtool.errors import SolverError
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.row_space import SingularSpace
from simtool.row_status import RowStatus
from simtool.solvers import native
from simtool.solvers.backends import Backend, run_quietly
from simtool.solvers.feasible import restore_feasibility

# Directions of W weaker than this, relative to the strongest, are the rounding of float32 states.
_FLOAT32_ROUNDING = float(np.finfo(np.float32).eps)
# What may count as zero beside the largest coefficient.
_ZERO_CUTS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
# How much of the objective exact zeros may cost.
_COST_OF_ZEROS = 1e-9
# The least residual decides feasibility, so it is solved to far below the tolerance of a match.
_RESIDUAL_TOLERANCE = 1e-13

# How far, relative to the target, states may move where exactly these leave a program without an interior.
_BAND = 0.1 * MATCH_TOLERANCE

_log = logging.getLogger("simtool")


@dataclass(frozen=True)
class Matched:
    """Rows and what is known about them: ``w`` (r, d), the hints ``nu`` (r, m) for the certificate, and, per row,
    RowStatus.INFEASIBLE or GAVE_UP where no row was found, else None."""

    w: np.ndarray
    nu: np.ndarray
    trouble: tuple[RowStatus | None, ...]


def solve(rows: RowSet, backend: Backend, tolerance: float) -> Matched:
    """The rows of least penalty that match their targets exactly. Infeasible ones are logged with their residual."""
    design = rows.design
    w, nu = np.zeros((rows.count, design.d)), np.zeros((rows.count, design.m))
    trouble: list[RowStatus | None] = [None] * rows.count
    targets = rows.target()
    allowed = np.broadcast_to(~design.dead, w.shape)
    allowed = allowed if rows.allowed is None else allowed & rows.allowed
    patterns, pattern_of = np.unique(allowed, axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        columns = np.flatnonzero(pattern)
        face = _Face(rows, columns, backend, tolerance)
        for i in np.flatnonzero(pattern_of.reshape(-1) == index):
            found = face.solve(targets[i])
            w[i, columns], nu[i], trouble[i] = found.w, found.nu, found.trouble
    w = restore_feasibility(rows, w)
    infeasible = np.flatnonzero([status is RowStatus.INFEASIBLE for status in trouble])
    if infeasible.size:
        least = mismatch(rows, w)
        for i in infeasible:
            _log.debug(
                "row %d of its shard is infeasible: its least residual is %.3g of its target; that row is stored, not "
                "certified",
                i,
                least[i],
            )
    return Matched(w, nu, tuple(trouble))


@dataclass(frozen=True)
class _Found:
    w: np.ndarray
    nu: np.ndarray
    trouble: RowStatus | None = None


class _Face:
    """The features ``columns``, which some rows of ``rows`` share."""

    def __init__(self, rows: RowSet, columns: np.ndarray, backend: Backend, tolerance: float) -> None:
        self._design = rows.design.restricted(columns)
        self._columns, self._backend, self._tolerance = columns, backend, tolerance
        self._objective = rows.objective
        self._bounded = rows.bounded[columns]
        self._lower = np.full(columns.size, -np.inf) if rows.lower is None else rows.lower[columns]
        self._upper = np.full(columns.size, np.inf) if rows.upper is None else rows.upper[columns]
        whole = SingularSpace(self._design.dense(np.arange(columns.size)))
        coarse = _truncated(whole, _FLOAT32_ROUNDING)
        self._spaces = [coarse] if coarse.singular.size == whole.singular.size else [coarse, whole]
        self._programs: dict[tuple[int, bool], _Program] = {}

    def solve(self, z: np.ndarray) -> _Found:
        """The row for the target ``z`` (m,)."""
        size = float(np.linalg.norm(z))
        nothing = np.zeros(z.size)
        if size == 0.0:
            return _Found(np.zeros(self._columns.size), nothing)
        space = self._spaces[-1]
        for candidate in self._spaces:
            least = z - (z @ candidate.right.T) @ candidate.right
            if np.linalg.norm(least) <= 0.5 * MATCH_TOLERANCE * size:
                space = candidate
                break
        least_norm = space.coefficients(z[None])[0]
        if self._residual(least_norm, z) > MATCH_TOLERANCE * size:
            return self._least_residual(z, least_norm)
        penalty = self._objective.penalty
        fits = self._fits(least_norm)
        if penalty.free and fits:
            return _Found(least_norm, nothing)
        if space.singular.size == self._columns.size:
            # One row gives these states, or, where that one is not allowed, one row is the nearest.
            found = _Found(least_norm, nothing) if fits else self._least_residual(z, least_norm)
            return found if found.trouble else self._proven(found.w, space)
        return self._by_program(space, z, least_norm)

    def _proven(self, w: np.ndarray, space: SingularSpace) -> _Found:
        """``w``, to which no other row is equal in states: any subgradient there proves it."""
        penalty = self._objective.penalty
        beyond = np.maximum(np.abs(w) - penalty.knee, 0.0)
        derivative = np.sign(w) * (penalty.slope + 2.0 * penalty.lam2 * beyond)
        return _Found(w, _in_samples(space, space.left.T @ (derivative / space.norms)))

    def _fits(self, w: np.ndarray) -> bool:
        kappa = self._objective.kappa
        norm = np.abs(w[self._bounded]).sum()
        inside = bool(np.all((w >= self._lower) & (w <= self._upper)))
        return inside and (kappa is None or bool(norm <= kappa))

    def _residual(self, w: np.ndarray, z: np.ndarray) -> float:
        return float(np.linalg.norm(z - w @ self._design.dense(np.arange(w.size))))

    def _by_program(self, space: SingularSpace, z: np.ndarray, least_norm: np.ndarray) -> _Found:
        equations = (space.left * space.norms[:, None]).T
        right = (space.right @ z) / space.singular
        found = self._attempt(space, equations, right, z, least_norm, 0.0)
        if found is not None and self._certified(found, z):
            return found
        # The target's rounding may lie outside what kappa and the box allow, or leave the program without an interior
        # and its multipliers without meaning: match the nearest states that are allowed, give or take a little.
        nearest = self._least_residual(z, least_norm)
        if nearest.trouble is None and not self._objective.penalty.free:
            again = self._attempt(space, equations, equations @ nearest.w, z, least_norm, _BAND)
            return again or found or replace(nearest, trouble=RowStatus.GAVE_UP)
        return nearest

    def _row(self, z: np.ndarray, objective: Objective) -> RowSet:
        return RowSet(
            design=self._design,
            targets=z[None],
            objective=objective,
            constrained=self._bounded,
            lower=self._lower,
            upper=self._upper,
        )

    def _certified(self, found: _Found, z: np.ndarray) -> bool:
        proof = certify_equality(
            self._row(z, self._objective), found.w[None], found.nu[None], self._tolerance
        )
        return bool(proof.certified[0])

    def _attempt(
        self,
        space: SingularSpace,
        equations: np.ndarray,
        right: np.ndarray,
        z: np.ndarray,
        least_norm: np.ndarray,
        slack: float,
    ) -> _Found | None:
        """The row with ``equations w = right`` up to a change of its states by ``slack`` ||z||; None if the solver has
        none, or one that does not match ``z``."""
        key = id(space), slack > 0
        if key not in self._programs:
            self._programs[key] = _Program(
                equations, self._bounded, self._objective, self._lower, self._upper, self._backend, slack > 0
            )
        size = float(np.linalg.norm(z))
        band = slack * size / (space.singular * np.sqrt(right.size))
        try:
            w, multiplier = self._programs[key].solve(right, band, unit=float(np.abs(least_norm).max()))
        except SolverError as error:
            _log.debug("%s", error)
            return None
        w = self._exact_zeros(equations, equations @ w if slack > 0 else right, w)
        if self._residual(w, z) > MATCH_TOLERANCE * size:
            return None
        proof = np.zeros(z.size) if self._objective.penalty.free else _in_samples(space, multiplier)
        return _Found(w, proof)

    def _exact_zeros(self, equations: np.ndarray, right: np.ndarray, w: np.ndarray) -> np.ndarray:
        """``w`` on the equations, with as many exact zeros as cost nothing: the coarsest cut that does."""
        penalty = self._objective.penalty
        kappa = np.inf if self._objective.kappa is None else self._objective.kappa
        sizes = np.abs(w)
        value = float(penalty.value(w).sum())
        # Only what has a kink at zero, or a bound there, has a reason to be exactly zero.
        kinked = self._bounded | (penalty.slope > 0) | (self._lower == 0.0) | (self._upper == 0.0)
        for cut in (*_ZERO_CUTS, 0.0):
            support = np.flatnonzero(~kinked | (sizes > cut * sizes.max(initial=0.0)))
            part = equations[:, support]
            missing = right - part @ w[support]
            moved = np.zeros_like(w)
            moved[support] = w[support] + np.linalg.lstsq(part, missing, rcond=1e-12)[0]
            at_bound = np.clip(moved, self._lower, self._upper)
            on_equations = np.linalg.norm(equations @ at_bound - right) <= 1e-8 * np.linalg.norm(right)
            within = np.abs(at_bound[self._bounded]).sum() <= kappa * (1.0 + 1e-8)
            if on_equations and within and penalty.value(at_bound).sum() <= value * (1.0 + _COST_OF_ZEROS):
                return at_bound
        return np.clip(w, self._lower, self._upper)

    def _least_residual(self, z: np.ndarray, least_norm: np.ndarray) -> _Found:
        """The allowed row whose states come closest; infeasible if that is not close enough."""
        w = least_norm
        if not self._fits(w):
            rows = self._row(z, Objective(0.5, Penalty(), self._objective.kappa))
            w = native.solve(rows, _RESIDUAL_TOLERANCE)[0]
        infeasible = self._residual(w, z) > MATCH_TOLERANCE * np.linalg.norm(z)
        return _Found(w, np.zeros(z.size), RowStatus.INFEASIBLE if infeasible else None)


def _truncated(space: SingularSpace, smallest: float) -> SingularSpace:
    """``space`` without the directions weaker than ``smallest`` of its strongest."""
    keep = space.singular > smallest * space.singular.max(initial=0.0)
    part = copy.copy(space)
    part.left, part.singular, part.right = space.left[:, keep], space.singular[keep], space.right[keep]
    return part


def _in_samples(space: SingularSpace, multiplier: np.ndarray) -> np.ndarray:
    """nu (m,) with W nu = norms * (L multiplier), for a multiplier (k,) of the reduced equations."""
    return np.asarray((multiplier / space.singular) @ space.right)


class _Program:
    """One compiled program; the right-hand side and the unit of w are parameters.

    With -s <= w <= s the penalty is slope s + lam2 (s - knee)_+^2. Where nothing is penalised, the l1 norm on S is
    minimised: if the least does not meet kappa, nothing does.
    """

    def __init__(
        self,
        equations: np.ndarray,
        bounded: np.ndarray,
        objective: Objective,
        lower: np.ndarray,
        upper: np.ndarray,
        backend: Backend,
        banded: bool,
    ) -> None:
        k, d = equations.shape
        self._objective, self._backend, self._bounded = objective, backend, bounded
        penalty = objective.penalty
        self._right = cp.Parameter(k)
        self._slope, self._curve = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
        self._knee, self._kappa = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
        # The equations are dense: w enters them once (as w = p - q with p, q >= 0 it would twice, at twice the time).
        self._w, size = cp.Variable(d), cp.Variable(d)
        self._band = cp.Parameter(k, nonneg=True) if banded else None
        matched = equations @ self._w - self._right
        # The first minus the second multiplier is that of the equations.
        self._match = (
            [matched == 0] if self._band is None else [matched <= self._band, -matched <= self._band]
        )
        constraints = [*self._match, self._w <= size, -size <= self._w]
        norm = cp.sum(size[np.flatnonzero(bounded)]) if bounded.any() else None
        if penalty.free:
            cost = norm if norm is not None else cp.sum(size)
        else:
            cost = self._slope * cp.sum(size)
            if penalty.lam2 > 0:
                beyond = cp.Variable(d, nonneg=True)
                constraints.append(beyond >= size - self._knee)
                cost += self._curve * cp.sum_squares(beyond)
        if objective.kappa is not None and norm is not None:
            constraints.append(norm <= self._kappa)
        self._sides: list[tuple[cp.Parameter, np.ndarray]] = []
        for bound, side in ((lower, -1.0), (upper, 1.0)):
            finite = np.flatnonzero(np.isfinite(bound))
            if finite.size:
                limit = cp.Parameter(finite.size, nonneg=True)
                self._sides.append((limit, side * bound[finite]))
                constraints.append(side * self._w[finite] <= limit)
        self._problem = cp.Problem(cp.Minimize(cost), constraints)

    def solve(self, right: np.ndarray, band: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
        """w (d,) and the multiplier (k,) with pen(v) >= multiplier^T equations v up to the constraints' own."""
        penalty = self._objective.penalty
        slope, curve = penalty.slope * unit, penalty.lam2 * unit * unit
        scale = max(slope, curve)
        if scale > 0:
            self._slope.value, self._curve.value = slope / scale, curve / scale
        self._knee.value = penalty.knee / unit
        self._kappa.value = (self._objective.kappa or 0.0) / unit
        self._right.value = right / unit
        if self._band is not None:
            self._band.value = band / unit
        for parameter, bound in self._sides:
            parameter.value = bound / unit
        run_quietly(self._problem, self._backend)
        if self._band is None and self._problem.status != "optimal":
            # Also "inaccurate": without an interior the multipliers are not to be trusted; the banded program's are.
            raise SolverError(f"{self._backend.name} ended with the status {self._problem.status}.")
        values = [self._w.value, *(part.dual_value for part in self._match)]
        if any(value is None or not np.all(np.isfinite(value)) for value in values):
            raise SolverError(
                f"{self._backend.name} returned no row that matches its target (status {self._problem.status})."
            )
        w, *duals = (np.asarray(value, dtype=np.float64) for value in values)
        multiplier = duals[0] - duals[1] if len(duals) == 2 else duals[0]
        # CVXPY adds multiplier^T (equations w - right) to a cost in units of ``scale``, w in units of ``unit``.
        return unit * w, -multiplier * (scale / unit)
