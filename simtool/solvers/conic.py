"""Cone solvers through CVXPY: Clarabel, the independent referee and what the papers' way of solving amounts to, SCS, MOSEK.

The problem is compiled once per row set; the target is a parameter. Cone solvers end with small numbers where the
answer is zero, so small coefficients are set to zero and the rest refitted on the remaining face, by one dense
linear solve; the coarsest cut whose refit costs nothing and stays feasible is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import cvxpy as cp
import numpy as np

from simtool.errors import SolverError
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.solvers.backends import CLARABEL, MOSEK, SCS, Backend, require, run_quietly
from simtool.solvers.feasible import restore_feasibility

# What may count as zero beside the largest coefficient.
_ZERO_CUTS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)

_log = logging.getLogger("simtool")


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) by Clarabel; see :func:`attempt`."""
    return attempt(CLARABEL, rows, tolerance)[0]


def solve_scs(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) by SCS, a first-order method: slower still where it has to be accurate."""
    return attempt(SCS, rows, tolerance)[0]


def solve_mosek(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) by MOSEK, which the papers used. Raises SolverError without MOSEK or a licence for it."""
    return attempt(MOSEK, rows, tolerance)[0]


def attempt(backend: Backend, rows: RowSet, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (r, d), and which rows (r,) the solver gave up on. Such a row is logged and left at zero: feasible,
    never certified unless zero is optimal, and no reason to lose the other rows."""
    del tolerance
    if backend is MOSEK:
        require("mosek")
    design = rows.design
    alive = ~design.dead
    features = design.dense(alive)
    unit = _unit_of(rows, features)
    out = np.zeros((rows.count, design.d))
    gave_up = np.zeros(rows.count, dtype=bool)
    allowed = np.broadcast_to(alive, out.shape) if rows.allowed is None else rows.allowed & alive
    patterns, members_of = np.unique(allowed, axis=0, return_inverse=True)
    members_of = members_of.reshape(-1)
    targets = rows.target()
    for index, pattern in enumerate(patterns):
        members = np.flatnonzero(members_of == index)
        columns = np.flatnonzero(pattern)
        keep = pattern[alive]
        if not columns.size:
            continue  # nothing but the zero row is allowed
        bounded = rows.bounded[columns]
        least = None if rows.lower is None else rows.lower[columns]
        most = None if rows.upper is None else rows.upper[columns]
        problem = _Problem(
            features[keep] / unit.feature,
            unit.scaled(rows.objective),
            bounded,
            backend,
            None if least is None else least * (unit.feature / unit.target),
            None if most is None else most * (unit.feature / unit.target),
        )
        for i in members:
            z = targets[i]
            try:
                w = problem.solve(z / unit.target) * (unit.target / unit.feature)
            except SolverError as error:
                _log.debug("row %d of its shard: %s", i, error)
                gave_up[i] = True
                continue
            out[i, columns] = _polish_inside(features[keep], z, w, rows.objective, bounded, least, most)
    return restore_feasibility(rows, out), gave_up


@dataclass(frozen=True)
class _Unit:
    """Norms that become one: of the largest target and the largest feature."""

    target: float
    feature: float

    def scaled(self, objective: Objective) -> Objective:
        """``objective`` for the scaled variables."""
        penalty = objective.penalty
        return Objective(
            loss_weight=objective.loss_weight,
            penalty=Penalty(
                lam0=penalty.lam0 / self.target**2,
                lam1=penalty.lam1 / (self.target * self.feature),
                lam2=penalty.lam2 / self.feature**2,
            ),
            kappa=None if objective.kappa is None else objective.kappa * self.feature / self.target,
        )


def _unit_of(rows: RowSet, features: np.ndarray) -> _Unit:
    """Interior points want numbers near one: w = (unit of z / unit of W) v turns the problem into one of unit norms
    with other weights, and divides the objective by (unit of z)^2."""
    return _Unit(
        target=float(np.sqrt(rows.target_norms.max(initial=0.0))) or 1.0,
        feature=float(np.sqrt(np.square(features).sum(axis=1).max(initial=0.0))) or 1.0,
    )


class _Problem:
    """One compiled CVXPY problem, its target a parameter."""

    def __init__(
        self,
        features: np.ndarray,
        objective: Objective,
        bounded: np.ndarray,
        backend: Backend,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
    ) -> None:
        self._backend = backend
        d, m = features.shape
        self._target = cp.Parameter(m)
        self._w = cp.Variable(d)
        residual = cp.Variable(m)
        penalty = objective.penalty
        constraints = [residual == features.T @ self._w - self._target]
        cost = objective.loss_weight * cp.sum_squares(residual)
        if penalty.lam1 > 0:
            cost += penalty.lam1 * cp.norm1(self._w)
        if penalty.lam2 > 0 and penalty.lam0 > 0:
            # SIM eq. (5) with the sum of t: the rotated cones s t >= w^2 as (s + t)^2 >= (2 w)^2 + (s - t)^2.
            s, t = cp.Variable(d), cp.Variable(d)
            cost += penalty.lam2 * cp.sum(s) + penalty.lam0 * cp.sum(t)
            constraints += [t >= 0, t <= 1, s >= 0]
            constraints.append(cp.SOC(s + t, cp.vstack([2 * self._w, s - t])))
        elif penalty.lam2 > 0:
            cost += penalty.lam2 * cp.sum_squares(self._w)
        if objective.kappa is not None and bounded.any():
            constraints.append(cp.norm1(self._w[np.flatnonzero(bounded)]) <= objective.kappa)
        for bound, side in ((lower, 1.0), (upper, -1.0)):
            finite = np.flatnonzero(np.isfinite(bound)) if bound is not None else np.zeros(0, dtype=int)
            if bound is not None and finite.size:
                constraints.append(side * self._w[finite] >= side * bound[finite])
        self._problem = cp.Problem(cp.Minimize(cost), constraints)

    def solve(self, z: np.ndarray) -> np.ndarray:
        self._target.value = z
        run_quietly(self._problem, self._backend)
        if self._w.value is None or not np.all(np.isfinite(self._w.value)):
            raise SolverError(
                f"{self._backend.name} returned no solution for a row (status {self._problem.status}). "
                "Use --solver native."
            )
        return np.asarray(self._w.value, dtype=np.float64)


def _value(features: np.ndarray, z: np.ndarray, w: np.ndarray, objective: Objective) -> float:
    residual = z - w @ features
    return float(objective.loss_weight * residual @ residual + objective.penalty.value(w).sum())


def _polish_inside(
    features: np.ndarray,
    z: np.ndarray,
    w: np.ndarray,
    objective: Objective,
    bounded: np.ndarray,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
) -> np.ndarray:
    """:func:`_polish` with bounds: coefficients next to a bound are put on it, and the rest is polished around them."""
    if lower is None and upper is None:
        return _polish(features, z, w, objective, bounded)
    least = np.full(w.size, -np.inf) if lower is None else lower
    most = np.full(w.size, np.inf) if upper is None else upper
    best = np.clip(w, least, most)
    limit = _value(features, z, best, objective) * (1.0 + 1e-9)
    for cut in _ZERO_CUTS:
        near = cut * np.abs(w).max(initial=0.0)
        fixed = np.where(w >= most - near, most, np.where(w <= least + near, least, np.nan))
        held = np.isfinite(fixed)
        free = ~held
        candidate = np.where(held, fixed, 0.0)
        kappa = objective.kappa
        if kappa is not None:
            kappa -= float(np.abs(candidate[bounded]).sum())
            if kappa < 0:
                continue
        if free.any():
            rest = replace(objective, kappa=kappa)
            candidate[free] = _polish(features[free], z - candidate @ features, w[free], rest, bounded[free])
        inside = bool(np.all((candidate >= least) & (candidate <= most)))
        if inside and _value(features, z, candidate, objective) <= limit:
            return candidate
    return best


def _polish(
    features: np.ndarray, z: np.ndarray, w: np.ndarray, objective: Objective, bounded: np.ndarray
) -> np.ndarray:
    """Exact zeros and a refit on the face that the answer points at; ``w`` itself if no face is better."""
    penalty, kappa = objective.penalty, objective.kappa
    ball = kappa is not None and bool(bounded.any()) and np.abs(w[bounded]).sum() >= kappa * (1.0 - 1e-5)
    kinked = (bounded & ball) | (penalty.slope > 0.0)
    if not kinked.any():
        return w
    # The noise the interior point leaves differs by row; the coarsest cut that does not cost anything wins.
    limit = _value(features, z, w, objective) * (1.0 + 1e-9)
    for cut in _ZERO_CUTS:
        face = np.flatnonzero(~kinked | (np.abs(w) > cut * np.abs(w).max(initial=0.0)))
        polished = np.zeros_like(w)
        if face.size:
            refit = _refit(features[face], z, w[face], objective, bounded[face], kinked[face], ball)
            if refit is None:
                continue
            polished[face] = refit
        feasible = kappa is None or np.abs(polished[bounded]).sum() <= kappa * (1.0 + 1e-9)
        if feasible and _value(features, z, polished, objective) <= limit:
            return polished
    cleaned = np.where(kinked & (np.abs(w) <= _ZERO_CUTS[-1] * np.abs(w).max(initial=0.0)), 0.0, w)
    return cleaned if _value(features, z, cleaned, objective) <= limit else w


def _refit(
    features: np.ndarray,
    z: np.ndarray,
    w: np.ndarray,
    objective: Objective,
    bounded: np.ndarray,
    kinked: np.ndarray,
    ball: bool,
) -> np.ndarray | None:
    """The minimiser on the face given by the signs and sizes of ``w``; None where it leaves that face."""
    penalty = objective.penalty
    sign = np.sign(w)
    beyond = (np.abs(w) > penalty.knee) & (penalty.lam2 > 0)
    h = 2.0 * objective.loss_weight * features @ features.T
    h[np.diag_indices(w.size)] += 2.0 * penalty.lam2 * beyond
    right = 2.0 * objective.loss_weight * features @ z - penalty.slope * sign * kinked
    right += 2.0 * penalty.lam2 * penalty.knee * sign * beyond
    if ball:
        inside = sign * bounded
        h = np.block([[h, inside[:, None]], [inside[None, :], np.zeros((1, 1))]])
        right = np.append(right, float(objective.kappa or 0.0))
    # Least norm where features on the face depend on each other.
    refit = np.linalg.lstsq(h, right, rcond=1e-12)[0][: w.size]
    stays = bool(np.all(sign[kinked] * refit[kinked] >= 0)) and bool(np.all(np.isfinite(refit)))
    if penalty.knee > 0:
        stays &= bool(np.all((np.abs(refit) > penalty.knee) == beyond))
    return refit if stays else None
