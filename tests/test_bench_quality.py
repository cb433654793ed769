"""The comparison of sparse models: every peer against its closed form, exact budgets, tuning, targets, and the command."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool.bench import quality_prune as pruning
from simtool.bench import quality_summary as summary
from simtool.bench.pruners import PEERS, Layer, Peer, by_name
from simtool.bench.pruners.layer import largest, refit, shares
from simtool.bench.pruners.obc import OBC
from simtool.bench.pruners.peers import BUDGETS
from simtool.bench.quality import QualityBenchOptions, bench_quality
from simtool.bench.quality_measure import Score
from simtool.bench.quality_network import Calibration, DenseNetwork, agreement, read
from simtool.bench.quality_quoted import QUOTED
from simtool.bench.quality_report import percent
from simtool.bench.quality_train import train
from simtool.cli import main
from simtool.errors import InputError, OptionError
from simtool.model import load_model
from simtool.networks import load_network
from simtool.stages import tune
from simtool.stages.extract import extract
from simtool.stages.sparsify.budget import kept_of
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

# SparseGPT decides block by block unless it has all columns at once.
WHOLE = {"sparsegpt": {"block": 0}, "wanda": {"group": "layer"}}


def _layer(seed: int, rows: int = 4, width: int = 9, samples: int = 60, diagonal: bool = False) -> Layer:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(width, samples)) * rng.uniform(0.3, 3.0, size=(width, 1))
    if diagonal:
        gram = np.diag((features**2).sum(axis=1))
    else:
        mixed = rng.normal(size=(width, width)) @ features
        gram = mixed @ mixed.T
    return Layer(rng.normal(size=(rows, width)), gram, np.sqrt(np.diag(gram)))


def _run(peer: Peer, layer: Layer, keep: int, **more: Any) -> np.ndarray:
    own = {name: value for name, value in peer.defaults.items() if name not in ("target", "bias")}
    return peer.make()(layer, keep, **(own | more))


# --- what the peers share ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300))
def test_shares_come_to_the_total_and_fit(sizes: list[int], total: int) -> None:
    found = shares(sizes, total)
    assert sum(found) == min(total, sum(sizes))
    assert all(0 <= own <= size for own, size in zip(found, sizes, strict=True))
    whole = sum(sizes)
    if whole and total <= whole:
        assert all(abs(own - total * size / whole) < 1.0 for own, size in zip(found, sizes, strict=True))


@given(st.integers(0, 20), st.integers(0, 5))
def test_the_largest_are_so_many_even_among_equals(keep: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, size=(4, 5)).astype(float)
    mask = largest(scores, keep)
    assert mask.sum() == keep
    if 0 < keep < 20:
        assert scores[mask].min() >= scores[~mask].max()


def test_refitted_rows_have_no_gradient_on_their_support() -> None:
    layer = _layer(3)
    mask = np.random.default_rng(0).random(layer.weight.shape) < 0.5
    found = refit(layer, layer.gram, mask)
    gradient = (found - layer.weight) @ layer.gram
    assert np.abs(gradient[mask]).max() < 1e-8 * np.abs(layer.gram).max()
    assert (found[~mask] == 0).all()
    assert layer.loss(found) <= layer.loss(np.where(mask, layer.weight, 0.0))


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 36))
def test_a_peer_keeps_what_it_is_given_to_one(peer: Peer, seed: int, keep: int) -> None:
    assert np.count_nonzero(_run(peer, _layer(seed), keep)) == keep


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_every_setting_keeps_the_count(peer: Peer) -> None:
    layer = _layer(5, rows=6, width=40, samples=200)
    for name, values in peer.tuned.items():
        if name in ("target", "bias"):
            continue
        for value in values:
            assert np.count_nonzero(_run(peer, layer, 47, **{name: value})) == 47


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_a_peer_that_keeps_all_changes_nothing(peer: Peer) -> None:
    layer = _layer(7)
    np.testing.assert_allclose(_run(peer, layer, layer.entries), layer.weight, rtol=1e-8)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "obc"])
@given(st.integers(0, 1000), st.integers(1, 35))
def test_on_orthogonal_features_the_best_is_known(name: str, seed: int, keep: int) -> None:
    """The error is a sum of w_ij^2 ||f_j||^2 over what goes: the largest stay as they are."""
    layer = _layer(seed, diagonal=True)
    # No damping: it would move the metric away from the closed form.
    none = {} if name == "wanda" else {"damping": 1e-13}
    found = _run(by_name(name), layer, keep, **none, **WHOLE.get(name, {}))
    stays = largest(layer.weight**2 * np.diag(layer.gram), keep)
    np.testing.assert_allclose(found, np.where(stays, layer.weight, 0.0), rtol=1e-6, atol=1e-12)


@given(st.integers(0, 1000), st.integers(9, 35))
def test_on_orthogonal_features_alps_is_near_the_best(seed: int, keep: int) -> None:
    """Its penalty lets weights near the threshold come back, so the support need not be the best; the values are."""
    layer = _layer(seed, diagonal=True)
    found = _run(by_name("alps"), layer, keep, damping=1e-13)
    stays = found != 0.0
    np.testing.assert_allclose(found[stays], layer.weight[stays], rtol=1e-6)
    losses = layer.weight**2 * np.diag(layer.gram)
    kept, best = losses[stays].sum(), np.sort(losses.ravel())[-keep:].sum()
    assert best * 0.7 <= kept <= best * (1 + 1e-9)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "alps", "obc"])
def test_on_features_of_one_norm_all_are_magnitude_pruning(name: str) -> None:
    rng = np.random.default_rng(1)
    layer = Layer(rng.normal(size=(5, 12)), 7.0 * np.eye(12), np.full(12, np.sqrt(7.0)))
    expected = by_name("magnitude").make()(layer, 20)
    found = _run(by_name(name), layer, 20, **WHOLE.get(name, {}))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_wanda_keeps_as_many_in_every_row() -> None:
    found = _run(by_name("wanda"), _layer(11, rows=5, width=20, samples=80), 33)
    assert sorted(np.count_nonzero(found, axis=1)) == [6, 6, 7, 7, 7]


@pytest.mark.parametrize("seed", range(6))
def test_sparsegpt_is_the_exact_surgeon_with_settled_columns(seed: int) -> None:
    """Each column that goes moves the columns to its right to their optimum, those to its left being settled."""
    layer = _layer(seed, rows=1, width=8)
    found = _run(by_name("sparsegpt"), layer, 4, damping=1e-12, block=0)
    gram, first = layer.gram, layer.weight[0]
    w = first.copy()
    for j in range(8):
        if found[0, j] != 0.0:
            continue
        w[j] = 0.0
        right = np.arange(j + 1, 8)
        settled = np.arange(j + 1)
        pull = gram[np.ix_(right, settled)] @ (w[settled] - first[settled])
        w[right] = first[right] - np.linalg.solve(gram[np.ix_(right, right)], pull)
    np.testing.assert_allclose(found[0], w, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_obc_removes_what_costs_least_each_time(seed: int) -> None:
    layer = _layer(seed, rows=1, width=7)
    gram, first, left = layer.gram, layer.weight[0], list(range(7))

    def best(support: list[int]) -> float:
        mask = np.zeros((1, 7), dtype=bool)
        mask[0, support] = True
        return layer.loss(refit(layer, gram, mask))

    for keep in range(6, -1, -1):
        left.remove(min(left, key=lambda j: best([i for i in left if i != j])))
        found = OBC()(layer, keep, damping=1e-13)
        assert sorted(np.flatnonzero(found[0])) == sorted(left)
        assert layer.loss(found) == pytest.approx(best(left), rel=1e-6)
    assert first.size == 7


def test_obc_shares_the_budget_over_rows_by_what_they_lose() -> None:
    """A row whose weights hardly matter gives all of its budget away."""
    layer = _layer(2, rows=3, width=10)
    small = layer.weight * np.array([[1.0], [1e-4], [1.0]])
    found = OBC()(Layer(small, layer.gram, layer.scale), 20)
    assert list(np.count_nonzero(found, axis=1)) == [10, 0, 10]


@pytest.mark.parametrize("name", ["sparsegpt", "alps", "obc"])
def test_peers_that_move_weights_beat_those_that_only_take_them(name: str) -> None:
    found = 0.0
    alone = 0.0
    for seed in range(20):
        layer = _layer(seed, rows=6, width=30, samples=100)
        taken, moved = by_name("magnitude").make()(layer, 60), _run(by_name(name), layer, 60)
        found += layer.loss(moved) / layer.loss(np.zeros_like(moved))
        alone += layer.loss(taken) / layer.loss(np.zeros_like(moved))
        if name != "sparsegpt":  # whose blocks can be unlucky
            assert layer.loss(moved) <= layer.loss(taken)
    assert found < (0.95 if name == "sparsegpt" else 0.7) * alone


@pytest.mark.parametrize("name", ["alps", "obc"])
def test_the_better_peers_are_near_the_best_support_there_is(name: str) -> None:
    ratios = []
    for seed in range(12):
        layer = _layer(seed, rows=1, width=9)
        losses = []
        for support in combinations(range(9), 3):
            mask = np.zeros((1, 9), dtype=bool)
            mask[0, list(support)] = True
            losses.append(layer.loss(refit(layer, layer.gram, mask)))
        ratios.append(layer.loss(_run(by_name(name), layer, 3, damping=1e-10)) / min(losses))
    assert min(ratios) > 1 - 1e-6
    assert np.median(ratios) < 1.3


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_features_that_are_never_seen_do_no_harm(peer: Peer) -> None:
    layer = _layer(4, rows=3, width=12)
    gram = layer.gram.copy()
    gram[:3] = gram[:, :3] = 0.0
    layer = Layer(layer.weight, gram, np.sqrt(np.diag(gram)))
    found = _run(peer, layer, 12)
    assert np.isfinite(found).all()
    assert np.count_nonzero(found) == 12
    if peer.name not in ("magnitude", "wanda"):
        assert not found[:, :3].any()


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(digits: dict[str, Path]) -> tuple[DenseNetwork, Calibration]:
    return read(digits["states"])


@pytest.fixture(scope="module")
def ours(digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ours") / "run"
    sparsify(digits["states"], run, SparsifyOptions(target_sparsity=0.7), engine="serial")
    return run


def test_a_states_file_gives_the_network_back(subject: tuple[DenseNetwork, Calibration]) -> None:
    network, calibration = subject
    outputs = network.outputs(calibration.inputs)
    expected = calibration.targets[-network.q :].T
    assert np.abs(outputs - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())
    assert network.nnz == sum(layer.weight.size + layer.bias.size for layer in network.layers)


def test_the_layers_of_a_model_are_the_model(subject: tuple[DenseNetwork, Calibration], ours: Path) -> None:
    network, calibration = subject
    model = load_model(ours)
    made = network.of_model(model)
    assert made.nnz == model.nnz == kept_of(0.7, network.nnz)
    np.testing.assert_allclose(
        made.outputs(calibration.inputs), model.predict(calibration.inputs), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.9])
def test_budgets_and_biases_come_to_the_total(
    subject: tuple[DenseNetwork, Calibration], ours: Path, kind: str, sparsity: float
) -> None:
    network, _ = subject
    total = kept_of(sparsity, network.nnz)
    made = network.of_model(load_model(ours))
    found = pruning.budgets(network, total, kind, made)
    biases = sum(np.count_nonzero(layer.bias) for layer in network.layers)
    assert sum(found) + biases == total
    assert all(0 <= own <= layer.weight.size for own, layer in zip(found, network.layers, strict=True))
    if kind == "ours" and sparsity == 0.7:
        assert [k + len(x.bias) for k, x in zip(found, network.layers, strict=True)] == [
            x.nnz for x in made.layers
        ]


def test_a_budget_below_the_biases_is_refused(subject: tuple[DenseNetwork, Calibration]) -> None:
    with pytest.raises(OptionError, match=r"3 non-zeros are fewer than the \d+ biases"):
        pruning.budgets(subject[0], 3, "uniform", subject[0])


def test_our_layer_with_fewer_non_zeros_than_biases_is_made_up_for() -> None:
    assert pruning._as_ours([4, 20], [8, 6], [50, 50], 10) == [0, 10]
    assert pruning._as_ours([40, 0], [2, 2], [20, 50], 36) == [20, 16]


@pytest.mark.parametrize("name", [peer.name for peer in PEERS])
def test_pruning_a_network_keeps_the_count_of_every_layer(
    subject: tuple[DenseNetwork, Calibration], name: str
) -> None:
    network, calibration = subject
    peer = by_name(name)
    keep = [layer.weight.size // 3 for layer in network.layers]
    last = {key: values[-1] for key, values in peer.tuned.items()}
    for chosen in (peer.defaults, last):
        made = pruning.prune(network, pruning.Samples(calibration), keep, peer.make(), chosen)
        assert [np.count_nonzero(layer.weight) for layer in made.layers] == keep
        same = all((a.bias == b.bias).all() for a, b in zip(made.layers, network.layers, strict=True))
        assert same == (chosen.get("bias") != "updated")
    # Nothing is lost where nothing goes.
    whole = [layer.weight.size for layer in network.layers]
    made = pruning.prune(network, pruning.Samples(calibration), whole, peer.make(), peer.defaults)
    expected = network.outputs(calibration.inputs)
    assert np.abs(made.outputs(calibration.inputs) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bias", ["kept", "updated"])
def test_the_networks_outputs_as_target_make_up_for_earlier_layers(
    subject: tuple[DenseNetwork, Calibration], bias: str
) -> None:
    """With the last layer whole, its least squares on the pruned states can only lower the error on these samples."""
    network, calibration = subject
    keep = [*(layer.weight.size // 4 for layer in network.layers[:-1]), network.layers[-1].weight.size]
    expected = calibration.targets[-network.q :].T
    errors = {}
    for target in ("layer", "network"):
        chosen = by_name("obc").defaults | {"target": target, "bias": bias, "damping": 1e-6}
        made = pruning.prune(network, pruning.Samples(calibration), keep, OBC(), chosen)
        errors[target] = float(((made.outputs(calibration.inputs) - expected) ** 2).sum())
    assert errors["network"] < errors["layer"]


def test_tuning_is_never_worse_than_the_papers_settings_where_it_looks(
    subject: tuple[DenseNetwork, Calibration],
) -> None:
    network, calibration = subject
    keep = [layer.weight.size // 5 for layer in network.layers]
    peer, work = by_name("sparsegpt"), pruning.Work()
    chosen = pruning.tune(network, calibration, keep, peer, work)
    fitted, held = work.split(calibration)
    assert fitted.calibration.m + held.m == calibration.m
    assert held.m == calibration.m // 5
    np.testing.assert_array_equal(held.inputs, calibration.inputs[-held.m :])
    expected = held.targets[-network.q :].T
    reached = {
        name: agreement(
            pruning.prune(network, fitted, keep, peer.make(), which).outputs(held.inputs), expected
        )
        for name, which in (("paper", peer.defaults), ("chosen", chosen.settings))
    }
    assert reached["chosen"] == chosen.agreement >= reached["paper"]
    assert chosen.tried == 1 + sum(len(values) - 1 for values in peer.tuned.values())


def test_networks_of_shared_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "conv.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))\n"
    )
    np.savez(tmp_path / "d.npz", inputs=np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32))
    path = tmp_path / "states.h5"
    extract(f"{tmp_path / 'conv.py'}:net", str(tmp_path / "d.npz"), output=path)
    with pytest.raises(InputError, match="share their weights over positions"):
        read(path)


def test_networks_are_the_same_for_a_seed_and_leave_torch_alone(tmp_path: Path) -> None:
    import torch

    (tmp_path / "again").mkdir()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    specs = [
        train("64-6-10", "digits", seed, 1, folder)
        for seed, folder in ((0, tmp_path), (0, tmp_path / "again"), (1, tmp_path))
    ]
    assert torch.equal(torch.get_rng_state(), before)
    sums = [load_network(spec).sha256 for spec in specs]
    assert sums[0] == sums[1] != sums[2]


def test_networks_that_do_not_fit_the_data_are_not_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"networks of sizes 784-10 do not fit"):
        train("784-10", "digits", 0, 1, tmp_path)


# --- summary ----------------------------------------------------------------------------------------------------------


def _score(method: str, value: float, seed: int, budget: str = "", tuned: bool = True) -> Score:
    return Score(method, budget, tuned, 6000, 0.9, seed, value, 0.9, 100, (60, 40), 1.0)


def test_means_and_spreads_are_over_seeds() -> None:
    scores = [_score("simtool", value, seed) for seed, value in enumerate((0.86, 0.87, 0.88))]
    (line,) = summary.lines(scores)
    assert line.mean == pytest.approx(0.87)
    assert line.spread == pytest.approx(0.01)
    assert percent(line.values) == "87.00 ± 1.00"
    assert percent([0.5]) == "50.00"


@pytest.mark.parametrize(("peer", "met"), [(0.875, True), (0.885, False)])
def test_ours_may_be_below_a_peer_by_the_spread_and_no_more(peer: float, met: bool) -> None:
    scores = [_score("simtool", value, seed) for seed, value in enumerate((0.86, 0.87, 0.88))]
    scores += [_score("obc", peer, seed, "ours") for seed in range(3)]
    scores += [_score("alps", 0.95, seed, "uniform") for seed in range(3)]  # not of our budgets
    (found,) = summary.beside_peers(summary.lines(scores), 3)
    assert found.met is met
    assert found.goal == pytest.approx(100 * (peer - 0.01))
    assert found.note.startswith("OBC, tuned")


def test_the_numbers_asked_for_are_those_of_case_f() -> None:
    scores = [_score("simtool", 0.87, seed) for seed in range(3)]
    on = summary.targets(summary.lines(scores), "784-64-32-16-10", "fashion-mnist", 3)
    measured = [target for target in on if target.reached is not None]
    assert [(t.goal, t.aim, t.met) for t in measured] == [(86.9, 87.3, True)]
    off = summary.targets(summary.lines(scores), "64-12-10", "digits", 3)
    assert all(target.met is None and "64-12-10 on digits" in target.note for target in off)


def test_quoted_figures_lose_what_they_say() -> None:
    assert {one.method for one in QUOTED} == {"SSS", "SPR", "MLA", "SIM", "thesis"}
    thesis = next(one for one in QUOTED if one.method == "MLA" and one.data == "20NewsGroup")
    assert thesis.points == pytest.approx(92.8 - 90.3)
    assert all(one.to_json()["points_lost"] > 0 for one in QUOTED)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_from_training_to_the_picture(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ["bench", "quality", "--quick", "--seeds", "2", "-o", str(report), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((report / "quality.json").read_text()) == {
        key: value for key, value in found.items() if key != "report"
    }
    total = 194  # of 974
    assert found["network"] == "64-12-8-10"
    assert len(found["dense"]["400"]) == found["seeds"] == 2
    assert {score["nnz"] for score in found["scores"]} == {total}
    assert all(sum(score["layers"]) == total for score in found["scores"])
    given = {(s["method"], s["budget"], s["tuned"]) for s in found["scores"]}
    wanted = {("simtool", "", True), ("simtool-convex", "", True)}
    for peer in PEERS:
        wanted |= {
            (peer.name, kind, tuned)
            for kind in peer.budgets
            for tuned in (True, False)
            if tuned or peer.tuned
        }
    assert given == wanted
    for score in found["scores"]:
        if score["method"] == "simtool":
            assert score["settings"]["recipe"] in tune.RECIPES
            assert 0.0 < score["validation"] <= 1.0
    assert all(len(method["values"]) == 2 and method["spread"] is not None for method in found["methods"])
    by_method = {(m["method"], m["budget"], m["tuned"]): m["mean"] for m in found["methods"]}
    assert by_method["simtool", "", True] > max(
        value for (_, budget, _), value in by_method.items() if budget in ("uniform", "global")
    )
    for score in found["scores"]:
        if score["budget"] == "ours":
            pair = next(s for s in found["scores"] if s["method"] == "simtool" and s["seed"] == score["seed"])
            assert score["layers"] == pair["layers"]
    page = (report / "quality.md").read_text()
    for words in (
        "| method |",
        "| SparseGPT | our layer budgets |",
        "Quoted on other data",
        "| SPR |",
        "(quality.png)",
    ):
        assert words in page
    assert (report / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "quality.svg").read_text().lstrip().startswith("<?xml")

    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--overwrite" in json.loads(again.stdout)["error"]


def test_a_network_of_ones_own(digits: dict[str, Path]) -> None:
    from simtool.demo import NETWORK

    arguments = ["bench", "quality", "--quick", "--samples", "200,100", "--network", NETWORK]
    result = CliRunner().invoke(main, [*arguments, "--weights", str(digits["weights"]), "--markdown"])
    assert result.exit_code == 0, result.output
    assert "## m = 200 samples" in result.stdout
    assert "## m = 100 samples" in result.stdout
    assert NETWORK.rsplit(":")[-1] in result.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": (1.0,)}, r"--sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": ()}, "--sparsity needs at least one"),
        ({"samples": (3,)}, "--samples must be at least 10, got 3"),
        ({"samples": ()}, "--samples needs at least one"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QualityBenchOptions(**given)


def test_data_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--samples 5000 are more than the"):
        bench_quality(QualityBenchOptions(samples=(5000,), quick=True))
    np.savez(tmp_path / "d.npz", inputs=np.zeros((20, 64), dtype=np.float32))
    with pytest.raises(InputError, match="has no classes, and the comparison is one of accuracies"):
        bench_quality(QualityBenchOptions(data=str(tmp_path / "d.npz"), quick=True))
