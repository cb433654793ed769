"""Numbers as people read them, shared by the page and the terminal."""

from __future__ import annotations

from typing import Any

MISSING = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """.8712 as ``87.12 %``."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


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


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, model, baseline) for the quantities that apply to this report."""
    rows: list[tuple[str, str, str]] = []
    if report["task"] == "classification":
        rows.append(("accuracy", percent(report["accuracy"]), percent(report["baseline_accuracy"])))
        rows.append(("F1 (macro)", number(report["f1"]), number(report["baseline_f1"])))
        if report["agreement"] is not None:
            rows.append(("same class as the baseline", percent(report["agreement"]), ""))
    else:
        rows.append(("mean squared error", number(report["mse"]), number(report["baseline_mse"])))
    rows.append(("non-zero parameters", count(report["nnz"]), count(report["baseline_nnz"] or None)))
    rows.append(
        (
            "bytes (model.h5; 4 a parameter)",
            size(report["model_bytes"]),
            size(report["baseline_bytes"] or None),
        )
    )
    for key, title in (
        ("state_error", "state error (relative)"),
        ("output_error", "output error (relative)"),
    ):
        if report[key] is not None:
            rows.append((title, number(report[key], 3), ""))
    if report["attack"] is not None:
        for key in report["attack"]["epsilons"]:
            name = f"{report['attack']['method']}, epsilon {key}"
            if report["task"] == "classification" and report["accuracy"] is None:
                rows.append((f"{name}: class kept", percent(report["robust_agreement"][key]), ""))
            elif report["task"] == "classification":
                values = report["robust_accuracy"][key], report["baseline_robust_accuracy"][key]
                rows.append((name, percent(values[0]), percent(values[1])))
            else:
                errors = report["robust_mse"][key], report["baseline_robust_mse"][key]
                rows.append((name, number(errors[0]), number(errors[1])))
    return rows
