"""Means and spreads over the seeds, and the numbers that ours is held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from simtool.bench import cases
from simtool.bench.pruners import PEERS
from simtool.bench.pruners.peers import OURS as OUR_BUDGETS
from simtool.bench.quality_measure import CONVEX, DEFAULT, RECIPES, Recipe, Score

# Accuracy in percent on case F by sparsity: what is asked for, and what distillation reaches with training.
AT_LEAST = {
    6000: {0.8: 87.3, 0.9: 86.9, 0.95: 85.2, 0.98: 79.5},
    1000: {0.8: 87.0, 0.9: 86.3, 0.95: 84.3, 0.98: 78.0},
}
AIM = {6000: {0.8: 87.6, 0.9: 87.3, 0.95: 86.0, 0.98: 82.9}}
CONVEX_AT_LEAST = {6000: {0.8: 87.2, 0.9: 86.6, 0.95: 83.6, 0.98: 76.0}}
SEEDS = 3


@dataclass(frozen=True)
class Line:
    """One method at one number of samples and one sparsity, over its seeds; ``spread`` is their standard deviation, None of one."""

    method: str
    label: str
    budget: str
    tuned: bool
    samples: int
    sparsity: float
    values: tuple[float, ...]
    agreement: float
    nnz: tuple[int, ...]
    seconds: float

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        return spread(self.values)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean, "spread": self.spread}


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of fewer than two."""
    return stdev(values) if len(values) > 1 else None


def lines(scores: Sequence[Score]) -> tuple[Line, ...]:
    """One for every method, budget, tuning, number of samples and sparsity, in the order they were first met."""
    labels = {recipe.name: recipe.label for recipe in RECIPES} | {peer.name: peer.label for peer in PEERS}
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in scores:
        key = (score.samples, score.method, score.budget, score.tuned, score.sparsity)
        groups.setdefault(key, []).append(score)
    return tuple(
        Line(
            method=method,
            label=labels[method],
            budget=budget,
            tuned=tuned,
            samples=samples,
            sparsity=sparsity,
            values=tuple(score.accuracy for score in found),
            agreement=fmean(score.agreement for score in found),
            nnz=tuple(score.nnz for score in found),
            seconds=fmean(score.seconds for score in found),
        )
        for (samples, method, budget, tuned, sparsity), found in groups.items()
    )


@dataclass(frozen=True)
class Target:
    """An accuracy in percent: ``reached`` shall be at least ``goal``. ``reached`` None: ``note`` says why."""

    name: str
    goal: float | None
    aim: float | None
    reached: float | None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.reached is None or self.goal is None else self.reached >= self.goal

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def targets(found: Sequence[Line], sizes: str, data: str, seeds: int) -> tuple[Target, ...]:
    """Ours against the numbers asked for (of case F on FashionMNIST alone), and against every peer with our layer budgets."""
    reason = ""
    if sizes != cases.CASE_F or not data.startswith("fashion-mnist"):
        reason = f"the numbers are those of {cases.CASE_F} on fashion-mnist, this is {sizes} on {data}"
    asked = [
        _asked(found, recipe, samples, sparsity, goal, aims.get(samples, {}).get(sparsity), reason)
        for recipe, goals, aims in ((DEFAULT, AT_LEAST, AIM), (CONVEX, CONVEX_AT_LEAST, {}))
        for samples, by_sparsity in goals.items()
        for sparsity, goal in by_sparsity.items()
    ]
    return (*asked, *beside_peers(found, seeds))


def _asked(
    found: Sequence[Line],
    recipe: Recipe,
    samples: int,
    sparsity: float,
    goal: float,
    aim: float | None,
    reason: str,
) -> Target:
    name = f"{recipe.label}, m = {samples}, {sparsity:.0%}"
    line = _line(found, recipe.name, samples, sparsity)
    if reason or line is None:
        return Target(name, goal, aim, None, reason or "not asked for")
    note = (
        ""
        if len(line.values) >= SEEDS
        else f"of {len(line.values)} seeds, the number asked for is a mean of {SEEDS}"
    )
    return Target(name, goal, aim, 100.0 * line.mean, note)


def beside_peers(found: Sequence[Line], seeds: int) -> tuple[Target, ...]:
    """For each number of samples and sparsity, the peer with our layer budgets that comes nearest to ours or lies farthest above.

    The goal is its mean less the spread, the larger of its own and ours.
    """
    made = []
    for line in (one for one in found if one.method == DEFAULT.name):
        rivals = [
            one
            for one in found
            if one.budget == OUR_BUDGETS and (one.samples, one.sparsity) == (line.samples, line.sparsity)
        ]
        if not rivals:
            continue
        hardest = max(rivals, key=lambda one: one.mean - _allowed(one, line))
        settings = "tuned" if hardest.tuned else "as published"
        made.append(
            Target(
                f"beside every peer with our layer budgets, m = {line.samples}, {line.sparsity:.0%}",
                100.0 * (hardest.mean - _allowed(hardest, line)),
                None,
                100.0 * line.mean,
                f"{hardest.label}, {settings}: {100 * hardest.mean:.2f}"
                + (
                    f", less a spread of {100 * _allowed(hardest, line):.2f}"
                    if seeds > 1
                    else ", one seed: no spread"
                ),
            )
        )
    return tuple(made)


def _allowed(one: Line, other: Line) -> float:
    return max(one.spread or 0.0, other.spread or 0.0)


def _line(found: Iterable[Line], method: str, samples: int, sparsity: float) -> Line | None:
    return next(
        (
            one
            for one in found
            if (one.method, one.samples) == (method, samples) and abs(one.sparsity - sparsity) < 1e-9
        ),
        None,
    )
