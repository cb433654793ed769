"""The Gram matrix of a run, put together from tiles of features and of samples, is W W^T."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtool.stages.sparsify import structure, work
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify


@pytest.mark.parametrize("weighted", [False, True])
def test_gram_of_several_tiles_each_way(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    """300 samples in tiles of 128, features in tiles of 20: what the rows are given is the product of their design."""
    monkeypatch.setattr(work, "SAMPLE_TILE", 128)
    monkeypatch.setattr(work, "GRAM_TILE", 20)
    monkeypatch.setattr(structure, "GRAM_TILE", 20)
    seen: list[float] = []
    real = work.answer

    def checked(rows: Any, task: Any) -> Any:
        if rows.design.has_gram:
            w = rows.design.dense(np.arange(rows.design.d))
            seen.append(float(np.abs(rows.design.gram - w @ w.T).max() / np.abs(rows.design.gram).max()))
        return real(rows, task)

    monkeypatch.setattr(work, "answer", checked)
    more: dict[str, Any] = {}
    if weighted:
        np.save(tmp_path / "weights.npy", np.random.default_rng(0).random(300))
        more["weight_samples"] = str(tmp_path / "weights.npy")
    result = sparsify(
        digits["states"],
        tmp_path / "run",
        SparsifyOptions(objective="l1", beta=1.0, structure="dag", **more),
        engine="serial",
    )
    assert result["certified"] == result["rows"]
    assert seen
    assert max(seen) < 1e-12
