"""The native solver: the compiled active-set kernel on every row, on a shared Gram matrix or on working sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simtool.problem import RowSet
from simtool.solvers import regime, working_set
from simtool.solvers.elimination import Elimination, SharedGram, solve_rows
from simtool.solvers.face import solve_reduced


def solve(rows: RowSet, tolerance: float) -> np.ndarray:
    """Coefficients (r, d) of all rows, to be certified at ``tolerance``.

    A row that runs out of pivots is returned as far as it came; its certificate says so.
    """
    if rows.design.has_gram or regime.gram_pays(rows.design.d, rows.design.m, rows.count):
        return solve_rows(rows, tolerance, lambda row, goal: solve_reduced(row, goal)[0])
    return working_set.solve(rows, tolerance)


def solve_path(rows: RowSet, kappas: Sequence[float], tolerance: float) -> list[np.ndarray]:
    """Coefficients (r, d) for every kappa of ``kappas``, in their order; ``rows`` gives all else.

    One Gram matrix serves the whole path, and each row walks on from its answer at the kappa below: its face changes
    little, so that many values cost little more than one.
    """
    distinct = list(dict.fromkeys(float(kappa) for kappa in kappas))
    if len(distinct) < len(kappas):  # walking on from itself could move a row whose optimum is not unique
        found = dict(zip(distinct, solve_path(rows, distinct, tolerance), strict=True))
        return [found[float(kappa)].copy() for kappa in kappas]
    gram = rows.design.has_gram or regime.gram_pays(rows.design.d, rows.design.m, rows.count)
    walked = [k for k in np.argsort(np.asarray(kappas, dtype=float), kind="stable") if kappas[k] > 0 and gram]
    out = [
        np.zeros((rows.count, rows.design.d)) if k in walked else solve(rows.with_kappa(kappa), tolerance)
        for k, kappa in enumerate(kappas)
    ]
    if not walked:
        return out
    eliminations = {k: Elimination(rows.with_kappa(float(kappas[k]))) for k in walked}
    largest = eliminations[walked[-1]]
    if largest.pivoted.size:
        shared = SharedGram(largest)
        for i in range(rows.count):
            row, start = shared.row(i), None
            for k in walked:
                start, _ = solve_reduced(replace(row, kappa=float(kappas[k])), tolerance, start)
                out[k][i, largest.pivoted] = start
    for k in walked:
        out[k] = eliminations[k].complete(out[k])
    return out
