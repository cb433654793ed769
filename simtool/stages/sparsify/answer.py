"""From the rows of a shard to coefficients, their proof and a word for each: which solver and which certificate.

| asked for | solver | certificate |
|---|---|---|
| an objective of the family | any | duality gap (simtool.certificate) |
| the same, ``--match exact`` | a cone solver | equality (simtool.equality) |
| an objective of one's own, either match | a cone solver | solver gap (simtool.solvers.custom.proof) |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simtool import solvers
from simtool.certificate import KAPPA_SLACK, Certificates, certify
from simtool.equality import certify_equality, outside
from simtool.importing import is_reference
from simtool.problem import RowSet
from simtool.solvers import backends
from simtool.status import RowStatus


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
    trouble: list[RowStatus | None] = [None] * rows.count
    nu: np.ndarray | None = None
    if task.custom:
        from simtool.solvers.custom import objective, proof, solve

        own = objective.load(task.objective, task.source_sha256)
        exact = task.match == "exact"
        backend = backends.BACKENDS[task.solver]
        matched = solve.solve(own, rows, task.states, backend, task.tolerance, exact=exact)
        w, trouble = matched.w, list(matched.trouble)
        nu = matched.nu if exact else None
        found = proof.certify_custom(own, rows, task.states, w, nu, task.tolerance)
    elif task.match == "exact":
        from simtool.solvers import exact as exact_solver

        matched = exact_solver.solve(rows, backends.BACKENDS[task.solver], task.tolerance)
        w, nu, trouble = matched.w, matched.nu, list(matched.trouble)
        found = certify_equality(rows, w, nu, task.tolerance)
    else:
        if task.solver in backends.BACKENDS:
            from simtool.solvers import conic

            w, gave_up = conic.attempt(backends.BACKENDS[task.solver], rows, task.tolerance)
            trouble = [RowStatus.GAVE_UP if up else None for up in gave_up]
        else:
            w = solvers.get(task.solver)(rows, task.tolerance)
        found = certify(rows, w, task.tolerance)
    return Answer(w, found, _statuses(rows, w, found, trouble), nu)


def _statuses(
    rows: RowSet, w: np.ndarray, proof: Certificates, trouble: list[RowStatus | None]
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
