"""The verb ``sweep``: solve and measure the points, then draw what was found beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.report import sweep_figures, text
from simtool.report.figures import encode
from simtool.report.html import STYLE, image, table
from simtool.stages.sweep import PRESETS, Grid, Measure, run_sweep
from simtool.stages.sweep.folder import SweepFolder
from simtool.stages.sweep.grid import option_of

if TYPE_CHECKING:
    from simtool.engines import EngineOptions

_PAGE = "sweep.html"


def sweep(
    states: str | Path,
    output: str | Path,
    grids: Sequence[Grid],
    *,
    measured: Measure | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    engine: str | EngineOptions = "process",
    workers: int | None = None,
    network: NetworkSpec | None = None,
    allow_mixed: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Solve and measure every point of ``grids``, and write sweep.json, sweep.csv, sweep.html and the pictures into ``output``.

    The parameters, what is returned and what is raised are those of :func:`simtool.stages.sweep.run_sweep`; the result names the
    ``figures`` and the ``report`` too.
    """
    result = run_sweep(
        states,
        output,
        grids,
        measured=measured,
        recipe=recipe,
        preset=preset,
        engine=engine,
        workers=workers,
        network=network,
        allow_mixed=allow_mixed,
        progress=progress,
    )
    folder = SweepFolder(Path(output))
    drawn = {name: (encode(figure), words) for name, (figure, words) in sweep_figures.draw(result).items()}
    for old in folder.path.glob("*.png"):  # a picture of other numbers would contradict the page
        if old.stem not in drawn and old.stem.startswith(("drop-", "samples-", "robust-", "dial-")):
            old.unlink(missing_ok=True)
            old.with_suffix(".svg").unlink(missing_ok=True)
    for name, (kinds, _) in drawn.items():
        for kind, data in kinds.items():
            folder.write(f"{name}.{kind}", data)
    page = render(result, {name: (kinds["png"], words) for name, (kinds, words) in drawn.items()})
    report = folder.write(_PAGE, text.readable(page).encode())
    return {**result, "figures": sorted(drawn), "report": str(report)}


def render(result: dict[str, Any], images: dict[str, tuple[bytes, str]]) -> str:
    """The page: what was asked, the pictures, a line a point. ``images`` name -> (PNG, caption)."""
    preset = PRESETS.get(result["preset"] or "")
    title = preset.title if preset is not None else f"Sweep of {', '.join(_words(result['axes']))}"
    samples = text.count(result["states"]["samples"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{len(result["points"])} runs on {escape(Path(result["states"]["file"]).name)}, {samples} samples</p>',
    ]
    if preset is not None:
        parts.append(f"<p>{escape(preset.source)}</p>")
    for name, (data, words) in images.items():
        parts += [f"<p>{escape(words)}</p>", image(data, name, narrow=True)]
    head, rows = lines(result)
    parts += [
        "<h2>Every point</h2>",
        table(head, rows),
        f'<p class="soft">Sparsity = 1 - non-zeros / {text.count(result["points"][0]["baseline_nnz"])} non-zero parameters of the network, '
        "biases counted. Each point is a run of its own in the folder points.</p>",
        "<footer>Written by simtool. All numbers are in sweep.json and sweep.csv beside this page.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def lines(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that the page and the terminal show: columns without any number are left out."""
    points = result["points"]
    several = len({point["objective"] for point in points}) > 1
    columns: list[tuple[str, list[str]]] = [("point", [point["point"] for point in points])]
    if several:
        columns.append(("objective", [point["objective"] for point in points]))
    columns += [
        (option_of(axis).removeprefix("--"), [point["typed"].get(axis, "") for point in points])
        for axis in result["axes"]
    ]
    columns.append(("recipe", [point["recipe"] or text.MISSING for point in points]))
    columns += [
        ("non-zeros", [text.count(point["nnz"]) for point in points]),
        ("sparsity", [text.percent(point["sparsity"]) for point in points]),
        ("certified", [f"{point['certified']} of {point['rows']}" for point in points]),
    ]
    shown = {"accuracy": "accuracy", "accuracy_drop": "drop", "agreement": "agreement"}
    columns += [(name, [text.percent(point[key]) for point in points]) for key, name in shown.items()]
    columns += [
        (name, [text.number(point[key]) for point in points])
        for key, name in (("mse", "mean squared error"), ("output_error", "output error"))
    ]
    epsilons = list(dict.fromkeys(key for point in points for key in point["robust_accuracy"] or {}))
    columns += [
        (f"robust {key}", [text.percent((point["robust_accuracy"] or {}).get(key)) for point in points])
        for key in epsilons
    ]
    columns.append(("seconds", [f"{point['solve_seconds']:.2f}" for point in points]))
    kept = [(name, cells) for name, cells in columns if set(cells) != {text.MISSING}]
    return [name for name, _ in kept], [list(row) for row in zip(*(cells for _, cells in kept), strict=True)]


def _words(axes: Sequence[str]) -> list[str]:
    return [axis.replace("_", " ") for axis in axes]
