"""The tables and the picture of a comparison of sparse models, and the folder they are written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simtool.bench import table
from simtool.bench.drawing import _COLOURS, encode, figure
from simtool.bench.pruners.peers import GLOBAL, UNIFORM
from simtool.bench.pruners.peers import OURS as OUR_BUDGETS
from simtool.bench.quality_measure import RECIPES
from simtool.bench.quality_quoted import QUOTED
from simtool.bench.quality_summary import Line, Target, spread

PICTURE = "quality"
_BUDGETS = {UNIFORM: "uniform", GLOBAL: "one threshold", OUR_BUDGETS: "our layer budgets", "": "own"}
Draw = Callable[[Sequence[tuple[str, ...]]], str]


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent: 87.42 ± 0.13."""
    deviation = spread(values)
    mean = f"{100 * sum(values) / len(values):.2f}"
    return mean if deviation is None else f"{mean} ± {100 * deviation:.2f}"


def accuracy_rows(
    found: Sequence[Line], samples: int, dense: Sequence[float], tuned: bool
) -> list[tuple[str, ...]]:
    """Test accuracy by method and sparsity, with the seconds of a model; peers ``tuned``, or with the papers' own settings."""
    here = [line for line in found if line.samples == samples]
    sparsities = sorted({line.sparsity for line in here})
    rows = [("method", "non-zeros by layer", *(f"{100 * s:g} %" for s in sparsities), "s a model")]
    rows.append(("dense", "-", *(percent(dense) for _ in sparsities), "-"))
    tunable = {line.method for line in here if not line.tuned}
    for key in dict.fromkeys((line.method, line.budget) for line in here):
        mine = [
            line
            for line in here
            if (line.method, line.budget) == key and line.tuned == (tuned or key[0] not in tunable)
        ]
        by_sparsity = {line.sparsity: line for line in mine}
        rows.append(
            (
                mine[0].label,
                _BUDGETS[key[1]],
                *(percent(by_sparsity[s].values) for s in sparsities),
                table.number(sum(line.seconds for line in mine) / len(mine)),
            )
        )
    return rows


def target_rows(found: Sequence[Target]) -> list[tuple[str, ...]]:
    """The targets that were measured."""

    def amount(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows: list[tuple[str, ...]] = [("accuracy in %", "at least", "aim", "reached", "met")]
    for target in found:
        if target.reached is not None:
            met = {True: "yes", False: "no", None: "-"}[target.met]
            rows.append((target.name, amount(target.goal), amount(target.aim), amount(target.reached), met))
    return rows


def notes(found: Sequence[Target]) -> list[str]:
    """What is behind a target, and why others were not measured, each reason once."""
    told = [f"{target.name}: {target.note}" for target in found if target.reached is not None and target.note]
    reasons = dict.fromkeys(target.note for target in found if target.reached is None)
    for reason in reasons:
        names = [target.name for target in found if target.reached is None and target.note == reason]
        told.append(f"{len(names)} more targets are not measured ({reason}): {'; '.join(names)}")
    return told


def quoted_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("quoted from", "data", "method", "setting", "sparsity %", "points lost")]
    rows += [
        (one.source, one.data, one.method, one.setting or "-", f"{one.sparsity:.1f}", f"{one.points:.1f}")
        for one in QUOTED
    ]
    return rows


_ABOUT = (
    "Test accuracy in %, mean ± standard deviation over the seeds (a network and a draw of samples each). Everybody has the same samples "
    "without labels, no retraining, and the same number of non-zeros, biases counted, to one. Peers work layer by layer on what their own "
    "pruned layers make. Their settings are chosen on the last fifth of the samples by agreement with the dense network: the damping, the "
    "block or the penalty, whether the target is the layer's own output or the dense network's, and whether the bias follows; the second "
    "table has what their papers do. s a model: CPU seconds of one thread, the choice of settings included."
)
_QUOTED = "Quoted on other data and other networks, as the papers print it; not measured here, and not comparable with the tables above."


def tables(
    found: Sequence[Line],
    dense: Mapping[int, Sequence[float]],
    goals: Sequence[Target],
    place: str,
    origin: str,
    markdown: bool,
) -> str:
    """The report for a terminal, or as Markdown."""
    draw: Draw = table.as_markdown if markdown else table.aligned
    head = (lambda text: f"## {text}") if markdown else (lambda text: f"{text}:")
    parts = [f"# Sparse models side by side\n\n({place}.)" if markdown else "", origin]
    for samples, accuracies in dense.items():
        parts += [head(f"m = {samples} samples"), draw(accuracy_rows(found, samples, accuracies, True))]
        parts += [
            head(f"m = {samples} samples, peers with the settings of their papers"),
            draw(accuracy_rows(found, samples, accuracies, False)),
        ]
    parts += [
        _ABOUT,
        head("Targets"),
        draw(target_rows(goals)),
        "\n".join(f"- {note}" for note in notes(goals)),
    ]
    parts += [head("Quoted on other data"), draw(quoted_rows()), _QUOTED]
    parts.append(f"![accuracy against sparsity]({PICTURE}.png)" if markdown else place)
    return "\n\n".join(part for part in parts if part) + ("\n" if markdown else "")


# --- picture ----------------------------------------------------------------------------------------------------------

_ORDER = (*(recipe.name for recipe in RECIPES), "alps", "obc", "sparsegpt", "wanda", "magnitude")


_NEAR = 16.0  # percent points below the dense network that the middle panel shows


def draw_picture(found: Sequence[Line], dense: Mapping[int, Sequence[float]]) -> dict[str, bytes]:
    """Accuracy against sparsity with bands of one standard deviation: with our layer budgets, the same near the dense network, and
    as the peers share budgets out. A row of panels for every number of samples; PNG and SVG."""
    drawn, panels = figure(12.5, 3.9 * len(dense), 3, len(dense))
    ticks = [f"{100 * s:g} %" for s in sorted({line.sparsity for line in found})]
    shown: dict[tuple[int, str], Any] = {}  # by place in the legend, and name
    for i, (samples, accuracies) in enumerate(dense.items()):
        mean = 100 * sum(accuracies) / len(accuracies)
        here = [line for line in found if line.samples == samples and line.tuned]
        for j, (title, low, high) in enumerate(
            (
                ("peers with our layer budgets", 0.0, 100.0),
                ("the same, enlarged", mean - _NEAR, mean + 1.0),
                ("peers with uniform budgets, or one threshold", 0.0, 100.0),
            )
        ):
            axes = panels[3 * i + j]
            shown[len(_ORDER), "dense network"] = axes.axhline(
                mean, color="#1f2733", linewidth=0.9, linestyle=":"
            )
            for method, budget in _keys(here, own=j == 2):
                mine = [line for line in here if (line.method, line.budget) == (method, budget)]
                label = mine[0].label + (", one threshold" if budget == GLOBAL else "")
                place = _ORDER.index(method)
                shown[place, label] = _curve(axes, mine, place, budget)
            axes.set_title(f"m = {samples}: {title}", fontsize=9, color="#1f2733")
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.15, len(ticks) - 0.85)
            axes.set_ylim(low, high)
            axes.set_xlabel("sparsity", fontsize=8)
            axes.set_ylabel("" if j else "test accuracy, %", fontsize=8)
    places = sorted(shown)
    drawn.legend(
        [shown[place] for place in places],
        [name for _, name in places],
        loc="outside lower center",
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    return encode(drawn)


def _keys(here: Sequence[Line], own: bool) -> list[tuple[str, str]]:
    """Methods and budgets of a panel, the last of _ORDER first so that ours is drawn over the others."""
    keys = dict.fromkeys((line.method, line.budget) for line in here)
    wanted = [key for key in keys if not key[1] or (key[1] != OUR_BUDGETS) == own]
    return sorted(wanted, key=lambda key: (-_ORDER.index(key[0]), key[1]))


def _curve(axes: Any, mine: Sequence[Line], colour: int, budget: str) -> Any:
    mine = sorted(mine, key=lambda line: line.sparsity)
    at = range(len(mine))
    mean = [100 * line.mean for line in mine]
    wide = [100 * (line.spread or 0.0) for line in mine]
    low, high = ([a + sign * b for a, b in zip(mean, wide, strict=True)] for sign in (-1, 1))
    paint = _COLOURS[colour % len(_COLOURS)]
    axes.fill_between(at, low, high, color=paint, alpha=0.18, linewidth=0)
    style, width = ("--" if budget == GLOBAL else "-"), (2.0 if not budget else 1.2)
    (line,) = axes.plot(at, mean, style, color=paint, marker="o", markersize=3.5, linewidth=width)
    return line
