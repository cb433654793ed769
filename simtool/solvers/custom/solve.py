"""Rows of a custom objective, by a cone solver.

    minimise   f(w) + loss_weight ||z - W^T w||^2     or     f(w)  subject to  W^T w = z
    subject to w in C,  ||w_S||_1 <= kappa,  lower <= w <= upper

With W = diag(norms) L S R (thin, features at unit norm) only R z matters, so the program has as many residuals as W has
rank, however many samples there are. It is compiled once per row set; the target, the mask and the unit of the objective
are parameters. Small coefficients are set to zero as long as the row stays certified.
"""

from __future__ import annotations

import logging

import cvxpy as cp
import numpy as np

from simtool.equality import MATCH_TOLERANCE, mismatch
from simtool.errors import SolverError
from simtool.problem import RowSet
from simtool.row_space import SingularSpace
from simtool.solvers.backends import Backend, require, run_quietly
from simtool.solvers.custom.objective import OwnObjective, require_dpp
from simtool.solvers.custom.program import Frame, unit_of
from simtool.solvers.custom.proof import Judge
from simtool.solvers.exact import Matched
from simtool.solvers.feasible import restore_feasibility
from simtool.status import RowStatus

# What may count as zero beside the largest coefficient.
_ZERO_CUTS = (1e-5, 1e-6, 1e-7, 1e-8, 0.0)
# Zeros may cost this part of the tolerance.
_MARGIN = 0.1
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
    program = _Program(own, rows, states, rank, backend, exact=exact)
    nearest = _Program(own, rows, states, rank, backend, exact=False) if exact else program
    w = np.zeros((rows.count, rows.design.d))
    nu = np.zeros((rows.count, rows.design.m))
    trouble: list[RowStatus | None] = []
    targets = rows.target()
    for i in range(rows.count):
        w[i], multiplier, status = program.solve(rows, i, targets[i], 1.0)
        if exact and status is None and mismatch(rows, w)[i] > MATCH_TOLERANCE:
            status = RowStatus.GAVE_UP
        if exact and status is None:
            nu[i] = (multiplier / rank.singular) @ rank.right
        if exact and status is not None:
            # No row of C gives these states: the one whose states come closest.
            w[i], _, found = nearest.solve(rows, i, targets[i], 0.0)
            far = mismatch(rows, w)[i] > MATCH_TOLERANCE
            status = RowStatus.INFEASIBLE if found is None and far else status
        if status is None:
            w[i] = _exact_zeros(judge, rows, i, w[i], nu[i] if exact else None, tolerance)
        else:
            _log.warning("row %d of its shard: --objective %s: %s", i, own.reference, status.label)
        trouble.append(status)
    return Matched(restore_feasibility(rows, w), nu, tuple(trouble))


class _Program:
    """f with the loss or with the match, over the row space of W."""

    def __init__(
        self,
        own: OwnObjective,
        rows: RowSet,
        states: int,
        rank: SingularSpace,
        backend: Backend,
        *,
        exact: bool,
    ) -> None:
        self._backend, self._exact, self._rank = backend, exact, rank
        self._frame = Frame(own, rows, states, unit_of(rows))
        self._right = cp.Parameter(rank.singular.size)
        self._loss = rows.objective.loss_weight
        # The norm of the largest target becomes one.
        self._size = float(np.sqrt(rows.target_norms.max(initial=0.0))) or 1.0
        equations = (rank.left * rank.norms[:, None]).T * (self._frame.unit / self._size)
        cost, constraints = self._frame.cost, list(self._frame.constraints)
        self._match: cp.Constraint | None = None
        if exact and rank.singular.size:
            equations = equations * self._size
            self._match = equations @ self._frame.v == self._right
            constraints.append(self._match)
        elif not exact and rank.singular.size:
            residual = cp.Variable(rank.singular.size)
            constraints.append(residual == (rank.singular[:, None] * equations) @ self._frame.v - self._right)
            cost = cost + cp.sum_squares(residual)
        self._problem = cp.Problem(cp.Minimize(cost), constraints)
        require_dpp(own, self._problem)

    def solve(
        self, rows: RowSet, i: int, z: np.ndarray, weight: float
    ) -> tuple[np.ndarray, np.ndarray, RowStatus | None]:
        """w (d,), the multiplier (k,) of the match, and what went wrong; f counts ``weight`` times."""
        frame, nothing = self._frame, np.zeros(self._rank.singular.size)
        frame.aim(rows, i)
        inside = self._rank.right @ z
        if self._exact:
            if np.linalg.norm(z - inside @ self._rank.right) > MATCH_TOLERANCE * np.linalg.norm(z):
                return np.zeros(frame.v.size), nothing, RowStatus.INFEASIBLE
            frame.weight.value = weight
            self._right.value = inside / self._rank.singular
        else:
            frame.weight.value = weight / (self._loss * self._size**2)
            self._right.value = inside / self._size
        try:
            run_quietly(self._problem, self._backend)
        except SolverError as error:
            _log.warning("row %d of its shard: %s", i, error)
            return np.zeros(frame.v.size), nothing, RowStatus.GAVE_UP
        v = frame.v.value
        if v is None or not np.all(np.isfinite(v)):
            infeasible = self._problem.status in ("infeasible", "infeasible_inaccurate")
            return np.zeros(frame.v.size), nothing, RowStatus.INFEASIBLE if infeasible else RowStatus.GAVE_UP
        if np.abs(v).max() > _LARGEST:
            _log.warning(
                "row %d of its shard: %s runs away to coefficients of %.0e: is the objective bounded below?",
                i,
                self._backend.name,
                frame.unit * np.abs(v).max(),
            )
            return np.zeros(frame.v.size), nothing, RowStatus.GAVE_UP
        multiplier = nothing if self._match is None else -np.asarray(self._match.dual_value, dtype=np.float64)
        return frame.unit * np.asarray(v, dtype=np.float64), multiplier, None


def _exact_zeros(
    judge: Judge, rows: RowSet, i: int, w: np.ndarray, nu: np.ndarray | None, tolerance: float
) -> np.ndarray:
    """``w`` with the mask and the bounds exact, and zeros where it is small: the coarsest cut that is still certified.

    Asking the certificate keeps small coefficients that matter: where f is smooth at 0 their loss costs little but
    leaves a gap.
    """
    if rows.allowed is not None:
        w = np.where(rows.allowed[i], w, 0.0)
    if rows.lower is not None:
        w = np.maximum(w, rows.lower)
    if rows.upper is not None:
        w = np.minimum(w, rows.upper)
    tried = -1
    for cut in _ZERO_CUTS:
        small = np.abs(w) <= cut * np.abs(w).max(initial=0.0)
        zeros = int(small.sum())
        if zeros == tried:
            continue
        tried = zeros
        candidate = np.where(small, 0.0, w)
        if judge.row(i, candidate, nu).holds(_MARGIN * tolerance):
            return candidate
    return w
