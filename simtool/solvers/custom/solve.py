"""Rows of a custom objective, by a cone solver.

    minimise   f(w) + loss_weight ||z - W^T w||^2     or     f(w)  subject to  W^T w = z
    subject to w in C,  ||w_S||_1 <= kappa,  lower <= w <= upper

With W = diag(norms) L S R (thin, features at unit norm) only R z matters, so the program has as many residuals as W has
rank, however many samples there are. It is compiled once for all rows of a row set whose targets are of the same size to a
power of ten; the target, the mask and the unit of the objective are parameters. Small coefficients are set to zero as long as the row stays certified.
"""

from __future__ import annotations

import logging

import cvxpy as cp
import numpy as np

from simtool.equality import MATCH_TOLERANCE
from simtool.errors import SolverError
from simtool.problem import RowSet
from simtool.row_space import SingularSpace
from simtool.row_status import RowStatus
from simtool.solvers.backends import Backend, require, run_quietly
from simtool.solvers.custom.objective import OwnObjective, require_dpp
from simtool.solvers.custom.program import Frame, unit_of
from simtool.solvers.custom.proof import Judge
from simtool.solvers.exact import Matched
from simtool.solvers.feasible import restore_feasibility

# What may count as zero beside the largest coefficient.
_ZERO_CUTS = (1e-5, 1e-6, 1e-7, 1e-8, 0.0)
# Zeros may cost this part of the tolerance.
_MARGIN = 0.1
# How far, relative to the target, states may move where exactly these leave a program without an interior.
_BAND = 0.1 * MATCH_TOLERANCE
# Coefficients beyond this many times their natural size are no solution but a direction without end.
_LARGEST = 1e8

_log = logging.getLogger("simtool")


def solve(
    own: OwnObjective, rows: RowSet, states: int, backend: Backend, tolerance: float, *, exact: bool
) -> Matched:
    """The rows, the first ``states`` of whose features are states; hints nu for the proof where ``exact``."""
    if backend.solver == "MOSEK":
        require("mosek")
    rank = SingularSpace(rows.design.dense(np.arange(rows.design.d)))
    judge = Judge(own, rows, states, exact=exact)
    programs = _Programs(own, rows, states, rank, backend)
    w = np.zeros((rows.count, rows.design.d))
    nu = np.zeros((rows.count, rows.design.m))
    trouble: list[RowStatus | None] = []
    targets = rows.target()
    for i in range(rows.count):
        if exact:
            w[i], nu[i], status = _match(programs, judge, i, targets[i], tolerance)
        else:
            w[i], _, status = programs.get("loss", i).solve(i, targets[i])
        if status is None:
            w[i], nu[i] = _exact_zeros(programs, judge, i, w[i], nu[i], targets[i], tolerance, exact=exact)
        else:
            _log.debug("row %d of its shard: --objective %s: %s", i, own.reference, status.label)
        trouble.append(status)
    return Matched(restore_feasibility(rows, w), nu, tuple(trouble))


def _match(
    programs: _Programs, judge: Judge, i: int, z: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, RowStatus | None]:
    """Row ``i`` with the states ``z``, the hint nu for its proof, and what went wrong."""
    w, nu, status = programs.get("match", i).solve(i, z)
    if status is None and judge.row(i, w, nu).holds(tolerance):
        return w, nu, None
    # The target's rounding may lie outside what C allows, or leave the program without an interior: match the nearest
    # states that C allows, give or take a little.
    nearest, none, found = programs.get("nearest", i).solve(i, z)
    if found is not None:
        return nearest, none, found
    if judge.mismatch(i, nearest) > MATCH_TOLERANCE:
        return nearest, none, RowStatus.INFEASIBLE
    again, nu_again, failed = programs.get("band", i).solve(i, programs.states_of(nearest))
    if failed is None and judge.mismatch(i, again) <= MATCH_TOLERANCE:
        return again, nu_again, None
    return (w, nu, None) if status is None else (nearest, none, RowStatus.GAVE_UP)


class _Programs:
    """The programs of one row set, each compiled when it is first needed: f with the ``loss``, with the ``match``, with the
    match up to a ``band``, or the ``nearest`` states without f."""

    def __init__(
        self, own: OwnObjective, rows: RowSet, states: int, rank: SingularSpace, backend: Backend
    ) -> None:
        self.own, self.rows, self.states, self.rank, self.backend = own, rows, states, rank, backend
        self._made: dict[tuple[str, float, bool], _Program] = {}

    def get(self, kind: str, i: int, *, support: bool = False) -> _Program:
        """The program called ``kind``, in the unit of row ``i``; with ``support`` one that can hold coefficients at zero."""
        key = (kind, unit_of(self.rows, i), support)
        if key not in self._made:
            self._made[key] = _Program(self, *key)
        return self._made[key]

    def states_of(self, w: np.ndarray) -> np.ndarray:
        """W^T w, (m,)."""
        rank = self.rank
        return np.asarray((((w * rank.norms) @ rank.left) * rank.singular) @ rank.right)


class _Program:
    """One compiled program over the row space of W, in a unit of w; what else differs by row is a parameter, so that a row
    with a small target is solved as accurately as the others."""

    def __init__(self, shared: _Programs, kind: str, unit: float, support: bool) -> None:
        rows, rank = shared.rows, shared.rank
        self._backend, self._kind, self._rank, self._rows = shared.backend, kind, rank, rows
        self._frame = Frame(shared.own, rows, shared.states, unit, support=support)
        self._right = cp.Parameter(rank.singular.size)
        self._inverse = cp.Parameter(nonneg=True)
        self._band = cp.Parameter(rank.singular.size, nonneg=True)
        equations = (rank.left * rank.norms[:, None]).T * self._frame.unit
        cost, constraints = self._frame.cost, list(self._frame.constraints)
        self._match: list[cp.Constraint] = []
        if rank.singular.size and kind in ("loss", "nearest"):
            residual = cp.Variable(rank.singular.size)
            states = self._inverse * ((rank.singular[:, None] * equations) @ self._frame.v)
            constraints.append(residual == states - self._right)
            # The norm itself where it is to vanish: a square near 0 leaves its root at the root of the accuracy.
            cost = cost + cp.sum_squares(residual) if kind == "loss" else cp.norm(residual, 2)
        elif rank.singular.size:
            off = equations @ self._frame.v - self._right
            # The first minus the second multiplier is that of the equations.
            self._match = [off == 0] if kind == "match" else [off <= self._band, -off <= self._band]
            constraints += self._match
        self._problem = cp.Problem(cp.Minimize(cost), constraints)
        require_dpp(shared.own, self._problem)

    def solve(
        self, i: int, z: np.ndarray, zeros: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, RowStatus | None]:
        """w (d,) of row ``i`` for the target ``z`` with ``zeros`` (d,) bool held at zero, the multiplier nu (m,) of the
        match, and what went wrong."""
        frame, rank = self._frame, self._rank
        nothing = np.zeros(frame.v.size), np.zeros(z.size)
        frame.aim(self._rows, i, zeros)
        inside, size = rank.right @ z, float(np.linalg.norm(z)) or 1.0
        if self._kind in ("loss", "nearest"):
            frame.weight.value = 1.0 / (self._rows.objective.loss_weight * size**2)
            self._right.value, self._inverse.value = inside / size, 1.0 / size
        else:
            if np.linalg.norm(z - inside @ rank.right) > MATCH_TOLERANCE * size:
                return *nothing, RowStatus.INFEASIBLE
            frame.weight.value = 1.0
            self._right.value = inside / rank.singular
            self._band.value = _BAND * size / (rank.singular * np.sqrt(max(1, rank.singular.size)))
        try:
            run_quietly(self._problem, self._backend)
        except SolverError as error:
            _log.debug("row %d of its shard: %s", i, error)
            return *nothing, RowStatus.GAVE_UP
        v = frame.v.value
        if v is None or not np.all(np.isfinite(v)):
            infeasible = self._problem.status in ("infeasible", "infeasible_inaccurate")
            return *nothing, RowStatus.INFEASIBLE if infeasible else RowStatus.GAVE_UP
        if np.abs(v).max() > _LARGEST:
            _log.debug(
                "row %d of its shard: %s runs away to coefficients of %.0e: is the objective bounded below?",
                i,
                self._backend.name,
                frame.unit * np.abs(v).max(),
            )
            return *nothing, RowStatus.GAVE_UP
        nu = nothing[1]
        duals = [np.asarray(part.dual_value, dtype=np.float64) for part in self._match]
        if duals:
            multiplier = duals[1] - duals[0] if len(duals) == 2 else -duals[0]
            nu = np.asarray((multiplier / rank.singular) @ rank.right)
        return frame.unit * np.asarray(v, dtype=np.float64), nu, None


def _exact_zeros(
    programs: _Programs,
    judge: Judge,
    i: int,
    w: np.ndarray,
    nu: np.ndarray,
    z: np.ndarray,
    tolerance: float,
    *,
    exact: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """``w`` and ``nu`` with the mask and the bounds exact, and zeros where ``w`` is small: the coarsest cut that can be
    certified, by itself or once the other coefficients are solved for again.

    Asking the certificate keeps small coefficients that matter: where f is smooth at 0 their loss costs little but
    leaves a gap.
    """
    w = _inside(programs.rows, i, w)
    hint = nu if exact else None
    # What the row itself does not reach, its zeros need not reach either.
    most = max(_MARGIN * tolerance, 2.0 * judge.row(i, w, hint).relative_gap)
    # Features that are zero on every sample cost no loss, however large their coefficients: off, if f and C let them.
    without = np.where(programs.rows.design.dead, 0.0, w)
    if not np.array_equal(without, w):
        w = without if judge.row(i, without, hint).holds(most) else w
    tried = -1
    for cut in _ZERO_CUTS:
        zeros = np.abs(w) <= cut * np.abs(w).max(initial=0.0)
        if int(zeros.sum()) == tried:
            continue
        tried = int(zeros.sum())
        candidate = np.where(zeros, 0.0, w)
        if judge.row(i, candidate, hint).holds(most):
            return candidate, nu
        # The states of the row itself, so that an exact match stays within what C allows.
        goal = programs.states_of(w) if exact else z
        program = programs.get("band" if exact else "loss", i, support=True)
        again, nu_again, failed = program.solve(i, goal, zeros)
        again = np.where(zeros, 0.0, _inside(programs.rows, i, again))
        if failed is None and judge.row(i, again, nu_again if exact else None).holds(most):
            return again, nu_again
    return w, nu


def _inside(rows: RowSet, i: int, w: np.ndarray) -> np.ndarray:
    """``w`` with what its mask forbids at zero, and within the box."""
    if rows.allowed is not None:
        w = np.where(rows.allowed[i], w, 0.0)
    if rows.lower is not None:
        w = np.maximum(w, rows.lower)
    if rows.upper is not None:
        w = np.minimum(w, rows.upper)
    return w
