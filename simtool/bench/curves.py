"""Gap against time: every solver asked for more and more accuracy, every answer certified."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from simtool.bench import cases, peers
from simtool.bench.arrays import reference, workload
from simtool.bench.cases import ModelCase
from simtool.bench.drawing import encode, figure, legend, lines
from simtool.bench.measure import spread
from simtool.bench.peers import Peer, Unavailable
from simtool.bench.run_case import Settings
from simtool.certificate import certify
from simtool.errors import SimtoolError
from simtool.problem import RowSet

_log = logging.getLogger("simtool")
_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_ROWS = 3
_SMALLEST_GAP = 1e-16  # what a gap of rounding is drawn as


def gap_against_time(settings: Settings, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The curves of a few rows of the first chosen case that is a model (else of case F): numbers and picture."""
    wanted = [c for c in cases.CASES if isinstance(c, ModelCase) and c.name in names]
    case = wanted[0] if wanted else next(c for c in cases.CASES if isinstance(c, ModelCase))
    case = case.quick() if settings.quick else case
    work = workload(settings.states(case.sizes, case.samples), case.options)
    rows = [part.subset(np.array([i])) for part in spread(work.fresh(), _ROWS) for i in range(part.count)]
    shared = reference(work.products) / work.rows
    found: dict[str, Any] = {
        "case": case.title,
        "origin": work.origin,
        "reference_per_row": shared,
        "rows": [],
    }
    drawn, axes = figure(3.4 * len(rows), 4.0, len(rows))
    for index, (problem, panel) in enumerate(zip(rows, axes, strict=True)):
        curves = {peer.name: _curve(peer, problem, settings.peer_seconds) for peer in peers.ALL}
        found["rows"].append(curves)
        series = {
            name: ([p["seconds"] for p in points], [max(p["gap"], _SMALLEST_GAP) for p in points])
            for name, points in curves.items()
            if points
        }
        lines(
            panel,
            series,
            title=f"row {index + 1} of {len(rows)}",
            x="CPU seconds",
            y="certified relative gap" if index == 0 else "",
            log="xy",
            colours={peer.name: number for number, peer in enumerate(peers.ALL)},
        )
        panel.axvline(shared, color="#8a94a3", linestyle=":", linewidth=1.0, label="(G+B) / rows")
        panel.axhline(settings.tolerance, color="#8a94a3", linewidth=0.6)
    drawn.suptitle(f"{case.title}: {work.origin}", fontsize=9)
    legend(drawn, max(axes, key=lambda panel: len(panel.lines)))
    return found, encode(drawn)


def _curve(peer: Peer, rows: RowSet, budget: float) -> list[dict[str, float]]:
    """Seconds and certified gap at each accuracy, until one takes longer than ``budget`` or the peer fails."""
    points = []
    for tolerance in _TOLERANCES:
        try:
            w, seconds = peer.run(rows, tolerance)
        except (Unavailable, SimtoolError, ValueError, ArithmeticError) as error:
            _log.info("%s stops at %g: %s", peer.name, tolerance, error)
            break
        gap = float(certify(rows, w, tolerance).relative_gap[0])
        points.append({"asked": tolerance, "seconds": seconds, "gap": gap})
        if seconds > budget:
            break
    return points
