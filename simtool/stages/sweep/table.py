"""sweep.csv: a line a point, values as typed, numbers as they are, times last."""

from __future__ import annotations

import csv
import io
from typing import Any

_NUMBERS = (
    *("rows", "certified", "max_relative_gap", "nnz", "baseline_nnz", "sparsity"),
    *("norm_a_inf", "norm_a_inf_raw", "well_posed", "well_posed_by"),
    *("accuracy", "baseline_accuracy", "accuracy_drop", "agreement", "f1", "mse", "baseline_mse", "output_error"),
)  # fmt: skip
_TIMES = ("seconds", "solve_seconds")


def columns_of(result: dict[str, Any]) -> list[str]:
    """The head of the table: what was asked, what came out, times last."""
    epsilons = list(
        dict.fromkeys(key for point in result["points"] for key in point["robust_accuracy"] or {})
    )
    robust = [f"{prefix}robust_accuracy_{key}" for prefix in ("", "baseline_") for key in epsilons]
    return [
        "point",
        "objective",
        *result["axes"],
        *_NUMBERS,
        *robust,
        "recipe",
        "measured_on",
        "error",
        *_TIMES,
    ]


def csv_of(result: dict[str, Any]) -> str:
    """The table as text."""
    columns = columns_of(result)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for point in result["points"]:
        writer.writerow([_cell(point, result["axes"], column) for column in columns])
    return stream.getvalue()


def _cell(point: dict[str, Any], axes: list[str], column: str) -> str:
    if column in axes:
        return str(point["typed"].get(column, ""))
    family, _, epsilon = column.rpartition("_")
    if family.endswith("robust_accuracy"):
        value = (point[family] or {}).get(epsilon)
    else:
        value = point[column]
    if value is None:
        return ""
    return (
        repr(value)
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
