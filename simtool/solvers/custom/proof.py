"""How far a stored row is from optimal under a custom objective: kind ``solver-gap``.

The primal value is the user's own expression, and the loss on the true W, at the stored coefficients. For the bound let
r = z - W^T w, and replace the loss by its part along r, which is never larger (Cauchy-Schwarz):

    f(v) + loss_weight ||z - W^T v||^2  >=  f(v) + loss_weight (r'z - (W r)'v)^2 / ||r||^2

The right-hand side has one sample instead of m; its minimum over C, kappa and the bounds is a small cone program, the same
for whatever solver found the row, and equals the primal value at an optimal row. For exact matching and any nu (a hint),
every v with W^T v = W^T w has f(v) = f(v) - (W nu)'(v - w): again one small program.

Two caveats make this another kind than ``duality-gap``. The bound is Clarabel's dual value of the small program, right up to
Clarabel's accuracy (1e-10, at worst 1e-7), not by arithmetic alone. And |v_j| is kept within ten times (|w_j| + ||z|| / ||W_j||), so that
rounding in W r does not leave it unbounded; as everything is convex, a row t times further away than that is better by at
most t times the gap.

    relative gap = |primal - dual| / max(|primal|, 1e-2 loss_weight ||z||^2), or 1 if both vanish;
                   exact matching: / max(|primal|, 1e-4 f where every |w_j| = ||z|| / ||W_j||); 0 if f is constant
    certified    = relative gap <= tol, C violated by at most 1e-8 of its own arguments, kappa to 1e-12 (exact: match 1e-6)

``projection_error`` holds the violation of C, or, for exact matching, the larger of it and ||W^T w - z|| / ||z||.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from simtool.certificate import KAPPA_SLACK, SOLVER_GAP, Certificates, l1_norms
from simtool.equality import MATCH_TOLERANCE, outside
from simtool.problem import RowSet
from simtool.solvers.backends import CLARABEL
from simtool.solvers.custom.objective import FEASIBILITY, Evaluator, OwnObjective, require_dpp
from simtool.solvers.custom.program import Frame, unit_of

_REACH = 10.0
_LEAST_EXACT = 1e-4
# What Clarabel is asked for, until it says "solved": as much as it may reach, then what it usually does, as is and without
# its scaling of the rows, which now and then ends too early.
_ATTEMPTS: tuple[dict[str, Any], ...] = tuple(
    {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol, "equilibrate_enable": scaled}
    for tol in (1e-10, 1e-8)
    for scaled in (True, False)
)
# What is still taken as a proof where it cannot do that (its "almost solved").
_LEAST_ACCURACY = 1e-7


def certify_custom(
    own: OwnObjective, rows: RowSet, states: int, w: np.ndarray, nu: np.ndarray | None, tolerance: float
) -> Certificates:
    """Certificates of the stored rows ``w`` (r, d), which are only read; ``nu`` (r, m) where they match exactly."""
    judge = Judge(own, rows, states, exact=nu is not None)
    found = [judge.row(i, w[i], None if nu is None else nu[i]) for i in range(rows.count)]
    norm = l1_norms(w, rows.bounded)
    kappa = np.inf if rows.objective.kappa is None else rows.objective.kappa
    kept = np.isfinite(w).all(axis=1) & (norm <= kappa * (1.0 + KAPPA_SLACK)) & ~outside(rows, w)
    return Certificates(
        primal=np.array([verdict.primal for verdict in found]),
        dual=np.array([verdict.dual for verdict in found]),
        relative_gap=np.array([verdict.relative_gap for verdict in found]),
        kappa_slack=kappa - norm,
        multiplier=np.array([verdict.multiplier for verdict in found]),
        projection_error=np.array([max(verdict.violation, verdict.mismatch) for verdict in found]),
        kind=np.full(rows.count, SOLVER_GAP, dtype=np.uint8),
        certified=kept & np.array([verdict.holds(tolerance) for verdict in found], dtype=bool),
    )


@dataclass(frozen=True)
class Verdict:
    """One row: primal and dual value, their relative gap, kappa's multiplier, the violation of C and, for exact
    matching, ||W^T w - z|| / ||z||."""

    primal: float
    dual: float
    relative_gap: float
    multiplier: float
    violation: float
    mismatch: float

    def holds(self, tolerance: float) -> bool:
        """Whether gap, C and match are within their tolerances."""
        return (
            self.relative_gap <= tolerance
            and self.violation <= FEASIBILITY
            and self.mismatch <= MATCH_TOLERANCE
        )


class Judge:
    """Judges coefficients of the rows of ``rows``; what it needs for that is compiled once."""

    def __init__(self, own: OwnObjective, rows: RowSet, states: int, *, exact: bool) -> None:
        self._rows, self._exact = rows, exact
        self._evaluator = Evaluator(own, states, rows.design.d)
        self._targets = rows.target()
        self._own, self._states = own, states
        self._bounds: dict[float, _Bound] = {}

    def _residual(self, i: int, w: np.ndarray) -> np.ndarray:
        residual = self._targets[i].copy()
        for samples, tile in self._rows.design.tiles():
            residual[samples] -= w @ tile
        return residual

    def mismatch(self, i: int, w: np.ndarray) -> float:
        """||W^T w - z|| / ||z|| of ``w`` (d,) as row ``i``."""
        residual = self._residual(i, w)
        return _relative(float(residual @ residual), float(self._rows.target_norms[i]))

    def row(self, i: int, w: np.ndarray, nu: np.ndarray | None) -> Verdict:
        """The verdict on ``w`` (d,) as row ``i``, with the hint ``nu`` (m,) where it matches exactly."""
        rows, z = self._rows, self._targets[i]
        residual = self._residual(i, w)
        size, square = float(rows.target_norms[i]), float(residual @ residual)
        mismatch = _relative(square, size) if self._exact else 0.0
        violation = self._evaluator.violation(w)
        loss = rows.objective.loss_weight
        primal = self._evaluator.value(w) + (0.0 if self._exact else loss * square)
        if not (np.isfinite(primal) and np.isfinite(w).all()):
            return Verdict(primal, -np.inf, np.inf, 0.0, violation, mismatch)
        if self._exact and self._evaluator.constant:
            return Verdict(primal, primal, 0.0, 0.0, violation, mismatch)
        floor = _natural_size(self._evaluator, rows, i) if self._exact else 1e-2 * loss * size
        denominator = max(abs(primal), floor) or 1.0
        direction = residual if nu is None else nu
        g = np.zeros(w.size)
        for samples, tile in rows.design.tiles():
            g += tile @ direction[samples]
        unit = unit_of(rows, i)
        if unit not in self._bounds:
            self._bounds[unit] = _Bound(self._own, rows, self._states, unit, exact=self._exact)
        dual, multiplier = self._bounds[unit].solve(rows, i, w, g, float(residual @ z), square, denominator)
        gap = abs(primal - dual) / denominator
        return Verdict(primal, dual, gap if np.isfinite(gap) else np.inf, multiplier, violation, mismatch)


def _relative(square: float, size: float) -> float:
    """The root of square / size; 0 if both vanish."""
    if size == 0:
        return 0.0 if square == 0 else float("inf")
    return float(np.sqrt(square / size))


def _natural(rows: RowSet, i: int) -> np.ndarray:
    """||z|| / ||W_j||, the coefficient with which a feature would explain the target of row ``i`` alone; 0 if it is dead."""
    norms = np.sqrt(rows.design.squares)
    return np.divide(np.sqrt(rows.target_norms[i]), norms, out=np.zeros_like(norms), where=norms > 0)


def _natural_size(evaluator: Evaluator, rows: RowSet, i: int) -> float:
    """What the gap of an exactly matched row is measured against where f itself is nearly 0."""
    value = abs(evaluator.value(_natural(rows, i)))
    return _LEAST_EXACT * value if np.isfinite(value) else 0.0


class _Bound:
    """The small program in a unit of w; compiled once, what else differs by row a parameter."""

    def __init__(self, own: OwnObjective, rows: RowSet, states: int, unit: float, *, exact: bool) -> None:
        d = rows.design.d
        self._exact, self._loss = exact, rows.objective.loss_weight
        self._frame = Frame(own, rows, states, unit)
        self._g, self._q, self._reach = cp.Parameter(d), cp.Parameter(), cp.Parameter(d, nonneg=True)
        along = self._g @ self._frame.v
        cost = self._frame.cost + (-along if exact else cp.square(self._q - along))
        box = [self._frame.v <= self._reach, -self._frame.v <= self._reach]
        self._problem = cp.Problem(cp.Minimize(cost), [*self._frame.constraints, *box])
        require_dpp(own, self._problem)

    def solve(
        self, rows: RowSet, i: int, w: np.ndarray, g: np.ndarray, linear: float, square: float, size: float
    ) -> tuple[float, float]:
        """The dual value for row ``i`` and the multiplier of kappa there; -inf where Clarabel does not vouch for one.

        ``g`` = W r or W nu, ``linear`` = r'z, ``square`` = ||r||^2; the objective is divided by ``size``.
        """
        frame = self._frame
        frame.aim(rows, i)
        frame.weight.value = 1.0 / size
        reach = _REACH * (np.abs(w) + _natural(rows, i))
        # A dead feature, in a row of zero targets too, may still matter to f: give it the reach of the others.
        self._reach.value = np.where(reach > 0, reach, max(reach.max(initial=0.0), _REACH)) / frame.unit
        if self._exact:
            self._g.value = g * (frame.unit / size)
        else:
            root = np.sqrt(self._loss / (size * square)) if square > 0 else 0.0
            self._g.value, self._q.value = g * (root * frame.unit), linear * root
        value = _dual_value(self._problem)
        multiplier = 0.0
        if np.isfinite(value) and frame.ball is not None and frame.ball.dual_value is not None:
            multiplier = float(np.asarray(frame.ball.dual_value).reshape(-1)[0]) * size / frame.unit
        return value * size + (float(g @ w) if self._exact else 0.0), multiplier


def _dual_value(problem: cp.Problem) -> float:
    """Clarabel's dual objective of ``problem``; -inf unless it reports the problem as solved to 1e-7. Each attempt's value is a
    bound; the best counts."""
    best = -np.inf
    for attempt in _ATTEMPTS:
        least = {f"reduced_tol_{name}": _LEAST_ACCURACY for name in ("gap_abs", "gap_rel", "feas")}
        options = {**attempt, **least}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data, chain, inverse = problem.get_problem_data(CLARABEL.solver, solver_opts=options)
            solution = chain.solve_via_data(problem, data, False, False, options)
            status = str(solution.status)
            if status in ("Solved", "AlmostSolved"):
                problem.unpack_results(solution, chain, inverse)
                # CVXPY's value holds the constants of the objective, which Clarabel does not see.
                best = max(best, float(problem.value - (solution.obj_val - solution.obj_val_dual)))
            if status == "Solved":
                break
    return best
