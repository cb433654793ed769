"""Case F, the FashionMNIST MLP 784-64-32-16-10: the main job on real data, and the referee's opinion of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simtool.certificate import certify
from simtool.design import Design
from simtool.model import load_model
from simtool.networks import NetworkSpec
from simtool.problem import RowSet
from simtool.report import evaluate
from simtool.solvers import conic
from simtool.stages.extract import extract
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions, objective_of
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.stage import sparsify
from simtool.states import open_states

# Penalties that leave a row up to about a hundred non-zeros at 500 samples (least squares cannot: it has none). The
# loss is a sum over samples, so with more of them the penalty grows in proportion.
OBJECTIVES = {
    "lasso": SparsifyOptions(objective="lasso", kappa_outputs=0.99),
    "l1": SparsifyOptions(objective="l1", beta=5.0),
    "perspective": SparsifyOptions(objective="perspective", alpha=3.0),
    "elastic-net": SparsifyOptions(objective="elastic-net", beta=20.0),
    "least-squares": SparsifyOptions(objective="least-squares"),
}
STRUCTURES = ("layered", "dag", "free")
CASES = [(objective, structure) for objective in OBJECTIVES for structure in STRUCTURES]


def _options(objective: str, structure: str, samples: int) -> SparsifyOptions:
    options = OBJECTIVES[objective]
    weights = {k: v * samples / 500 for k in ("alpha", "beta") if (v := getattr(options, k)) is not None}
    return replace(options, structure=structure, **weights)


def _states(case_f: dict[str, Path], fashion: str, samples: int) -> Path:
    path = case_f["folder"] / f"states-{samples}.h5"
    if not path.exists():
        extract(
            NetworkSpec(str(case_f["factory"]), weights=case_f["weights"]),
            fashion,
            samples=samples,
            output=path,
        )
    return path


def _rows_of(run: Path, states: Path, chosen: np.ndarray) -> list[tuple[RowSet, np.ndarray]]:
    """The chosen rows of a run as convex problems, with the coefficients that the model stores."""
    plan = Plan(RunFolder(run).read_spec())
    model = load_model(run)
    with open_states(states) as source:
        w = np.concatenate([source.X[:], source.U[:]])
        t = np.concatenate([source.Z[:], source.Y[:]])
    out = []
    for group in plan.groups:
        rows = chosen[(chosen >= group.rows[0]) & (chosen < group.rows[1])]
        if not rows.size:
            continue
        stored = np.zeros((rows.size, plan.n + plan.p))
        for k, i in enumerate(rows):
            indices, values = model.row(int(i))
            stored[k, indices] = values
        problem = RowSet(
            Design(w[group.features]),
            t[rows],
            objective_of(plan.options, group.is_output, plan.m),
            plan.bounded(group),
            plan.allowed(group, rows),
        )
        out.append((problem, stored[:, group.features]))
    return out


def _compare_with_clarabel(
    case_f: dict[str, Path], fashion: str, run: Path, objective: str, structure: str, samples: int, count: int
) -> None:
    states = _states(case_f, fashion, samples)
    options = _options(objective, structure, samples)
    result = sparsify(states, run, options, engine="serial")
    assert result["certified"] == result["rows"] == 122
    assert result["max_relative_gap"] <= 1e-6
    assert result["well_posed"]
    chosen = np.unique(np.linspace(0, 121, count).astype(int))
    for rows, stored in _rows_of(run, states, chosen):
        ours = certify(rows, stored, 1e-6)
        referee = certify(rows, conic.solve(rows, 1e-6), 1e-6)
        denominator = np.maximum(ours.primal, 1e-2 * rows.objective.loss_weight * rows.target_norms)
        difference = np.abs(ours.primal - referee.primal) / denominator
        assert ours.certified.all()
        assert np.all(difference <= 1e-6), difference
        if objective != "least-squares":
            assert np.median((stored != 0).sum(axis=1)) <= 150


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "structure"), CASES)
def test_rows_agree_with_clarabel(
    case_f: dict[str, Path], fashion: str, tmp_path: Path, objective: str, structure: str
) -> None:
    _compare_with_clarabel(case_f, fashion, tmp_path / "run", objective, structure, 500, 3)


@pytest.mark.stress
@pytest.mark.parametrize(("objective", "structure"), CASES)
def test_many_rows_agree_with_clarabel(
    case_f: dict[str, Path], fashion: str, tmp_path: Path, objective: str, structure: str
) -> None:
    _compare_with_clarabel(case_f, fashion, tmp_path / "run", objective, structure, 2000, 30)


@pytest.mark.parametrize(("objective", "structure"), CASES)
def test_engines_agree_to_the_byte(
    case_f: dict[str, Path], fashion: str, tmp_path: Path, objective: str, structure: str
) -> None:
    states = _states(case_f, fashion, 500)
    options = _options(objective, structure, 500)
    one = sparsify(states, tmp_path / "serial", options, engine="serial")
    two = sparsify(states, tmp_path / "process", options, engine="process", workers=2)
    assert one["certified"] == two["certified"] == 122
    assert (tmp_path / "serial" / "model.h5").read_bytes() == (tmp_path / "process" / "model.h5").read_bytes()


def test_least_squares_recovers_the_network(case_f: dict[str, Path], fashion: str, tmp_path: Path) -> None:
    states = _states(case_f, fashion, 2000)
    result = sparsify(states, tmp_path / "run", SparsifyOptions(objective="least-squares"))
    assert result["certified"] == result["rows"] == 122
    assert result["norm_a_inf"] < 1 < result["norm_a_inf_raw"]
    measured = evaluate(
        tmp_path / "run",
        fashion,
        baseline=NetworkSpec(str(case_f["factory"]), weights=case_f["weights"]),
        output=tmp_path / "report",
    )
    assert measured["baseline_accuracy"] > 0.86
    assert abs(measured["accuracy_drop"]) <= 0.0005
    assert measured["state_error"] < 1e-4


def test_torch_and_onnx_give_the_same_states(case_f: dict[str, Path], fashion: str, tmp_path: Path) -> None:
    torch_states = _states(case_f, fashion, 500)
    extract(str(case_f["onnx"]), fashion, samples=500, output=tmp_path / "onnx.h5")
    with open_states(torch_states) as a, open_states(tmp_path / "onnx.h5") as b:
        assert [(x.size, x.offset, x.activation, len(x.parents)) for x in a.blocks] == [
            (x.size, x.offset, x.activation, len(x.parents)) for x in b.blocks
        ]
        assert a.header.baseline_nnz == b.header.baseline_nnz == 53018
        for name in ("U", "Z", "X", "Y"):
            for block in a.blocks if name in "ZX" else (None,):
                rows = slice(None) if block is None else block.rows
                first, second = getattr(a, name)[rows], getattr(b, name)[rows]
                assert np.abs(first - second).max() <= 1e-5 * max(1.0, np.abs(first).max())


@pytest.mark.slow
@pytest.mark.parametrize("samples", [100, 700])
def test_papers_dense_rows_are_certified(
    case_f: dict[str, Path], fashion: str, tmp_path: Path, samples: int
) -> None:
    """SIM's own hyper-parameters (Table 2): hundreds of non-zeros a row, all certified all the same."""
    states = _states(case_f, fashion, samples)
    options = SparsifyOptions(objective="perspective", alpha=1e-2, kappa=0.99, structure="free")
    result = sparsify(states, tmp_path / "run", options)
    assert result["certified"] == result["rows"]
