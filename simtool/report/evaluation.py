"""The verb ``evaluate``: measure a model, then write what was measured as a REPORT folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtool.model import ImplicitModel
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.report.folder import check_folder, write_report
from simtool.stages.evaluate import measure_model


def evaluate(
    model: str | Path | ImplicitModel,
    data: str,
    *,
    output: str | Path,
    split: str = "test",
    baseline: NetworkSpec | str | None = None,
    attack: str | None = None,
    epsilons: Sequence[float | str] = (0.004, 0.008),
    fraction: float | None = None,
    gradient: str = "model",
    samples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Measure ``model`` on held-out ``data`` and write the folder ``output`` (report.json, report.html, figures).

    The parameters are those of :func:`simtool.stages.evaluate.measure_model`, and ``output``, ``overwrite`` for the
    folder. Returns the JSON keys of the report (see the README); raises OutputError for the folder, before any work,
    and whatever the measurement raises.
    """
    folder = Path(output)
    check_folder(folder, overwrite)
    result, loaded = measure_model(
        model,
        data,
        split=split,
        baseline=baseline,
        attack=attack,
        epsilons=epsilons,
        fraction=fraction,
        gradient=gradient,
        samples=samples,
        seed=seed,
        progress=progress,
    )
    mask = result.pop("attack_mask")
    result["report"] = str(folder)
    write_report(folder, loaded, result | {"attack_mask": mask}, overwrite=overwrite)
    return result
