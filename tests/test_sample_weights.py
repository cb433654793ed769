"""--weight-samples gate and fisher: the weights against their definition, rows and paths under them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool.budget import elimination, weighted
from simtool.errors import InputError
from simtool.model import load_model
from simtool.stages.extract import extract
from simtool.stages.sparsify import sample_weights
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.spec import spec_of
from simtool.stages.sparsify.stage import sparsify
from simtool.states import States, open_states


def _weights(source: States, kind: str) -> np.ndarray:
    options = SparsifyOptions(target_sparsity=0.5, weight_samples=kind)
    return sample_weights.of_rows(Plan(spec_of(source, options)), source)


def test_gates_are_the_slope_of_the_activation(digits: dict[str, Path]) -> None:
    with open_states(digits["states"]) as source:
        found = _weights(source, "gate")
        z = np.asarray(source.Z[:])
        assert found.shape == (source.n + source.q, source.m)
        np.testing.assert_allclose(found[: source.n], np.where(z > 0, 1.0, 0.3), atol=1e-7)
        assert (found[source.n :] == 1.0).all()


def test_fisher_against_differences(digits: dict[str, Path]) -> None:
    """s_it = sum_k p_k (d log p_k / dz_it)^2, by moving one pre-activation and running what is behind it."""
    with open_states(digits["states"]) as source:
        n = source.n
        teacher = {name: matrix.toarray() for name, matrix in source.teacher().items()}
        u, z = np.asarray(source.U[:, :40], dtype=np.float64), np.asarray(source.Z[:, :40], dtype=np.float64)
        order = sorted(source.blocks, key=lambda block: -block.offset)  # the first layer is stacked last

        def outputs(moved: int | None, step: float) -> np.ndarray:
            x = np.zeros_like(z)
            for block in order:
                own = teacher["A"][block.rows] @ x + teacher["B"][block.rows] @ u
                if moved is not None and block.offset <= moved < block.offset + block.size:
                    own[moved - block.offset] += step
                x[block.rows] = block.activation(own)
            y = teacher["C"] @ x + teacher["D"] @ u
            return y - np.log(np.exp(y).sum(axis=0))

        log_p = outputs(None, 0.0)
        plan = Plan(spec_of(source, SparsifyOptions(target_sparsity=0.5, weight_samples="fisher")))
        network = sample_weights._network(source)
        found = sample_weights._information(network, source, slice(0, 40))
        rng = np.random.default_rng(0)
        for row in rng.choice(n, 12, replace=False):
            slope = (outputs(row, 1e-5) - outputs(row, -1e-5)) / 2e-5
            expected = (np.exp(log_p) * slope**2).sum(axis=0)
            clear = np.abs(z).min(axis=0) > 1e-3  # no kink within the step
            np.testing.assert_allclose(found[row, clear], expected[clear], rtol=2e-3, atol=1e-9)
        p = np.exp(log_p)
        expected = p * (1 - p)
        # Of the outputs themselves: sum_k p_k (delta_ki - p_i)^2 = p_i (1 - p_i).
        np.testing.assert_allclose(found[n:], expected, rtol=2e-3, atol=1e-6)

        whole = _weights(source, "fisher")
        information = sample_weights._information(network, source, slice(0, source.m))
        z = np.asarray(source.Z[:], dtype=np.float64)
        mean = information[:n].sum(axis=1) / np.maximum(1, (z > 0).sum(axis=1))
        expected = 0.5 * information[:n] + 0.5 * mean[:, None] * np.where(z > 0, 1.0, 0.1)
        np.testing.assert_allclose(whole[:n], expected, rtol=1e-4, atol=1e-9)
        assert (whole >= 0).all()
        assert plan.options.weighs_rows


def test_many_outputs_are_drawn(digits: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_states(digits["states"]) as source:
        network, samples = sample_weights._network(source), slice(0, source.m)
        exact = sample_weights._information(network, source, samples)
        monkeypatch.setattr(sample_weights, "_MOST_OUTPUTS", 4)
        monkeypatch.setattr(sample_weights, "_DRAWS", 400)
        drawn = sample_weights._information(network, source, samples)
        assert np.array_equal(drawn, sample_weights._information(network, source, samples))
        np.testing.assert_allclose(drawn.mean(axis=1), exact.mean(axis=1), rtol=0.25, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_paths_are_those_of_the_weighted_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, m, r = 9, 60, 3
    w, z, v = rng.normal(size=(d, m)), rng.normal(size=(r, m)), rng.uniform(0.1, 2, size=(r, m))

    def sums(i: int, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        own = w[features]
        return (own * v[i]) @ own.T, (own * v[i]) @ z[i], float(v[i] @ z[i] ** 2)

    orders, losses = weighted.paths(w @ w.T, z @ w.T, (z * z).sum(axis=1), None, sums)
    for i in range(r):
        root = np.sqrt(v[i])
        own, target = w * root, z[i] * root
        plain = elimination.paths(own @ own.T, (own @ target)[None], np.array([target @ target]))
        assert np.array_equal(orders[i], plain.order[0])
        np.testing.assert_allclose(losses[i], plain.losses[0], rtol=1e-9)
        for k in range(d + 1):
            kept = orders[i][d - k :]
            best = np.linalg.lstsq(own[kept].T, target, rcond=None)[0] if k else np.zeros(0)
            assert losses[i][k] == pytest.approx(float(np.square(target - best @ own[kept]).sum()), rel=1e-8)
    starts, _ = weighted.paths(w @ w.T, z @ w.T, (z * z).sum(axis=1), 4, sums)
    assert all(order.size == 4 for order in starts)


@pytest.mark.parametrize("kind", ["gate", "fisher"])
@pytest.mark.parametrize("structure", ["layered", "dag", "free"])
def test_rows_are_weighted_least_squares(
    kind: str, structure: str, digits: dict[str, Path], tmp_path: Path
) -> None:
    options = SparsifyOptions(target_sparsity=0.9, weight_samples=kind, structure=structure)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    if structure == "free":  # kappa makes some of them zero
        assert result["nnz"] <= int(0.1 * result["baseline_nnz"])
        return
    assert result["nnz"] == int(0.1 * result["baseline_nnz"] + 1e-9)
    model = load_model(tmp_path / "run")
    with open_states(digits["states"]) as source:
        v = _weights(source, kind).astype(np.float64)
        design = np.vstack([source.X[:], source.U[:]]).astype(np.float64)
        targets = np.vstack([source.Z[:], source.Y[:]]).astype(np.float64)
    w = np.vstack(
        [np.hstack([model.A.toarray(), model.B.toarray()]), np.hstack([model.C.toarray(), model.D.toarray()])]
    )
    for row, target, weight in zip(w, targets, v, strict=True):
        support = np.flatnonzero(row)
        root = np.sqrt(weight)
        best = np.linalg.lstsq((design[support] * root).T, target * root, rcond=None)[0]
        loss, least = (
            float((weight * np.square(target - c @ design[support])).sum()) for c in (row[support], best)
        )
        assert loss <= least * (1 + 1e-6) + 1e-9 * float(weight @ target**2)


def test_fisher_needs_the_whole_network(tmp_path: Path) -> None:
    import networks_zoo as zoo

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", inputs=rng.uniform(-1, 1, (100, 10)).astype(np.float32))
    path = zoo.export(zoo.mlp("10-8-6-3"), tmp_path / "n.onnx", (10,))
    extract(str(path), str(tmp_path / "d.npz"), output=tmp_path / "s.h5", blocks=("*1",))
    with open_states(tmp_path / "s.h5") as source:
        assert not source.header.whole
    options = SparsifyOptions(target_nnz=40, weight_samples="fisher", structure="dag")
    with pytest.raises(InputError, match="--weight-samples gate"):
        sparsify(tmp_path / "s.h5", tmp_path / "run", options, engine="serial")
    assert not (tmp_path / "run").exists()
    gate = SparsifyOptions(target_nnz=40, weight_samples="gate", structure="dag")
    assert sparsify(tmp_path / "s.h5", tmp_path / "gate", gate, engine="serial")["nnz"] == 40
