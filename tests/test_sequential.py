"""--sequential: rows fitted on the states of the part that is sparse already, on single states and on layers of a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from simtool.budget.search import Search, find
from simtool.certificate import FIXED_SUPPORT
from simtool.cli import main
from simtool.engines import EngineOptions
from simtool.errors import InputError, OptionError
from simtool.model import load_layers, load_model
from simtool.networks import NetworkSpec, load_network
from simtool.stages import tune
from simtool.stages.extract import extract
from simtool.stages.replay import dump_row, replay
from simtool.stages.sparsify import sample_weights, sequential
from simtool.stages.sparsify.budget import kept_of, settle, sizes_file
from simtool.stages.sparsify.budget_options import parse_pattern
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.skips import skip_of
from simtool.stages.sparsify.spec import spec_of
from simtool.stages.sparsify.stage import sparsify
from simtool.stages.sparsify.structure import RowGroup
from simtool.states import open_states

HERE = Path(__file__).resolve()


def _group(rows: tuple[int, int], features: list[int], is_output: bool = False) -> RowGroup:
    return RowGroup(str(rows), rows, np.array(features), is_output, False, str(rows))


def test_depths_follow_what_feeds_what() -> None:
    # states 0, 1 read 2, 3, which read inputs 4, 5; the outputs read 0 and an input
    groups = [_group((0, 2), [2, 3, 5]), _group((2, 4), [4, 5]), _group((4, 6), [0, 4], True)]
    assert sequential.depths(groups, 4) == (1, 0, 2)
    skip = [*groups[:2], _group((4, 6), [0, 2], True)]
    assert sequential.depths(skip, 4) == (1, 0, 2)
    cycle = [_group((0, 2), [2, 5]), _group((2, 4), [0, 4]), _group((4, 6), [0], True)]
    with pytest.raises(OptionError, match="cycle"):
        sequential.depths(cycle, 4)


@pytest.mark.parametrize("structure", ["layered", "dag"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_every_row_is_the_best_on_the_states_of_the_sparse_part(
    structure: str, sparsity: float, digits: dict[str, Path], tmp_path: Path
) -> None:
    options = SparsifyOptions(target_sparsity=sparsity, sequential=True, structure=structure)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["certified"] == result["rows"]
    assert result["nnz"] == kept_of(sparsity, result["baseline_nnz"])
    model = load_model(tmp_path / "run")
    assert set(model.certificates.kind) == {FIXED_SUPPORT}
    with open_states(digits["states"]) as source:
        u, z, y = (np.asarray(a[:], dtype=np.float64) for a in (source.U, source.Z, source.Y))
        own = np.asarray(source.X[:], dtype=np.float64)
    run = model.forward(u)
    design = np.vstack([run.X.astype(np.float32), u])
    w = np.vstack(
        [np.hstack([model.A.toarray(), model.B.toarray()]), np.hstack([model.C.toarray(), model.D.toarray()])]
    )
    targets = np.vstack([z, y])
    moved = 0
    for row, target in zip(w, targets, strict=True):
        support = np.flatnonzero(row)
        best = np.linalg.lstsq(design[support].T, target, rcond=None)[0] if support.size else np.zeros(0)
        loss, least = (float(np.square(target - c @ design[support]).sum()) for c in (row[support], best))
        assert loss <= least * (1 + 1e-6) + 1e-9 * float(target @ target)
        on_own = (
            np.linalg.lstsq(np.vstack([own, u])[support].T, target, rcond=None)[0] if support.size else best
        )
        moved += int(not np.allclose(on_own, best, rtol=1e-3, atol=1e-6))
    assert moved > len(model.A.toarray()) // 4  # most rows behind the first layer see other states


@pytest.mark.parametrize("sparsity", [0.9, 0.97, 0.99])
@pytest.mark.parametrize("structure", ["layered", "dag"])
def test_nothing_is_spent_on_states_that_nothing_reads(
    structure: str, sparsity: float, digits: dict[str, Path], tmp_path: Path
) -> None:
    options = SparsifyOptions(target_sparsity=sparsity, structure=structure)
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    assert result["nnz"] == kept_of(sparsity, result["baseline_nnz"])
    model = load_model(tmp_path / "run")
    reads = np.vstack([model.A.toarray(), model.C.toarray()]) != 0
    read = np.zeros(model.n, dtype=bool)
    for _ in range(model.n):  # what outputs read, and what that reads
        read |= reads[model.n :].any(axis=0) | reads[: model.n][read].any(axis=0)
    idle = np.flatnonzero(~read)
    rows = np.hstack([model.A.toarray(), model.B.toarray()])
    assert not rows[idle].any()
    assert idle.size or sparsity < 0.97


def test_a_killed_run_goes_on_to_the_same_bytes(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(target_sparsity=0.9, sequential=True)
    sparsify(digits["states"], tmp_path / "whole", options, engine="serial")
    model = (tmp_path / "whole" / "model.h5").read_bytes()
    shards = sorted(p.name for p in (tmp_path / "whole" / "rows").glob("0*.shard"))
    for gone in (shards[:1], shards[-1:], shards[1:]):
        run = tmp_path / "-".join(gone)[:20]
        shutil.copytree(tmp_path / "whole", run)
        for name in ("model.h5", "timing.json", *(f"rows/{shard}" for shard in gone)):
            (run / name).unlink()
        sparsify(digits["states"], run, options, engine="process", workers=2)
        assert (run / "model.h5").read_bytes() == model


def test_what_rows_are_fitted_on_is_made_on_one_thread_and_checked(
    digits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SparsifyOptions(target_sparsity=0.9, sequential=True, weight_samples="fisher")
    sparsify(digits["states"], tmp_path / "whole", options, engine="serial")
    threads: list[int] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return function(*args)

        return wrapped

    monkeypatch.setattr(sequential, "_refresh", noted(sequential._refresh))
    monkeypatch.setattr(sample_weights, "_information", noted(sample_weights._information))
    stop = _StopAtRows(2)
    with threadpool_limits(limits=2), pytest.raises(KeyboardInterrupt):
        sparsify(digits["states"], tmp_path / "run", options, engine="serial", progress=stop)
    assert len(threads) >= 2
    assert set(threads) == {1}
    folder = RunFolder(tmp_path / "run")
    plan = plan_of(folder)
    assert sequential.is_ready(folder, plan, 1)
    damaged = folder.array(sequential.design_array(plan.at_depth(1)[0]))
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 64
    damaged.write_bytes(content)
    assert not sequential.is_ready(folder, plan, 1)
    sparsify(digits["states"], folder.path, options, engine="serial")
    assert folder.model.read_bytes() == (tmp_path / "whole" / "model.h5").read_bytes()


def test_a_row_can_be_taken_out_and_solved_again(digits: dict[str, Path], tmp_path: Path) -> None:
    options = SparsifyOptions(target_sparsity=0.9, sequential=True, weight_samples="fisher")
    result = sparsify(digits["states"], tmp_path / "run", options, engine="serial")
    for row in (0, result["rows"] - 1, result["rows"] // 2):
        dump_row(tmp_path / "run", row, tmp_path / f"{row}.npz", states=digits["states"])
        found = replay(tmp_path / f"{row}.npz")
        assert found["stored"]["certified"]
        assert found["solved"]["certified"]
        assert found["largest_difference"] < 1e-6


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 8), st.integers(0, 8))
def test_what_a_row_cannot_use_goes_to_others(
    tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path], seed: int, first: int, second: int
) -> None:
    """Sizes are settled anew where features have died; nothing of the budget is lost while any row has room."""
    run = digits["folder"] / "settled"
    if not run.exists():
        options = SparsifyOptions(target_sparsity=0.8, sequential=True)
        with pytest.raises(KeyboardInterrupt):
            sparsify(digits["states"], run, options, engine="serial", progress=_StopAtRows())
    folder = RunFolder(run)
    plan = plan_of(folder)
    wanted = np.diff(folder.load(folder.supports)["indptr"])
    rng = np.random.default_rng(seed)
    total = 0
    for depth, lost in ((1, first), (2, second)):
        live = {
            index: max(1, plan.groups[index].features.size - int(rng.integers(0, lost + 1)))
            for index in plan.at_depth(depth)
        }
        settle(folder, plan, depth, live)
        stored = folder.load(sizes_file(folder, depth))
        rows = np.concatenate([np.arange(*plan.groups[index].rows) for index in live])
        room = np.concatenate([np.full(len(np.arange(*plan.groups[i].rows)), k) for i, k in live.items()])
        total += int(wanted[rows].sum())
        assert (stored["sizes"][rows] <= room).all()
        assert stored["sizes"].sum() == stored["sizes"][rows].sum()
        total -= int(stored["sizes"].sum())
        assert int(stored["left"]) == total
        assert total == 0 or (stored["sizes"][rows] == room).all()


@pytest.mark.parametrize("pattern", [None, "2:4", "1:3"])
def test_room_is_what_a_path_can_fill(pattern: str | None, digits: dict[str, Path]) -> None:
    options = SparsifyOptions(target_sparsity=0.5, sequential=True, pattern=pattern)
    with open_states(digits["states"]) as source:
        plan = Plan(spec_of(source, options))
    rng = np.random.default_rng(0)
    for group in plan.groups:
        w = rng.standard_normal((group.features.size, 200))
        w[rng.random(len(w)) < 0.4] = 0.0
        z = rng.standard_normal((1, 200))
        search = Search(pattern=None if pattern is None else parse_pattern(pattern))
        (order,), _ = find(search, w @ w.T, z @ w.T, np.square(z).sum(axis=1), plan.is_bias(group))
        assert sequential.room(plan, group, np.diag(w @ w.T) > 0) == order.size


class _StopAtRows:
    """Ends a run when its rows begin, or those of depth ``time`` - 1."""

    def __init__(self, time: int = 1) -> None:
        self._left = time

    def start(self, total: int, unit: str, label: str) -> None:
        del total, unit
        self._left -= label == "rows"
        if not self._left:
            raise KeyboardInterrupt

    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


# --- layers of a network ------------------------------------------------------------------------------------------------------


class Gates(nn.Module):
    """Shared weights, a skip, a product: no implicit form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
        self.gate, self.out = nn.Linear(6, 6), nn.Linear(6 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.conv(x))
        h = h + torch.relu(self.mix(h))
        h = h * torch.sigmoid(self.gate(h.transpose(1, 2))).transpose(1, 2)
        return self.out(h.flatten(1))


def gates() -> nn.Module:
    torch.manual_seed(5)
    return Gates()


def others() -> nn.Module:
    torch.manual_seed(6)
    return Gates()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequential")
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", inputs=rng.uniform(-1, 1, (300, 3, 8)).astype(np.float32))
    extract(f"{HERE}:gates", str(folder / "d.npz"), output=folder / "s.h5")
    return folder


def test_layers_are_fitted_behind_the_sparse_ones(place: Path) -> None:
    network = NetworkSpec(f"{HERE}:gates")
    plain, seq = SparsifyOptions(target_sparsity=0.6), SparsifyOptions(target_sparsity=0.6, sequential=True)
    found = sparsify(place / "s.h5", place / "seq", seq, engine="serial", network=network)
    sparsify(place / "s.h5", place / "plain", plain, engine="serial")
    with open_states(place / "s.h5") as source:
        inputs = np.asarray(source.U[:-1]).T.reshape(-1, 3, 8)
        y = np.asarray(source.Y[:]).T
    assert found["certified"] == found["rows"]
    assert found["nnz"] == kept_of(0.6, found["baseline_nnz"])
    loaded = load_network(network, (3, 8))
    errors = {}
    for name in ("plain", "seq"):
        layers = load_layers(place / name)
        assert layers is not None
        sparse = loaded.with_weights(layers.tensors(loaded.weights()))
        out = sparse.tensors(inputs, (sparse.outline.output_tensor,))[sparse.outline.output_tensor]
        errors[name] = float(np.square(out.reshape(len(y), -1) - y).mean())
        # The last layer is the least-squares fit of its target on what it sees: its residual is orthogonal to that.
    assert errors["seq"] < errors["plain"]
    (again,) = (sparsify(place / "s.h5", place / "again", seq, engine="process", workers=2, network=network),)
    assert again["nnz"] == found["nnz"]
    assert (place / "again" / "model.h5").read_bytes() == (place / "seq" / "model.h5").read_bytes()


class Residual(nn.Module):
    """A norm between a layer and the sum it goes into; a sum without a norm; a layer whose result is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1, bias=False)
        self.norm, self.plain = nn.BatchNorm1d(6), nn.Conv1d(6, 6, 1)
        self.twice, self.out = nn.Conv1d(6, 6, 1), nn.Linear(6 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        h = torch.relu(self.norm(self.body(h)) + h)
        h = h + self.plain(torch.relu(h))
        t = self.twice(h)
        return self.out((torch.relu(t) + t).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(7)
    net = Residual()
    nn.init.uniform_(net.norm.weight, -2, 2)
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    nn.init.uniform_(net.norm.running_mean, -1, 1)
    return net


def test_targets_make_up_for_what_is_lost_beside_them() -> None:
    network = load_network(NetworkSpec(f"{HERE}:residual"), (3, 8))
    found = {layer.spec.name: skip_of(network.outline.program, layer) for layer in network.outline.layers}
    assert {name for name, skip in found.items() if skip} == {"body", "plain"}
    inputs = np.random.default_rng(0).uniform(-1, 1, (50, 3, 8)).astype(np.float32)
    for name, factor in (("body", None), ("plain", np.ones(6))):
        skip = found[name]
        assert skip is not None
        own = network.tensors(inputs, skip.names)
        a = skip.factors(own)
        assert a is not None
        if factor is not None:
            np.testing.assert_allclose(a, factor, rtol=1e-5)
        lost = np.random.default_rng(1).normal(size=own[skip.other].shape)
        fitted = skip.corrected(own, {skip.other: own[skip.other] - lost}, a)
        # what comes out of the sum is the network's own again
        moved = own[skip.value] + a[:, None] * (fitted - own[skip.result])
        np.testing.assert_allclose(moved - lost, own[skip.value], atol=1e-4)
        a[2] = 0.0
        assert np.array_equal(
            skip.corrected(own, {skip.other: own[skip.other] - lost}, a)[:, 2], own[skip.result][:, 2]
        )
        if skip.value != skip.result:
            assert skip.factors({**own, skip.value: np.abs(own[skip.value])}) is None


def test_a_residual_network_loses_less(place: Path) -> None:
    network = NetworkSpec(f"{HERE}:residual")
    states = place / "residual.h5"
    extract(f"{HERE}:residual", str(place / "d.npz"), output=states)
    loaded = load_network(network, (3, 8))
    with open_states(states) as source:
        inputs, y = np.asarray(source.U[:-1]).T.reshape(-1, 3, 8), np.asarray(source.Y[:]).T
    errors = {}
    for sequentially in (False, True):
        run = place / f"residual-{sequentially}"
        options = SparsifyOptions(target_sparsity=0.6, sequential=sequentially)
        result = sparsify(states, run, options, engine="serial", network=network)
        assert result["certified"] == result["rows"]
        layers = load_layers(run)
        assert layers is not None
        sparse = loaded.with_weights(layers.tensors(loaded.weights()))
        out = sparse.tensors(inputs, (sparse.outline.output_tensor,))[sparse.outline.output_tensor]
        errors[sequentially] = float(np.square(out.reshape(len(y), -1) - y).mean())
    assert errors[True] < errors[False]


def test_layers_need_their_own_network(place: Path) -> None:
    options = SparsifyOptions(target_sparsity=0.6, sequential=True)
    with pytest.raises(OptionError, match="--network NETWORK"):
        sparsify(place / "s.h5", place / "none", options, engine="serial")
    assert not (place / "none").exists()
    with pytest.raises(InputError, match="not the one the states came from"):
        sparsify(
            place / "s.h5", place / "none", options, engine="serial", network=NetworkSpec(f"{HERE}:others")
        )
    assert not (place / "none").exists()


def test_layers_are_tried_behind_sparse_ones_where_the_network_can_run(place: Path) -> None:
    network, budget = NetworkSpec(f"{HERE}:gates"), SparsifyOptions(target_sparsity=0.6)
    with open_states(place / "s.h5") as source:
        for engine, given, names in (
            ("serial", network, ["plain", "sequential"]),
            ("serial", None, ["plain"]),
            ("slurm", network, ["plain"]),
        ):
            call = {"engine": EngineOptions(engine), "network": given}
            assert tune._Search(source, place / "none", budget, tune.Wish(), call)._names() == names


def test_the_command_line(place: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    args = [str(place / "s.h5"), "--target-sparsity", "0.6", "--sequential", "--engine", "serial", "--quiet"]
    run = CliRunner().invoke(
        main, ["sparsify", *args, "--network", f"{HERE}:gates", "-o", str(tmp_path / "cli")]
    )
    assert run.exit_code == 0, run.output
    states = str(digits["states"])
    for more, said in (
        (["--target-sparsity", "0.6", "--structure", "free", "--sequential"], "free every state"),
        (["--sequential"], "belongs to a budget"),
        (["--weight-samples", "gate"], "belongs to a budget"),
        (["--paths", "lasso"], "belongs to a budget"),
    ):
        run = CliRunner().invoke(main, ["sparsify", states, *more, "-o", str(tmp_path / "bad")])
        assert run.exit_code == 1, run.output
        assert said in run.output
        assert not (tmp_path / "bad").exists()
