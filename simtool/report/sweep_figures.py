"""The pictures of a sweep, in the axes of the papers' figures: what there is to draw follows from what was swept.

drop-sparsity     accuracy drop against sparsity (SIM, Figure 2)
samples-sparsity  sparsity, and accuracy, against the number of samples (SIM, Figure 3; thesis, Figures 3.6 and 3.7)
robust-sparsity   robust accuracy against sparsity (SIM, Figure 4)
dial-<option>     accuracy and sparsity against the swept option (thesis, Table 3.1)

The thesis's Figures 3.2 to 3.5 are about iterations of its bisection, not about models: simtool bench rows draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simtool.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, new_figure, plain_axes
from simtool.stages.sweep import AXES

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#b08d2f", "#4aa3a2", "#8a94a3", "#1f2733")
_LOG_FROM = 10.0  # a dial whose values span more is drawn on a logarithmic axis
Point = dict[str, Any]


@dataclass(frozen=True)
class Quality:
    """What a model is judged by where it was measured: ``of`` a point, None where it is not known; ``drop`` where a baseline is."""

    title: str
    of: Callable[[Point], float | None]
    drop_title: str
    drop: Callable[[Point], float | None]


def _percent(key: str) -> Callable[[Point], float | None]:
    return lambda point: None if point[key] is None else 100.0 * point[key]


def quality(points: Sequence[Point]) -> Quality | None:
    """The best known measure: accuracy, else the share of samples with the network's class, else an error."""
    if any(point["accuracy"] is not None for point in points):
        return Quality(
            "accuracy (%)", _percent("accuracy"), "accuracy drop (points)", _percent("accuracy_drop")
        )
    if any(point["agreement"] is not None for point in points):
        agreement = _percent("agreement")
        return Quality(
            "same class as the network (%)",
            agreement,
            "other class than the network (%)",
            lambda point: None if point["agreement"] is None else 100.0 * (1.0 - point["agreement"]),
        )
    for key, title in (("mse", "mean squared error"), ("output_error", "relative error of the outputs")):
        if any(point[key] is not None for point in points):
            return Quality(title, lambda point, key=key: point[key], title, lambda point, key=key: point[key])  # type: ignore[misc]
    return None


def varied(points: Sequence[Point]) -> list[str]:
    """The axes on which these points differ, in the order of AXES."""
    return [axis for axis in AXES if len({point["typed"].get(axis) for point in points}) > 1]


def dial(points: Sequence[Point]) -> str | None:
    """The axis, other than samples, with most values: what trades size for accuracy."""
    counts = {
        axis: len({point["typed"][axis] for point in points if axis in point["typed"]}) for axis in AXES
    }
    best = max(
        (axis for axis in AXES if axis != "samples"), key=lambda axis: (counts[axis], AXES.index(axis))
    )
    return best if counts[best] > 1 else None


def series(points: Sequence[Point], along: str | None) -> dict[str, list[Point]]:
    """Points that differ in ``along`` alone, by what they share; sorted along it."""
    objectives = len({point["objective"] for point in points}) > 1
    found: dict[str, list[Point]] = {}
    for point in points:
        others = [point["objective"]] if objectives else []
        mine = [other for other in points if other["objective"] == point["objective"]]
        others += [
            f"{axis.replace('_', ' ')} {point['typed'][axis]}"
            for axis in varied(mine)
            if axis not in (along, None) and axis in point["typed"]
        ]
        found.setdefault(", ".join(others), []).append(point)
    for members in found.values():
        members.sort(key=lambda point: (point["values"].get(along, 0.0), point["point"]))
    return found


def draw(result: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Name -> (figure, caption) of all there is to draw; nothing of points without numbers."""
    points: list[Point] = [point for point in result["points"] if point["sparsity"] is not None]
    found: dict[str, tuple[Any, str]] = {}
    if len(points) < 2:
        return found
    judged = quality(points)
    on = _measured_on(points)
    if judged is not None and any(judged.drop(point) is not None for point in points):
        found["drop-sparsity"] = (
            _trade_off(points, judged.drop, judged.drop_title),
            f"{judged.drop_title[0].upper()}{judged.drop_title[1:]} against sparsity, as SIM's Figure 2. {on}",
        )
    if "samples" in varied(points):
        panels = [(_percent("sparsity"), "sparsity (%)")] + ([(judged.of, judged.title)] if judged else [])
        found["samples-sparsity"] = (
            _against("samples", points, panels),
            f"Against the number of samples: sparsity, as SIM's Figure 3{', and what the models are worth, as the thesis has it in Figures 3.6 and 3.7' if judged else ''}. {on}",
        )
    epsilons = list(dict.fromkeys(key for point in points for key in point["robust_accuracy"] or {}))
    if epsilons:
        found["robust-sparsity"] = (
            _robust(points, epsilons),
            f"Robust accuracy against sparsity, as SIM's Figure 4; dashed: the baseline under the same attack. {on}",
        )
    for axis in (axis for axis in varied(points) if axis != "samples"):
        mine = [point for point in points if axis in point["typed"]]
        panels = ([(judged.of, judged.title)] if judged else []) + [(_percent("sparsity"), "sparsity (%)")]
        words = axis.replace("_", " ")
        source = ", as the thesis's Table 3.1" if axis == "kappa" else ""
        found[f"dial-{axis.replace('_', '-')}"] = (
            _against(axis, mine, panels),
            f"What {words} does{source}. {on}",
        )
    return found


def _measured_on(points: Sequence[Point]) -> str:
    places = sorted({point["measured_on"] for point in points})
    if places == ["states"]:
        return "Measured on the states' own samples, which the models were made from: new ones are harder."
    return f"Measured on {', '.join(places)}."


def _panels(count: int) -> tuple[Any, list[Any]]:
    figure = new_figure(5.4 * count if count > 1 else 7.0, 3.9)
    axes = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for one in axes:
        one.grid(color="#e3e7ec", linewidth=0.8)
        one.set_axisbelow(True)
        plain_axes(one)
    return figure, axes


def _line(axes: Any, number: int, label: str, places: list[tuple[float | None, float | None]]) -> None:
    known = [(x, y) for x, y in places if x is not None and y is not None]
    if known:
        across, up = zip(*known, strict=True)
        colour = _COLOURS[number % len(_COLOURS)]
        style = ("-", "--", ":", "-.")[number // len(_COLOURS) % 4]
        axes.plot(
            across, up, style, color=colour, marker="o", markersize=4, linewidth=1.6, label=label or None
        )


def _labels(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _legend(figure: Any, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.06), ncols=3, fontsize=8.5, frameon=False,
            labelcolor=INK,
        )  # fmt: skip


def _trade_off(points: Sequence[Point], of: Callable[[Point], float | None], title: str) -> Any:
    figure, (axes,) = _panels(1)
    for number, (label, members) in enumerate(_by_dial(points).items()):
        _line(axes, number, label, [(100.0 * point["sparsity"], of(point)) for point in members])
    axes.axhline(0.0, color=FAINT, linewidth=1.0)
    _labels(axes, "sparsity (%)", title)
    figure.subplots_adjust(bottom=0.18)
    _legend(figure, axes)
    return figure


def _by_dial(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Series along the dial of each objective, which may differ: alpha of one, beta of another."""
    found: dict[str, list[Point]] = {}
    for objective in dict.fromkeys(point["objective"] for point in points):
        mine = [point for point in points if point["objective"] == objective]
        for label, members in series(mine, dial(mine)).items():
            several = len({point["objective"] for point in points}) > 1
            found[", ".join(filter(None, [objective if several else "", label]))] = members
    return found


def _against(
    axis: str, points: Sequence[Point], panels: Sequence[tuple[Callable[[Point], float | None], str]]
) -> Any:
    figure, drawn = _panels(len(panels))
    values = [point["values"][axis] for point in points if axis in point["values"]]
    logarithmic = min(values) > 0 and max(values) > _LOG_FROM * min(values)
    for axes, (of, title) in zip(drawn, panels, strict=True):
        for number, (label, members) in enumerate(series(points, axis).items()):
            _line(axes, number, label, [(point["values"].get(axis), of(point)) for point in members])
        if logarithmic:
            axes.set_xscale("log")
        _labels(axes, _axis_title(axis, points), title)
    figure.subplots_adjust(wspace=0.28, bottom=0.18)
    _legend(figure, drawn[0])
    return figure


def _axis_title(axis: str, points: Sequence[Point]) -> str:
    if axis == "kappa" and all(point["options"].get("kappa_relative") for point in points):
        return "kappa, in l1 norms of each row's least squares"
    return axis.replace("_", " ")


def _robust(points: Sequence[Point], epsilons: Sequence[str]) -> Any:
    figure, drawn = _panels(len(epsilons))
    for axes, epsilon in zip(drawn, epsilons, strict=True):
        for number, (label, members) in enumerate(_by_dial(points).items()):
            places = [
                (100.0 * point["sparsity"], _share((point["robust_accuracy"] or {}).get(epsilon)))
                for point in members
            ]
            _line(axes, number, label, places)
        base = next(
            (
                value
                for point in points
                if (value := (point["baseline_robust_accuracy"] or {}).get(epsilon)) is not None
            ),
            None,
        )
        if base is not None:
            axes.axhline(100.0 * base, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="baseline")
        axes.set_title(f"epsilon {epsilon}", fontsize=10, color=INK)
        _labels(axes, "sparsity (%)", "robust accuracy (%)")
    figure.subplots_adjust(wspace=0.28, bottom=0.18)
    _legend(figure, drawn[0])
    return figure


def _share(value: float | None) -> float | None:
    return None if value is None else 100.0 * value
