"""Peers beside ours on the same few rows: one table, failures included."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time

import numpy as np

from simtool.bench.arrays import Workload, reference
from simtool.bench.measure import Measured, solve_all, spread
from simtool.bench.peers import Peer, Unavailable, version
from simtool.certificate import certify
from simtool.errors import SimtoolError
from simtool.problem import RowSet

_log = logging.getLogger("simtool")
_PAIRS = 3


@dataclass(frozen=True)
class Compared:
    """One line of the side-by-side table. ``row`` = seconds of a row (None where it failed), ``to_ours`` = that over
    a row of ours with everything (Gram matrix, correlations, certificates shared among the rows), ``to_reference`` =
    the whole model at that pace over G + B; ``gap`` the largest certified relative gap; ``reason`` why it
    failed, or that it misses the gap, and its times are for less than what was asked."""

    name: str
    version: str | None
    rows: int
    row: float | None
    to_ours: float | None
    to_reference: float | None
    gap: float | None
    tolerance: float
    reason: str | None


def compare(
    work: Workload,
    measured: Measured | None,
    peers: Sequence[Peer],
    tolerance: float,
    count: int,
    seconds: float,
) -> list[Compared]:
    """Run ``peers`` on ``count`` rows spread over ``work``: at most about ``seconds`` each, but one row at least."""
    rows = spread(work.fresh(), count)
    return [_one(work, measured, peer, rows, tolerance, seconds) for peer in peers]


def _one(
    work: Workload,
    measured: Measured | None,
    peer: Peer,
    rows: list[RowSet],
    tolerance: float,
    budget: float,
) -> Compared:
    def failed(reason: str) -> Compared:
        said = " ".join(reason.split())
        return Compared(peer.name, version(peer), 0, None, None, None, None, tolerance, said)

    _log.info("%s: %s", peer.name, work.origin)
    try:
        spent, worst, taken, uncertified = _run(peer, rows, tolerance, budget)
    except Unavailable as error:
        return failed(str(error))
    except (SimtoolError, ValueError, ArithmeticError, RuntimeError, TypeError, ImportError) as error:
        # A peer that breaks is a result, not the end of the benchmark.
        return failed(f"{type(error).__name__}: {error}"[:160])
    row = spent / taken
    ours, base = _pace(work, measured, tolerance)
    # A peer that misses the gap keeps its time, which then bounds what the gap would have taken it.
    missed = f"not certified at {tolerance:g}: {uncertified} of {taken} rows" if uncertified else None
    return Compared(
        peer.name,
        version(peer),
        taken,
        row,
        row / (ours / work.rows) if ours else None,
        row * work.rows / base if base else None,
        worst,
        tolerance,
        missed,
    )


def _run(peer: Peer, rows: list[RowSet], tolerance: float, budget: float) -> tuple[float, float, int, int]:
    """Seconds, largest certified gap, rows taken, rows not certified."""
    first = rows[0].subset(np.array([0]))
    began = perf_counter()
    w, seconds = peer.run(first, tolerance)
    took = max(seconds, 1e-9)
    total = sum(part.count for part in rows)
    one_by_one = total == 1 or took * total > budget
    spent, worst, taken, uncertified = 0.0, 0.0, 0, 0
    if one_by_one:
        results = [(first, w, seconds)]
        rest = [part.subset(np.array([i])) for part in rows for i in range(part.count)][1:]
        for problem in rest:
            if perf_counter() - began + took > budget:
                break
            results.append((problem, *peer.run(problem, tolerance)))
    else:  # quick ones: the median of three runs over all rows, after the first that warmed up
        times = _PAIRS if _PAIRS * took * total <= budget else 1
        runs = [[(part, *peer.run(part, tolerance)) for part in rows] for _ in range(times)]
        by_time = sorted(runs, key=lambda run: sum(entry[2] for entry in run))
        results = by_time[len(by_time) // 2]
    for problem, coefficients, elapsed in results:
        proof = certify(problem, coefficients, tolerance)
        spent += elapsed
        taken += problem.count
        worst = max(worst, float(proof.relative_gap.max(initial=0.0)))
        uncertified += int((~proof.certified).sum())
    return spent, worst, taken, uncertified


def _pace(work: Workload, measured: Measured | None, tolerance: float) -> tuple[float | None, float | None]:
    """Seconds of our whole model and of G + B, measured again right beside the peer where that is cheap."""
    if measured is None:
        return None, None
    if measured.reference is None or measured.whole + measured.reference > 1.0:
        return measured.whole, measured.reference
    whole, base = [], []
    for _ in range(_PAIRS):
        base.append(reference(work.products))
        started = process_time()
        solve_all(work.fresh(), tolerance)
        whole.append(process_time() - started)
    return median(whole), median(base)
