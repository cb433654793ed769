"""--kappa-relative: every row bounded by a share of the l1 norm of its own least squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from row_problems import make_rows

from simtool.certificate import certify
from simtool.design import Design
from simtool.errors import OptionError
from simtool.model import ImplicitModel, load_layers, load_model
from simtool.problem import RowSet
from simtool.solvers import get
from simtool.stages.extract import extract
from simtool.stages.replay import dump_row, replay
from simtool.stages.sparsify import relative
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sparsify.structure import RowGroup
from simtool.stages.sparsify.work import Piece

HERE = Path(__file__)


def small() -> Any:
    """A convolution and a linear map."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(75, 4))


def _pieces(rows: RowSet) -> list[Piece]:
    group = RowGroup("rows", (0, rows.count), np.arange(rows.design.d), False, False, "rows")
    return relative.split(Piece(np.arange(rows.count), group, rows))


def _reference(rows: RowSet, i: int) -> np.ndarray:
    """Least squares of row ``i`` on what it may use, of least norm among them, by SVD: (d,)."""
    usable = np.ones(rows.design.d, dtype=bool) if rows.allowed is None else rows.allowed[i]
    w = np.zeros(rows.design.d)
    matrix = rows.design.dense(np.arange(rows.design.d))[usable]
    w[usable] = np.linalg.lstsq(matrix.T, rows.target()[i], rcond=None)[0]
    return w


@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 1.5),
    on_a=st.booleans(),
    masked=st.booleans(),
    weighted=st.booleans(),
)
@hypothesis_settings(max_examples=40)
def test_rows_keep_to_their_share(seed: int, share: float, on_a: bool, masked: bool, weighted: bool) -> None:
    """A dial in units of the row: never exceeded, used up where it binds, free of charge from 1 on."""
    rows = make_rows(seed, kappa=share, on_a=on_a, masked=masked, weighted=weighted, oddities=False)
    assume(rows.allowed is None or bool(rows.allowed.any(axis=1).all()))
    pieces = _pieces(rows)
    assert [int(row) for piece in pieces for row in piece.at] == list(range(rows.count))
    for i, piece in enumerate(pieces):
        full = _reference(rows, i)
        bound = share * np.abs(full[rows.constrained]).sum()
        assert piece.rows.objective.kappa == pytest.approx(bound, rel=1e-7, abs=1e-12)
        w = get("native")(piece.rows, 1e-6)
        proof = certify(piece.rows, w, 1e-6)
        assert proof.certified.all()
        norm = np.abs(w[0, rows.constrained]).sum()
        assert norm <= bound * (1 + 1e-7) + 1e-12
        if share < 0.999 and bound > 1e-9:
            assert norm == pytest.approx(bound, rel=1e-7)
        if share >= 1.0:
            rest = rows.target()[i] - full @ rows.design.dense(np.arange(rows.design.d))
            best = rows.objective.loss_weight * float(rest @ rest)
            scale = rows.objective.loss_weight * float(rows.target_norms[i])
            assert proof.primal[0] <= best + 1e-6 * scale


@pytest.mark.parametrize("bounds", ["sign", "box", "mixed"])
def test_bounds_hold_for_the_least_squares_too(bounds: str) -> None:
    rows = make_rows(3, kappa=0.5, bounds=bounds)
    free = relative.least_squares_norms(make_rows(3, kappa=0.5))
    held = relative.least_squares_norms(rows)
    assert (held < free).all()
    for piece, norm in zip(_pieces(rows), held, strict=True):
        assert piece.rows.objective.kappa == 0.5 * norm
        assert certify(piece.rows, get("native")(piece.rows, 1e-6), 1e-6).certified.all()


def test_more_features_than_samples_and_rows_of_zeros() -> None:
    """Least squares that fit exactly, and a row whose least squares are 0: bounds are finite, rows are proven."""
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((3, 12))
    targets[1] = 0.0
    base = make_rows(0, kappa=0.3)
    rows = RowSet(Design(rng.standard_normal((40, 12))), targets, base.objective, np.ones(40, dtype=bool))
    pieces = _pieces(rows)
    assert pieces[1].rows.objective.kappa == 0.0
    for piece in pieces:
        assert np.isfinite(piece.rows.objective.kappa)
        assert certify(piece.rows, get("native")(piece.rows, 1e-6), 1e-6).certified.all()


def _run(states: Path, out: Path, engine: str = "serial", workers: int | None = None, **options: Any) -> Path:
    asked = SparsifyOptions(kappa_relative=True, **options)
    result = sparsify(states, out, asked, engine=engine, workers=workers)
    assert result["certified"] == result["rows"]
    return out / "model.h5"


def _matrix(model: ImplicitModel) -> np.ndarray:
    return np.block([[model.A.toarray(), model.B.toarray()], [model.C.toarray(), model.D.toarray()]])


@pytest.mark.parametrize(
    "options",
    [
        {"structure": "layered"},
        {"structure": "dag"},
        {"structure": "dag", "objective": "l1", "kappa_on": "a", "kappa_outputs": 0.8},
        {"structure": "layered", "eliminate": "safe"},
    ],
    ids=["layered", "dag", "l1-on-a", "safe"],
)
def test_rows_of_a_network_are_tight_in_units_of_their_own(
    digits: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = load_model(_run(digits["states"], tmp_path / "run", kappa=0.2, **options))
    result = sparsify(
        digits["states"],
        tmp_path / "full",
        SparsifyOptions(objective="least-squares", structure=options["structure"]),
        engine="serial",
    )
    assert result["certified"] == result["rows"]
    part = slice(0, model.n if options.get("kappa_on") == "a" else None)
    norms = np.abs(_matrix(model)[: model.n, part]).sum(axis=1)
    full = np.abs(_matrix(load_model(tmp_path / "full" / "model.h5"))[: model.n, part]).sum(axis=1)
    assert (norms <= 0.2 * full * (1 + 1e-8)).all()
    used = full > 0
    if options.get("objective") != "l1":  # its slope can leave some of the bound
        np.testing.assert_allclose(norms[used], 0.2 * full[used], rtol=1e-6)
    table = model.certificates
    assert table is not None
    # The certificate is that of the row's own problem: its slack is counted from the row's own kappa.
    np.testing.assert_allclose(table.kappa_slack[: model.n], 0.2 * full - norms, atol=1e-7 * full.max())


def test_every_engine_gives_the_same_bytes(digits: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"structure": "dag", "kappa": 0.1}
    serial = _run(digits["states"], tmp_path / "serial", **options)
    spread = _run(digits["states"], tmp_path / "process", engine="process", workers=2, **options)
    assert serial.read_bytes() == spread.read_bytes()


def test_with_a_budget_the_share_is_of_least_squares_on_the_support(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    free = tmp_path / "free"
    sparsify(digits["states"], free, SparsifyOptions(target_sparsity=0.9), engine="serial")
    bounded = load_model(
        _run(digits["states"], tmp_path / "run", target_sparsity=0.9, kappa=0.5, kappa_on="ab")
    )
    support, rows = _matrix(load_model(free / "model.h5")), _matrix(bounded)
    assert not rows[support == 0].any()
    full, norms = np.abs(support).sum(axis=1)[: bounded.n], np.abs(rows).sum(axis=1)[: bounded.n]
    np.testing.assert_allclose(norms, 0.5 * full, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"target_sparsity": 0.85, "sequential": True, "weight_samples": "gate"},
        {"target_sparsity": 0.85, "structure": "dag", "paths": "reweighted"},
        {"pattern": "2:4"},
    ],
    ids=["sequential-gate", "reweighted", "pattern"],
)
def test_every_kind_of_budget_is_proven_under_its_share(
    digits: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    table = load_model(
        _run(digits["states"], tmp_path / "run", kappa=0.5, kappa_on="ab", **options)
    ).certificates
    assert table is not None
    bounded = np.isfinite(table.kappa_slack)
    assert bounded.any()
    # Half of the least squares' norm binds every row that has any coefficient.
    assert (np.abs(table.kappa_slack[bounded]) <= 1e-6).all()
    assert (table.multiplier[bounded] >= 0).all()


def test_rows_of_layers_with_shared_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", inputs=rng.uniform(0, 1, (60, 2, 5, 5)).astype(np.float32))
    extract(f"{HERE}:small", str(tmp_path / "d.npz"), output=tmp_path / "s.h5", positions=20)
    full = tmp_path / "full"
    sparsify(tmp_path / "s.h5", full, SparsifyOptions(objective="least-squares"), engine="serial")
    bounded = load_layers(_run(tmp_path / "s.h5", tmp_path / "run", kappa=0.3))
    free = load_layers(full / "model.h5")
    assert bounded is not None
    assert free is not None
    for i in range(len(bounded.certificates or ())):
        norm, own = (float(np.abs(model.row(i)[1]).sum()) for model in (bounded, free))
        table = bounded.certificates
        assert table is not None
        if np.isfinite(table.kappa_slack[i]):  # rows of Y have no kappa
            assert norm == pytest.approx(0.3 * own, rel=1e-6)
    assert np.isfinite(bounded.certificates.kappa_slack).any()  # type: ignore[union-attr]


def test_a_dumped_row_has_its_own_kappa(digits: dict[str, Path], tmp_path: Path) -> None:
    _run(digits["states"], tmp_path / "run", kappa=0.2)
    dump = dump_row(tmp_path / "run", 1, tmp_path / "row.npz", states=digits["states"])
    found = replay(dump)
    assert found["stored"]["certified"]
    table = load_model(tmp_path / "run" / "model.h5").certificates
    assert table is not None
    assert found["kappa"] != 0.2
    assert found["stored"]["relative_gap"] <= max(1e-9, 2 * float(table.relative_gap[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Pass --kappa"),
        ({"kappa": 0.5, "structure": "free"}, "proves nothing about --structure free"),
        ({"kappa": 0.5, "eliminate": "heuristic", "features": 5}, "Leave one of them out"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(kappa_relative=True, **options)
