"""Models that read few inputs, or few states: columns chosen by their norms for all rows at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_cases import layered_model

from simtool.errors import OptionError
from simtool.model import load_model
from simtool.report import evaluate
from simtool.stages.column_groups import select_columns
from simtool.stages.compact import compact


def test_few_pixels_of_digits(digits: dict[str, Path], tmp_path: Path) -> None:
    """Half of the 64 pixels say nearly as much as all of them, and the model reads no other."""
    model, facts = select_columns(digits["states"], keep=32)
    assert 28 <= len(facts["kept"]) <= 32
    assert facts["certified"]
    assert facts["of"] == 64
    read = np.unique(np.concatenate([model.B.indices, model.D.indices]))
    assert set(read.tolist()) <= {*facts["kept"], 64}
    everything, all_facts = select_columns(digits["states"], share=1e-6)
    assert len(all_facts["kept"]) > 45
    scores = []
    for name, found in (("few", model), ("all", everything)):
        path = found.save(tmp_path / f"{name}.h5")
        scores.append(evaluate(path, "digits", output=tmp_path / name)["accuracy"])
    assert scores[0] > scores[1] - 0.15
    assert scores[0] > 0.7
    again = compact(tmp_path / "few.h5", tmp_path / "small.h5")
    assert again["inputs_unread"] == 64 - len(read[read < 64])
    assert load_model(tmp_path / "small.h5").p == 65


def test_few_states_of_digits(digits: dict[str, Path]) -> None:
    """Columns of (A; C): states that no row uses are gone, block by block."""
    model, facts = select_columns(digits["states"], columns="states", share=0.02)
    assert facts["certified"]
    assert model.n == facts["states"] <= len(facts["kept"]) < 80
    assert (np.asarray(abs(model.A).sum(axis=0)) + np.asarray(abs(model.C).sum(axis=0)) > 0).all()
    assert model.well_posedness().by == "acyclic"
    assert sum(block.size for block in model.blocks) == model.n


def test_dag_rows_choose_their_inputs_together(digits: dict[str, Path]) -> None:
    model, facts = select_columns(digits["states"], share=0.1, structure="dag")
    assert facts["certified"]
    read = np.unique(np.concatenate([model.B.indices, model.D.indices]))
    assert set(read.tolist()) <= {*facts["kept"], 64}
    assert model.structure == "dag"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"share": 0.1, "keep": 3}, "either share or keep"),
        ({}, "either share or keep"),
        ({"share": 0.0}, r"in \(0, 1\]"),
        ({"keep": -1}, "whole number"),
        ({"share": 0.1, "columns": "rows"}, "inputs, states"),
        ({"share": 0.1, "structure": "free"}, "layered, dag"),
    ],
)
def test_refused_options(options: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    layered_model().save(tmp_path / "model.h5")
    with pytest.raises(OptionError, match=pattern):
        select_columns(tmp_path / "model.h5", **options)
