"""Timings: always of whole things, side by side with the reference product, never of one alone.

A repetition measures G + B (BLAS-3 in float64) and, right after it, the whole model: Gram matrix, correlations, rows,
certificates, in CPU seconds of the one thread. What is reported is the median of the ratios of such pairs, so that a machine that slows down slows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import process_time

import numpy as np

from simtool.bench.arrays import Task, Workload, reference
from simtool.certificate import certify
from simtool.problem import RowSet
from simtool.solvers import get

_MOST_REPETITIONS = 9
_SECONDS = 20.0


@dataclass(frozen=True)
class Pass:
    """One pass over a model. Seconds of the Gram matrices, of the solver (correlations and rows) and of certificates."""

    gram: float
    solve: float
    certify: float
    certified: int
    rows: int
    largest_gap: float
    nonzeros: float

    @property
    def seconds(self) -> float:
        return self.gram + self.solve + self.certify


@dataclass(frozen=True)
class Measured:
    """Medians over paired repetitions. ``reference`` = G + B in seconds; ``ratio`` = whole model / (G + B),
    both None where no Gram matrix is formed; ``row`` = seconds of a row without its share of the Gram matrix, its correlations and certificate included."""

    reference: float | None
    whole: float
    ratio: float | None
    row: float
    repetitions: int
    last: Pass


def solve_all(work: list[Task], tolerance: float) -> Pass:
    """Solve and certify every row of ``work`` with the native solver, as sparsify does."""
    solver = get("native")
    spent = [0.0, 0.0, 0.0]
    certified = rows = 0
    worst = 0.0
    nonzeros: list[np.ndarray] = []
    for task in work:
        problem = task.rows
        started = process_time()
        if task.forms_gram:
            _ = problem.design.gram  # computed once for a design, shared by its groups
        between = process_time()
        w = solver(problem, tolerance)
        solved = process_time()
        proof = certify(problem, w, tolerance)
        ended = process_time()
        spent = [
            a + b for a, b in zip(spent, (between - started, solved - between, ended - solved), strict=True)
        ]
        certified += int(proof.certified.sum())
        rows += problem.count
        worst = max(worst, float(proof.relative_gap.max(initial=0.0)))
        nonzeros.append((w != 0).sum(axis=1))
    typical = float(np.median(np.concatenate(nonzeros))) if nonzeros else 0.0
    return Pass(spent[0], spent[1], spent[2], certified, rows, worst, typical)


def paired(work: Workload, tolerance: float, seconds: float = _SECONDS) -> Measured:
    """Repeat (G + B, whole model) until ``seconds`` are spent, at least twice after a first pass that warms up; a
    first pass that takes more than half of ``seconds`` counts, and stays the only one."""
    references, passes = [], []
    began = process_time()
    for repetition in range(_MOST_REPETITIONS + 1):
        started = process_time()
        references.append(reference(work.products))
        building = process_time()
        fresh = work.fresh()
        built = process_time() - building
        result = solve_all(fresh, tolerance)
        # Building a shared Gram matrix's parts is part of the Gram.
        passes.append(
            Pass(
                result.gram + built,
                result.solve,
                result.certify,
                result.certified,
                result.rows,
                result.largest_gap,
                result.nonzeros,
            )
        )
        took = process_time() - started
        if took > seconds / 2 or (repetition >= 2 and process_time() - began + took > seconds):
            break
    if len(passes) > 1:  # the first one touched everything for the first time
        references, passes = references[1:], passes[1:]
    return Measured(
        reference=median(references) if work.products else None,
        whole=median(p.seconds for p in passes),
        ratio=median(p.seconds / g for p, g in zip(passes, references, strict=True))
        if work.products
        else None,
        row=median((p.solve + p.certify) / p.rows for p in passes),
        repetitions=len(passes),
        last=passes[-1],
    )


def spread(work: list[Task], count: int) -> list[RowSet]:
    """``count`` rows spread evenly over all rows of ``work``, as subsets of those sets (fewer where there are fewer)."""
    sets = [task.rows for task in work]
    sizes = [problem.count for problem in sets]
    chosen = np.unique(np.linspace(0, sum(sizes) - 1, min(count, sum(sizes))).astype(int))
    ends = np.cumsum(sizes)
    parts = []
    for problem, end, size in zip(sets, ends, sizes, strict=True):
        inside = chosen[(chosen >= end - size) & (chosen < end)] - (end - size)
        if inside.size:
            parts.append(problem.subset(inside))
    return parts
