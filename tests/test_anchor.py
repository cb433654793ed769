"""--anchor on rows of single states: a ridge towards the network's own rows, written as samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import simtool
from simtool.demo import NETWORK
from simtool.errors import OptionError
from simtool.model import ImplicitModel, load_model
from simtool.networks import NetworkSpec
from simtool.stages.replay import dump_row, replay
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states


@pytest.fixture(scope="module")
def few(digits: dict[str, Path]) -> Path:
    path = digits["folder"] / "few.h5"
    simtool.extract(NetworkSpec(NETWORK, weights=digits["weights"]), "digits", samples=40, output=path)
    return path


def _matrix(model: ImplicitModel) -> np.ndarray:
    return np.vstack(
        [np.hstack([model.A.toarray(), model.B.toarray()]), np.hstack([model.C.toarray(), model.D.toarray()])]
    )


@pytest.mark.parametrize("structure", ["layered", "dag"])
@pytest.mark.parametrize("sequential", [False, True])
def test_rows_are_ridge_solutions_on_their_supports(
    structure: str, sequential: bool, few: Path, tmp_path: Path
) -> None:
    anchor = 0.05
    options = SparsifyOptions(target_sparsity=0.6, anchor=anchor, structure=structure, sequential=sequential)
    result = sparsify(few, tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    model = load_model(tmp_path / "run")
    with open_states(few) as source:
        x, u, z, y = (np.asarray(a[:], dtype=np.float64) for a in (source.X, source.U, source.Z, source.Y))
        teacher = {name: part.toarray() for name, part in source.teacher().items()}
    own = np.vstack([np.hstack([teacher["A"], teacher["B"]]), np.hstack([teacher["C"], teacher["D"]])])
    weight = anchor * np.square(np.vstack([x, u])).sum() / len(own[0])
    states = model.forward(u).X.astype(np.float32) if sequential else x
    design = np.vstack([states, u])
    for row, target, before in zip(_matrix(model), np.vstack([z, y]), own, strict=True):
        s = np.flatnonzero(row)
        w = design[s]
        best = np.linalg.solve(w @ w.T + weight * np.eye(s.size), w @ target + weight * before[s])

        def cost(
            c: np.ndarray, w: np.ndarray = w, target: np.ndarray = target, b: np.ndarray = before[s]
        ) -> float:
            return float(np.square(target - c @ w).sum() + weight * np.square(c - b).sum())

        assert cost(row[s]) <= cost(best) * (1 + 1e-4) + 1e-6


def test_few_samples_are_held_near_the_network(few: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    agreement = {}
    for anchor in (None, 0.01):
        run = tmp_path / str(anchor)
        sparsify(few, run, SparsifyOptions(target_sparsity=0.6, anchor=anchor), engine="process", workers=2)
        network = NetworkSpec(NETWORK, weights=digits["weights"])
        report = simtool.evaluate(run, "digits", baseline=network, output=tmp_path / f"report-{anchor}")
        agreement[anchor] = report["agreement"]
    assert agreement[0.01] > agreement[None] + 0.02


def test_what_cannot_be_held_is_refused(few: Path, tmp_path: Path) -> None:
    weighted = SparsifyOptions(target_sparsity=0.5, anchor=0.1, weight_samples="gate")
    with pytest.raises(OptionError, match="--weight-samples gate weighs"):
        sparsify(few, tmp_path / "no", weighted, engine="serial")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("sequential", [False, True])
def test_a_row_can_be_solved_again(sequential: bool, few: Path, tmp_path: Path) -> None:
    options = SparsifyOptions(target_sparsity=0.6, anchor=0.05, sequential=sequential)
    rows = sparsify(few, tmp_path / "run", options, engine="serial")["rows"]
    for row in (0, rows - 1):
        dump_row(tmp_path / "run", row, tmp_path / f"{row}.npz", states=few)
        found = replay(tmp_path / f"{row}.npz")
        assert found["stored"]["certified"]
        assert found["largest_difference"] < 1e-5
