"""Numbers as people read them, shared by the page and the terminal."""

from __future__ import annotations

from typing import Any

MISSING = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """.8712 as ``87.12 %``."""
    if value is None:
        return MISSING
    return f"{round(100 * value, digits) + 0.0:.{digits}f} %"  # the sum turns -0.0 into 0.0


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits."""
    return MISSING if value is None else f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """53018 as ``53 018``."""
    return MISSING if value is None else f"{value:,}".replace(",", " ")


def size(value: int | None) -> str:
    """Bytes in the largest fitting unit."""
    if value is None:
        return MISSING
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} B" if units[0] == "B" else f"{amount:.3g} {units[0]}"


def sparsity(report: dict[str, Any]) -> str:
    """The percentage with its denominator, always together."""
    if report.get("sparsity") is None:
        return f"{count(report['nnz'])} non-zeros; no baseline is known"
    return f"{percent(report['sparsity'])} ({count(report['nnz'])} of {count(report['baseline_nnz'])})"


def points(drop: float) -> str:
    """A drop of accuracy as the change in points, with its sign unless it rounds to 0."""
    value = round(-100 * drop, 2)
    return f"{value:+.2f}" if value else "0.00"


def sentence(value: str) -> str:
    """``value`` with a capital first letter."""
    return value[:1].upper() + value[1:]


def readable(value: str) -> str:
    """``value`` without lone surrogates, as a path has where the locale cannot read its bytes: those are taken as UTF-8,
    and what is none becomes a replacement character."""
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = value.encode("utf-8", "replace")
    return raw.decode("utf-8", "replace")


def summary(report: dict[str, Any], attack: bool = True) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of this report; the baseline has a column where one was given."""
    given = report["baseline"]
    rows: list[list[str]] = []
    if report["task"] == "classification":
        rows.append(["accuracy", percent(report["accuracy"]), percent(report["baseline_accuracy"])])
        rows.append(["F1 (macro)", number(report["f1"]), number(report["baseline_f1"])])
        if report["agreement"] is not None:
            rows.append(["same class as the baseline", percent(report["agreement"]), ""])
    else:
        rows.append(["mean squared error", number(report["mse"]), number(report["baseline_mse"])])
    counts = given or {"nnz": None, "bytes": None}
    rows.append(["non-zero parameters", count(report["nnz"]), count(counts["nnz"])])
    name = "bytes (model.h5; 4 a parameter)" if given else "bytes (model.h5)"
    rows.append([name, size(report["model_bytes"]), size(counts["bytes"])])
    for key, title in (
        ("state_error", "state error (relative)"),
        ("output_error", "output error (relative)"),
    ):
        if report[key] is not None:
            rows.append([title, number(report[key], 3), ""])
    if attack and report["attack"] is not None:
        what, _, attacked = attack_table(report)
        suffix = ": class kept" if what == KEPT else ""
        rows += [
            [f"{report['attack']['method']}, epsilon {row[0]}{suffix}", *row[1:]] for row in attacked[1:]
        ]
    head = ["", "model", "baseline"]
    return (head, rows) if given else (head[:2], [row[:2] for row in rows])


ACCURACY, ERROR, KEPT = "accuracy", "mean squared error", "share of classes kept"


def attack_values(report: dict[str, Any]) -> tuple[str, dict[str, dict[str, float | None]]]:
    """(what was measured under attack, its values by series and epsilon; epsilon 0 is the clean data).

    Series are ``model`` and, where one was given, ``baseline``.
    """
    epsilons = report["attack"]["epsilons"]
    if report["task"] == "classification" and report["accuracy"] is None:
        kept = report["robust_agreement"]
        return KEPT, {"model": {"0": 1.0} | {key: kept[key] for key in epsilons}}
    what, short = (ACCURACY, "accuracy") if report["task"] == "classification" else (ERROR, "mse")
    series = {}
    for name, prefix in (("model", ""), ("baseline", "baseline_")):
        robust = report[f"{prefix}robust_{short}"]
        if not prefix or report["baseline"] is not None:
            series[name] = {"0": report[f"{prefix}{short}"]} | {key: robust[key] for key in epsilons}
    return what, series


def attack_table(report: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """(what was measured, head, rows) of the attack, the clean data first; cells as in :func:`summary`."""
    what, series = attack_values(report)
    show = number if what == ERROR else percent
    names = ["model", "baseline"]
    rows = [
        [key, *(show(series[name][key]) if name in series else "" for name in names)]
        for key in series["model"]
    ]
    return what, ["epsilon", *names], rows
