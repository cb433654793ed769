"""From the rows of a shard to coefficients, their proof and a word for each: which solver and which certificate.

| asked for | solver | certificate |
|---|---|---|
| an objective of the family | any | duality gap (simtool.certificate) |
| the same, ``--match exact`` | a cone solver | equality (simtool.equality) |
| an objective of one's own, either match | a cone solver | solver gap (simtool.solvers.custom.proof) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simtool import solvers
from simtool.certificate import KAPPA_SLACK, Certificates, certify
from simtool.equality import certify_equality, outside
from simtool.errors import OptionError
from simtool.importing import is_reference
from simtool.problem import RowSet
from simtool.row_status import RowStatus
from simtool.solvers import backends


@dataclass(frozen=True)
class Task:
    """What is asked of a row set, beside what it holds itself.

    Attributes
    ----------
    objective : a name of the family, or the reference of a function of the user's own
    source_sha256 : sha256 of the file of that function, None for the family
    match : relaxed or exact
    solver : one of SOLVERS
    tolerance : relative gap at which a row counts as certified
    states : how many of the features, the first, are states; a custom objective gets them as ``a``
    """

    objective: str
    source_sha256: str | None
    match: str
    solver: str
    tolerance: float
    states: int

    def __post_init__(self) -> None:
        if self.solver not in solvers.SOLVERS:
            raise OptionError(f"--solver must be one of {', '.join(solvers.SOLVERS)}, got {self.solver!r}.")
        if (self.custom or self.match == "exact") and self.solver not in backends.BACKENDS:
            raise OptionError(
                f"exact matching and objectives of one's own are cone programs: --solver must be one of "
                f"{', '.join(backends.BACKENDS)}, got {self.solver!r}."
            )

    @property
    def custom(self) -> bool:
        """Whether the objective is the user's own."""
        return is_reference(self.objective)


@dataclass(frozen=True)
class Answer:
    """Rows ``w`` (r, d), their certificates, the status of each as a code (r,), and the multipliers ``nu`` (r, m) of exact
    matching, None without it."""

    w: np.ndarray
    proof: Certificates
    status: np.ndarray
    nu: np.ndarray | None = None


def answer(rows: RowSet, task: Task) -> Answer:
    """Solve ``rows``, then judge what is to be stored. Raises SolverError or InputError where nothing can be solved."""
    backends.require(task.solver)
    w, nu, trouble = _solved(rows, task)
    proof = judge(rows, task, w, nu)
    return Answer(w, proof, statuses(rows, w, proof, trouble), nu)


def _solved(rows: RowSet, task: Task) -> tuple[np.ndarray, np.ndarray | None, Sequence[RowStatus | None]]:
    """Rows, the multipliers of an exact match, and what solvers said of single rows."""
    exact = task.match == "exact"
    if task.custom:
        from simtool.solvers.custom import objective, solve

        own = objective.load(task.objective, task.source_sha256)
        backend = backends.BACKENDS[task.solver]
        matched = solve.solve(own, rows, task.states, backend, task.tolerance, exact=exact)
        return matched.w, matched.nu if exact else None, matched.trouble
    if exact:
        from simtool.solvers import exact as exact_solver

        matched = exact_solver.solve(rows, backends.BACKENDS[task.solver], task.tolerance)
        return matched.w, matched.nu, matched.trouble
    if task.solver in backends.BACKENDS:
        from simtool.solvers import conic

        w, gave_up = conic.attempt(backends.BACKENDS[task.solver], rows, task.tolerance)
        return w, None, [RowStatus.GAVE_UP if up else None for up in gave_up]
    return solvers.get(task.solver)(rows, task.tolerance), None, [None] * rows.count


def judge(rows: RowSet, task: Task, w: np.ndarray, nu: np.ndarray | None) -> Certificates:
    """Certificates of ``w`` (r, d), whatever solved it; ``nu`` (r, m) are hints for rows that match exactly (any will
    do, good ones prove more)."""
    if task.custom:
        from simtool.solvers.custom import objective, proof

        own = objective.load(task.objective, task.source_sha256)
        return proof.certify_custom(own, rows, task.states, w, nu, task.tolerance)
    if task.match == "exact":
        hints = np.zeros((rows.count, rows.design.m)) if nu is None else nu
        return certify_equality(rows, w, hints, task.tolerance)
    return certify(rows, w, task.tolerance)


def statuses(
    rows: RowSet, w: np.ndarray, proof: Certificates, trouble: Sequence[RowStatus | None]
) -> np.ndarray:
    """The code of each row's status: what the certificate says first, then what the solver said, then the reason."""
    broken = (proof.kappa_slack < -KAPPA_SLACK * np.abs(rows.objective.kappa or 0.0)) | outside(rows, w)
    found = []
    for i, seen in enumerate(trouble):
        if proof.certified[i]:
            found.append(RowStatus.CERTIFIED)
        elif seen is not None:
            found.append(seen)
        else:
            found.append(RowStatus.CONSTRAINT if broken[i] else RowStatus.GAP)
    return np.array([status.code for status in found], dtype=np.uint8)
