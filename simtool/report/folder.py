"""The REPORT folder: report.json, report.html and the figures as PNG and SVG."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from simtool.errors import OutputError
from simtool.hdf5 import output_error
from simtool.model import KINDS, CertificateTable
from simtool.report import figures, text
from simtool.report.html import render
from simtool.report.pattern import BlockCounts, count_blocks
from simtool.stages.evaluate import Model
from simtool.strict_json import finite
from simtool.temporary import beside

_MARK = "report.json"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise OutputError unless a report can be written to ``folder``.

    With ``overwrite`` only an earlier report (or an empty folder) may be replaced, never a folder of other things.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a report is a folder. Choose another name.")
    if folder.is_dir():
        if any(folder.iterdir()):
            if not overwrite:
                raise OutputError(f"{folder} exists already. Pass --overwrite to replace the report in it.")
            if not (folder / _MARK).is_file():
                raise OutputError(
                    f"{folder} is not empty and holds no {_MARK}, so it is not a report. Choose another folder."
                )
        place = folder
    else:
        place = folder.absolute().parent
        if not place.is_dir():
            raise OutputError(f"the folder {place} does not exist. Create it, or choose another output path.")
    if not os.access(place, os.W_OK):
        raise OutputError(f"the folder {place} is not writable. Choose another output path.")


def write_report(folder: Path, model: Model, report: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the report of ``model``; ``report`` holds the numbers of evaluate. Files are written beside the folder
    first and moved in when all are there, report.json last. Raises OutputError."""
    check_folder(folder, overwrite)
    report = finite(report)
    counts = count_blocks(model)
    drawn = _draw(model, report)
    content: dict[str, bytes] = {
        f"{name}.{kind}": data for name, kinds in drawn.items() for kind, data in kinds.items()
    }
    page = render(
        report, counts, {name: kinds["png"] for name, kinds in drawn.items()}, _how_made(model, report)
    )
    content["report.html"] = text.readable(page).encode()
    full = report | {
        "nnz_by_block": _counts_json(counts),
        "certificates": _certificates_json(model.proofs),
        "fingerprints": model.fingerprints,
        "structure": model.structure,
        "made_with": finite(model.header_extra),
        "figures": sorted(name for name in content if name.endswith((".png", ".svg"))),
    }
    # the round trip decodes text that holds surrogates, and leaves a file of ASCII
    decoded = json.loads(text.readable(json.dumps(full, ensure_ascii=False, allow_nan=False)))
    content[_MARK] = (json.dumps(decoded, indent=1) + "\n").encode()
    _write(folder, content)


def _write(folder: Path, content: dict[str, bytes]) -> None:
    temporary = beside(folder.absolute())
    try:
        temporary.mkdir()
        for name, data in content.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        folder.mkdir(exist_ok=True)
        # a picture of an earlier report that this one does not have would contradict the page
        for name in ("pattern", "certificates", "attack"):
            for kind in ("png", "svg"):
                if f"{name}.{kind}" not in content:
                    (folder / f"{name}.{kind}").unlink(missing_ok=True)
        for name in content:
            os.replace(temporary / name, folder / name)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tolerance(model: Model) -> float | None:
    options = model.header_extra.get("options")
    value = options.get("tol") if isinstance(options, dict) else None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _draw(model: Model, report: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    drawn = {"pattern": figures.encode(figures.draw_pattern(model))}
    if model.proofs is not None and len(model.proofs):
        drawn["certificates"] = figures.encode(figures.draw_certificates(model.proofs, _tolerance(model)))
    attack = report["attack"]
    what, series = text.attack_values(report) if attack is not None else ("", {})
    if attack is not None and any(value is not None for value in series["model"].values()):
        label = (
            attack["method"]
            if attack["gradient"] is None
            else f"{attack['method']}, {attack['gradient']}'s gradient"
        )
        drawn["attack"] = figures.encode(figures.draw_attack(series, what, label, share=what != text.ERROR))
    return drawn


def _counts_json(counts: BlockCounts) -> list[dict[str, Any]]:
    density = counts.density()
    return [
        {
            "rows": row.name,
            "columns": column.name,
            "nnz": int(counts.counts[i, j]),
            "entries": row.size * column.size,
            "density": float(density[i, j]),
        }
        for i, row in enumerate(counts.rows)
        for j, column in enumerate(counts.columns)
    ]


def _certificates_json(table: CertificateTable | None) -> dict[str, Any] | None:
    if table is None:
        return None
    return {
        "rows": len(table),
        "certified": int(table.certified.sum()),
        "kinds": {name: int((table.kind == kind).sum()) for kind, name in enumerate(KINDS)},
        "max_relative_gap": finite(table.max_relative_gap),
        "uncertified_rows": np.flatnonzero(~table.certified).tolist(),
    }


def _how_made(model: Model, report: dict[str, Any]) -> list[tuple[str, str]]:
    data = report["data"]
    rows = [
        ("structure", model.structure),
        ("blocks", ", ".join(f"{b.name} {b.activation.spec}" for b in model.blocks)),
    ]
    rows.append(("output map", model.output_map or "none"))
    for key, value in model.header_extra.items():
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", _short(item)) for name, item in value.items() if item is not None]
        elif value is not None:
            rows.append((key.replace("_", " "), _short(value)))
    rows.append(("evaluated on", f"{data['source']}" + (f", split {data['split']}" if data["split"] else "")))
    rows.append(("sha256 of these data", data["sha256"]))
    rows += [(f"sha256 of {name}", value) for name, value in model.fingerprints.items()]
    return rows


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(finite(value))
