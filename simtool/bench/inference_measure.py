"""Contenders side by side: turn after turn, ratios of neighbours, and whether their outputs are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from simtool.bench.inference_contenders import OURS, Call, Contender

TOLERANCE = 1e-5
_SHORTEST = 5e-3  # seconds of a measurement: what is faster is repeated


@dataclass(frozen=True)
class Entry:
    """One contender at one batch size.

    ``seconds`` CPU time of a call, the median; ``ratio`` the median of (its time / ours) over the turns, above 1 where
    ours is faster; ``error`` the largest difference from ``ImplicitModel.predict`` over max(1, |y|), ``agrees`` whether
    it is below 1e-5 (both on the inputs of the batch); ``accuracy`` of all inputs where there are labels.
    """

    name: str
    version: str | None
    batch: int
    seconds: float | None = None
    ratio: float | None = None
    error: float | None = None
    agrees: bool | None = None
    accuracy: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def side_by_side(
    entrants: Sequence[Contender],
    expected: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray | None,
    batch: int,
    repeats: int,
) -> list[Entry]:
    """Every contender on the first ``batch`` of ``inputs`` (m, size), ``repeats`` turns; ``expected`` (m, q) is the reference."""
    calls: dict[str, Call] = {}
    facts: dict[str, dict[str, Any]] = {}
    for one in entrants:
        if one.prepare is None:
            facts[one.name] = {"reason": one.reason}
            continue
        try:
            call = one.prepare(np.ascontiguousarray(inputs[:batch]))
            facts[one.name] = _facts(one, call(), expected, inputs, labels)
            calls[one.name] = call
        except Exception as error:
            if one.name == OURS:
                raise
            facts[one.name] = {"reason": f"{type(error).__name__}: {error}"[:200]}
    counts = {name: max(1, round(_SHORTEST / max(_time(call, 1), 1e-9))) for name, call in calls.items()}
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        # The first turn warms up; every other one goes the other way round.
        names = list(calls) if turn % 2 else list(calls)[::-1]
        for name in names:
            spent = _time(calls[name], counts[name]) / counts[name]
            if turn:
                turns[name].append(spent)
    ours = turns[OURS]
    return [
        Entry(
            name=one.name,
            version=one.version,
            batch=batch,
            seconds=median(turns[one.name]) if one.name in turns else None,
            ratio=median(t / o for t, o in zip(turns[one.name], ours, strict=True))
            if one.name in turns
            else None,
            **facts[one.name],
        )
        for one in entrants
    ]


def _time(call: Call, count: int) -> float:
    started = process_time()
    for _ in range(count):
        call()
    return process_time() - started


def _facts(
    one: Contender, found: np.ndarray, expected: np.ndarray, inputs: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    reference = expected[: len(found)]
    error = float((np.abs(found - reference) / np.maximum(1.0, np.abs(reference))).max(initial=0.0))
    accuracy = None
    if labels is not None and one.prepare is not None:
        accuracy = float((one.prepare(inputs)().argmax(axis=1) == labels).mean())
    return {"error": error, "agrees": error <= TOLERANCE, "accuracy": accuracy}
