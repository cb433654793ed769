"""The pictures of a benchmark, drawn with matplotlib's Agg canvas (no display, no global state)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_COLOURS = ("#2f6db5", "#d9822b", "#3b8f5a", "#c0392b", "#7a5aa6", "#8a94a3", "#b08d2f", "#1f2733", "#4aa3a2")
_INK, _FAINT = "#1f2733", "#c4cad2"
_DPI = 150


def figure(width: float, height: float, columns: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    axes = [drawn.add_subplot(rows, columns, index + 1) for index in range(columns * rows)]
    for one in axes:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        one.tick_params(colors=_INK, labelsize=8)
        one.grid(color=_FAINT, linewidth=0.4)
    return drawn, axes


def lines(
    axes: Any,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log: str = "",
    dashed: Sequence[str] = (),
    colours: Mapping[str, int] | None = None,
) -> None:
    """One line with markers per entry of ``series``; ``log`` holds "x" and "y" for logarithmic axes."""
    for index, (name, (across, up)) in enumerate(series.items()):
        colour = _COLOURS[(index if colours is None else colours[name]) % len(_COLOURS)]
        style = "--" if name in dashed else "-"
        axes.plot(across, up, style, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=9, color=_INK)
    axes.set_xlabel(x, fontsize=8, color=_INK)
    axes.set_ylabel(y, fontsize=8, color=_INK)


def legend(drawn: Any, axes: Any, columns: int = 4) -> None:
    """One legend for the figure, taken from ``axes``, below everything."""
    handles, names = axes.get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def encode(drawn: Any) -> dict[str, bytes]:
    """``png`` and ``svg``."""
    from matplotlib import rc_context

    result = {}
    for kind in ("png", "svg"):
        stream = io.BytesIO()
        with rc_context({"svg.hashsalt": "simtool", "svg.fonttype": "path"}):
            metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            drawn.savefig(stream, format=kind, metadata=metadata)
        result[kind] = stream.getvalue()
    return result
