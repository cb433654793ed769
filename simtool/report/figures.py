"""The report's figures, drawn with matplotlib's Agg canvas (no display, no global state, no fonts to install)."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from simtool.model import KINDS, CertificateTable
from simtool.report.pattern import Band, bands, layout, raster, whole
from simtool.stages.evaluate import Model

INK = "#1f2733"
FAINT = "#8a94a3"
BLUE = "#2f6db5"
ORANGE = "#d9822b"
RED = "#c0392b"
GREEN = "#3b8f5a"
PURPLE = "#7a5aa6"
_KIND_COLOURS = (BLUE, GREEN, ORANGE, PURPLE)
_DPI = 150
_SMALLEST_GAP = 1e-18


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.title.set_color(INK)


def encode(figure: Any) -> dict[str, bytes]:
    """The figure as ``png`` and ``svg``; the bytes depend on the drawing alone."""
    from matplotlib import rc_context

    result: dict[str, bytes] = {}
    for kind in ("png", "svg"):
        stream = io.BytesIO()
        with rc_context({"svg.hashsalt": "simtool", "svg.fonttype": "path"}):
            metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            figure.savefig(stream, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
        result[kind] = stream.getvalue()
    return result


def draw_pattern(model: Model) -> Any:
    """The non-zeros of M by blocks; extents of blocks are on a square-root scale."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = bands(model)
    row_edges = layout([band.size for band in rows], 720, 26)
    column_edges = layout([band.size for band in columns], 1300, 18)
    density = raster(whole(model), rows, columns, row_edges, column_edges)
    colours = LinearSegmentedColormap.from_list("density", ["#b9d3ee", BLUE, "#0f2f5c"])
    # pairs of blocks without any entry are shaded, so that structure and chosen zeros look different
    picture = np.ones((*density.shape, 3))
    for top, bottom in itertools.pairwise(row_edges):
        for left, right in itertools.pairwise(column_edges):
            if not density[top:bottom, left:right].any():
                picture[top:bottom, left:right] = (0.945, 0.95, 0.96)
    used = density > 0
    picture[used] = colours(np.sqrt(density[used]))[:, :3]

    height, width = density.shape
    figure = new_figure(10.0, 1.3 + 8.2 * height / width)
    axes = figure.add_subplot()
    axes.imshow(picture, aspect="equal", interpolation="nearest", extent=(0, width, height, 0))
    for edge in row_edges[1:-1]:
        axes.axhline(edge, color=FAINT, linewidth=0.6)
    for edge in column_edges[1:-1]:
        axes.axvline(edge, color=FAINT, linewidth=0.6)
    # the line between states and inputs, and between states and outputs, is what makes M = [A B; C D]
    if model.n:
        axes.axhline(row_edges[-2], color=INK, linewidth=1.3)
        axes.axvline(column_edges[len(model.blocks)], color=INK, linewidth=1.3)
    _band_ticks(axes.yaxis, rows, row_edges)
    _band_ticks(axes.xaxis, columns, column_edges)
    axes.xaxis.tick_top()
    narrow = any(
        (high - low) < 11 * (len(_label(band)) + 1)
        for band, low, high in zip(columns, column_edges[:-1], column_edges[1:], strict=True)
    )
    axes.tick_params(axis="x", rotation=90 if narrow else 0, length=0)
    axes.tick_params(axis="both", colors=INK, labelsize=8 if len(rows) <= 30 else 5, length=0)
    axes.set_ylabel("rows of M: what is computed", color=INK, fontsize=9)
    axes.set_xlabel("columns of M: what it is computed from", color=INK, fontsize=9)
    for spine in axes.spines.values():
        spine.set_color(INK)
    return figure


def _label(band: Band) -> str:
    return band.name if band.size == 1 else f"{band.name} ({band.size})"


def _band_ticks(axis: Any, named: tuple[Band, ...], edges: np.ndarray) -> None:
    axis.set_ticks((edges[:-1] + edges[1:]) / 2, [_shorten(_label(band)) for band in named])


def _shorten(text: str, limit: int = 40) -> str:
    text = text.replace("$", r"\$")  # not the beginning of a formula
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-limit // 2 :]}"


def draw_certificates(table: CertificateTable, tolerance: float | None) -> Any:
    """Histogram of log10 of the relative gap by kind of certificate; exact zeros have a bin of their own, gaps below
    1e-18 are drawn there."""
    figure = new_figure(7.6, 3.2)
    axes = figure.add_subplot()
    gap = np.where(np.isfinite(table.relative_gap), np.maximum(table.relative_gap, 0.0), np.inf)
    gap = np.where(gap > 0, np.maximum(gap, _SMALLEST_GAP), gap)  # keeps the axis readable
    positive = gap[(gap > 0) & np.isfinite(gap)]
    reference = [tolerance] if tolerance is not None else []
    exponents = (
        np.log10(np.concatenate([positive, reference])) if positive.size or reference else np.array([-6.0])
    )
    low, high = float(np.floor(exponents.min())) - 0.5, float(np.ceil(exponents.max())) + 0.5
    edges = np.arange(low, high + 0.26, 0.25)
    zero_at = low - 1.0
    bottom = np.zeros(len(edges) - 1)
    zero_bottom = 0
    for kind, colour in enumerate(_KIND_COLOURS):
        mine = table.kind == kind
        if not mine.any():
            continue
        counted, _ = np.histogram(np.log10(gap[mine & (gap > 0) & np.isfinite(gap)]), bins=edges)
        axes.bar(
            edges[:-1], counted, 0.25, bottom=bottom, align="edge", color=colour, edgecolor="white", linewidth=0.4,
            label=f"{KINDS[kind]} ({int(mine.sum())} rows)",
        )  # fmt: skip
        bottom += counted
        zeros = int((gap[mine] == 0).sum())
        axes.bar(zero_at, zeros, 0.5, bottom=zero_bottom, color=colour, edgecolor="white", linewidth=0.4)
        zero_bottom += zeros
    if tolerance is not None:
        axes.axvline(np.log10(tolerance), color=RED, linestyle="--", linewidth=1.3)
        axes.annotate(
            f" tolerance {tolerance:.0e}", (np.log10(tolerance), 0.97), xycoords=("data", "axes fraction"),
            color=RED, fontsize=9, va="top",
        )  # fmt: skip
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    ticks = ticks[:: max(1, len(ticks) // 8)]
    axes.set_xticks([zero_at, *ticks], ["0", *[f"$10^{{{int(tick)}}}$" for tick in ticks]])
    axes.set_xlim(
        zero_at - 0.6, high + (1.6 if tolerance is not None and np.log10(tolerance) > high - 2 else 0.2)
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("relative duality gap of a row", color=INK, fontsize=9)
    axes.set_ylabel("rows", color=INK, fontsize=9)
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(0.0, 1.2), ncols=2
    )
    plain_axes(axes)
    return figure


def draw_attack(
    series: Mapping[str, Mapping[str, float | None]], what: str, label: str, share: bool = True
) -> Any:
    """``what`` against the size of the perturbation, by series (model, baseline) and epsilon; a ``share`` is in [0, 1].

    The baseline is dashed and drawn last, so that equal curves both stay visible.
    """
    figure = new_figure(7.6, 3.2)
    axes = figure.add_subplot()
    styles: dict[str, dict[str, Any]] = {
        "model": {"color": BLUE, "linewidth": 2.6, "marker": "o", "markersize": 8},
        "baseline": {
            "color": ORANGE,
            "linewidth": 1.6,
            "linestyle": (0, (4, 3)),
            "marker": "o",
            "markersize": 4,
        },
    }
    for name, style in styles.items():
        points = ((float(key), value) for key, value in series.get(name, {}).items())
        known = sorted((size, value) for size, value in points if value is not None)
        if known:
            axes.plot(*zip(*known, strict=True), label=name, **style)
    axes.set_xlabel(f"epsilon ({label})", color=INK, fontsize=9)
    axes.set_ylabel(what, color=INK, fontsize=9)
    if share:
        axes.set_ylim(-0.02, 1.04)
    else:
        axes.set_ylim(bottom=0.0)
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    plain_axes(axes)
    return figure
