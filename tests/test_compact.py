"""compact: states that nothing reads and states that never change go, and the outputs stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model, random_inputs
from scipy import sparse
from torch import nn

from simtool import activations
from simtool.blocks import Block, lipschitz
from simtool.cli.compact import command
from simtool.errors import InputError, NoImplicitForm, OutputError
from simtool.model import CertificateTable, FixedPoint, ImplicitModel, load_model
from simtool.model.compact import compact_model
from simtool.networks import NetworkSpec
from simtool.report import evaluate
from simtool.stages.compact import compact
from simtool.stages.convert import convert
from simtool.stages.extract import extract
from simtool.stages.predict import predict
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

PRECISE = FixedPoint(tolerance=1e-14)
SPECS = ("relu", "tanh", "sigmoid", "leaky_relu:0.2", "silu", "softplus:1.0", "identity", "elu:1.0")


def certificates(rows: int) -> CertificateTable:
    """Every line is recognisable by its primal value."""
    return CertificateTable(
        certified=np.ones(rows, dtype=bool),
        kind=np.zeros(rows),
        primal=1.0 + np.arange(rows),
        dual=1.0 + np.arange(rows),
        relative_gap=np.zeros(rows),
        kappa_slack=np.full(rows, 0.5),
        multiplier=np.full(rows, 2.0),
        projection_error=np.zeros(rows),
    )


def wasteful(seed: int, cyclic: bool, bias: bool, blocks: int = 3) -> ImplicitModel:
    """Very sparse random rows, so that some states are dead, some constant and some inputs unread."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=blocks)
    n, p, q = int(sizes.sum()), 5 + int(bias), 3
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parts = tuple(
        Block(
            f"h{i}",
            activations.parse(str(rng.choice(SPECS))),
            int(offset),
            int(size),
            (int(size),),
            ("input",),
        )
        for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
    )
    a = rng.normal(size=(n, n)) * (rng.random((n, n)) < rng.choice([0.05, 0.15, 0.3]))
    if not cyclic:
        a = np.triu(a, 1)
    norms = np.maximum(np.abs(a).sum(axis=1), 1e-9)
    if cyclic:
        a *= (0.8 / np.maximum(lipschitz(parts) * norms, 0.8))[:, None]
    b = rng.normal(size=(n, p)) * (rng.random((n, p)) < 0.1)
    if bias:
        b[:, -1] = rng.normal(size=n) * (rng.random(n) < 0.5)
    b[:, 0] = 0.0
    return ImplicitModel(
        A=a,
        B=b,
        C=rng.normal(size=(q, n)) * (rng.random((q, n)) < 0.2),
        D=np.where(np.arange(p) == 0, 0.0, rng.normal(size=(q, p)) * (rng.random((q, p)) < 0.2)),
        blocks=parts,
        output_parents=("h0",),
        has_bias=bias,
        scaling=rng.uniform(0.5, 2.0, n),
        certificates=certificates(n + q),
        fingerprints={"network": "ab" * 32},
        baseline_nnz=1000,
        baseline_bytes=4000,
    )


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_outputs_stay_and_nothing_needless_is_left(seed: int, cyclic: bool, bias: bool) -> None:
    model = wasteful(seed, cyclic, bias)
    found = compact_model(model)
    small = found.model
    inputs = np.random.default_rng(seed).normal(size=(7, 5))
    before = model.forward(model.states_inputs(inputs), PRECISE)
    after = small.forward(small.states_inputs(inputs), PRECISE)
    np.testing.assert_allclose(after.Y, before.Y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(after.X, before.X[found.kept], rtol=1e-12, atol=1e-12)
    # the three kinds are all of the states, and the constant ones are constant
    together = np.concatenate([found.kept, found.dead, found.constant])
    assert np.array_equal(np.sort(together), np.arange(model.n))
    spread = np.ptp(before.X[found.constant], axis=1) if found.constant.size else np.zeros(0)
    assert (spread == 0.0).all()
    # states left: each leads to an output and, where constants can be folded, follows an input
    reach = (
        (sparse.csr_array(abs(small.A)) + sparse.eye_array(small.n)).toarray()
        if small.n
        else np.zeros((0, 0))
    )
    closure = np.linalg.matrix_power((reach > 0).astype(float), max(small.n, 1)) > 0
    assert ((np.abs(small.C.toarray()) > 0) @ closure).any(axis=0).all()
    if bias:
        assert (closure @ (np.abs(small.B[:, :5].toarray()) > 0)).any(axis=1).all()
    assert 0 in found.unread
    assert all(small.B[:, [j]].nnz + small.D[:, [j]].nnz == 0 for j in found.unread)
    assert small.p == model.p
    assert small.well_posedness().well_posed
    again = compact_model(small)
    assert again.model is small
    assert small.nnz <= model.nnz + found.changed.size


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans())
def test_what_belongs_to_states_and_rows_stays_with_them(seed: int, fold: bool) -> None:
    model = wasteful(seed, cyclic=True, bias=True)
    found = compact_model(model, fold_constants=fold)
    small = found.model
    assert small.scaling is not None
    assert model.scaling is not None
    np.testing.assert_array_equal(small.scaling, model.scaling[found.kept])
    assert (small.baseline_nnz, small.baseline_bytes, small.fingerprints) == (1000, 4000, model.fingerprints)
    owner = {i: b for b in model.blocks for i in range(b.rows.start, b.rows.stop)}
    for block in small.blocks:
        places = found.kept[block.rows]
        assert {owner[int(i)].name for i in places} == {block.name}
        assert block.activation == owner[int(places[0])].activation
    rows = np.concatenate([found.kept, model.n + np.arange(model.q)])
    table, old = small.certificates, model.certificates
    assert table is not None
    assert old is not None
    untouched = np.setdiff1d(np.arange(len(rows)), found.changed)
    for name in CertificateTable.columns():
        np.testing.assert_array_equal(getattr(table, name)[untouched], getattr(old, name)[rows[untouched]])
    for i in untouched:  # such a row is the very row that was certified
        indices, values = small.row(int(i))
        before, same = model.row(int(rows[i]))
        width = np.concatenate([found.kept, np.arange(model.n, model.n + model.p)])
        np.testing.assert_array_equal(width[indices], before)
        np.testing.assert_array_equal(values, same)
    for i in found.changed:
        assert not table.certified[i]
        assert np.isinf(table.primal[i])
        assert table.relative_gap[i] == 1.0
        _, before = small.row(int(i)), model.row(int(rows[i]))
        assert set(found.constant) & set(before[0])
        if i < small.n:
            block = next(b for b in small.blocks if b.offset <= i < b.rows.stop)
            assert "bias" in block.parents
        else:
            assert "bias" in small.output_parents
    if not fold:
        assert not found.constant.size
        assert not found.changed.size
    if found.kept.size < model.n:
        kept = [i for low, high in small.header_extra["compact"]["kept"] for i in range(low, high + 1)]
        assert kept == found.kept.tolist()


def chain() -> ImplicitModel:
    """x4 = relu(3), x3 = relu(2 x4 - 1), x2 = relu(x3 + u0), x1 reads x2 and nothing reads x1; x0 = tanh(u1) - x4."""
    a, b = np.zeros((5, 5)), np.zeros((5, 4))
    b[4, -1], a[3, 4], b[3, -1], a[2, 3], b[2, 0], a[1, 2] = 3.0, 2.0, -1.0, 1.0, 1.0, 1.0
    b[0, 1], a[0, 4] = 1.0, -1.0
    phi = activations.parse("relu")
    return ImplicitModel(
        A=a,
        B=b,
        C=np.array([[1.0, 0.0, 2.0, 0.0, 0.5]]),
        D=np.zeros((1, 4)),
        blocks=(
            Block("top", activations.parse("tanh"), 0, 1, (1,), ("input", "low")),
            Block("mid", phi, 1, 2, (2, 1), ("mid", "low", "input")),
            Block("low", phi, 3, 2, (1, 2), ("low", "bias")),
        ),
        output_parents=("top", "mid", "low"),
        structure="dag",
    )


def test_constants_of_constants_by_hand() -> None:
    found = compact_model(chain())
    small = found.model
    assert (found.kept.tolist(), found.dead.tolist(), found.constant.tolist()) == ([0, 2], [1], [3, 4])
    assert found.unread.tolist() == [2]
    np.testing.assert_array_equal(small.A.toarray(), np.zeros((2, 2)))
    np.testing.assert_array_equal(small.B.toarray(), [[0, 1, 0, -3], [1, 0, 0, 5]])
    np.testing.assert_array_equal(small.C.toarray(), [[1, 2]])
    np.testing.assert_array_equal(small.D.toarray(), [[0, 0, 0, 1.5]])
    assert [(b.name, b.offset, b.shape, b.parents) for b in small.blocks] == [
        ("top", 0, (1,), ("input", "bias")),
        ("mid", 1, (1,), ("mid", "input", "bias")),
    ]
    assert small.output_parents == ("top", "mid", "bias")
    assert small.header_extra["compact"] == {"states": 5, "kept": [[0, 0], [2, 2]]}
    assert small.structure == "dag"


def test_places_are_those_of_the_first_model() -> None:
    once = compact_model(chain(), fold_constants=False).model
    assert once.header_extra["compact"] == {"states": 5, "kept": [[0, 0], [2, 4]]}
    assert compact_model(once).model.header_extra["compact"] == {"states": 5, "kept": [[0, 0], [2, 2]]}


def test_a_constant_cycle_goes_if_it_is_proven() -> None:
    """Two states that feed each other and see the bias alone: x = tanh(.5 x' + 1); and the same with a gain of 5."""

    def model(gain: float) -> ImplicitModel:
        a = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, gain], [0.0, gain, 0.0]])
        return ImplicitModel(
            A=a,
            B=np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
            C=np.array([[1.0, 0.0, 0.0]]),
            D=np.zeros((1, 2)),
            blocks=(Block("h", activations.parse("tanh"), 0, 3, (3,), ("h", "input", "bias")),),
        )

    found = compact_model(model(0.5))
    assert found.constant.tolist() == [1, 2]
    x = 0.0
    for _ in range(200):
        x = np.tanh(0.5 * x + 1.0)
    np.testing.assert_allclose(found.model.B.toarray(), [[1.0, x]], rtol=1e-15)
    unproven = compact_model(model(5.0))
    assert unproven.kept.tolist() == [0, 1, 2]
    assert not unproven.model.well_posedness().well_posed


def test_without_a_bias_column_only_zeros_go() -> None:
    """x1 = tanh(0) = 0 goes. x2 = sigmoid(0) stays where it is read, and x3 = x1 - x1' of such zeros takes its reader along."""
    a = np.zeros((4, 4))
    a[0, 1], a[0, 2] = 1.0, 1.0
    a[1, 3] = 0.0
    model = ImplicitModel(
        A=a,
        B=np.array([[1.0], [0.0], [0.0], [0.0]]),
        C=np.array([[1.0, 3.0, 0.0, 0.0]]),
        D=np.zeros((1, 1)),
        blocks=(
            Block("t", activations.parse("tanh"), 0, 2, (2,), ("input", "s")),
            Block("s", activations.parse("sigmoid"), 2, 2, (2,), ()),
        ),
        has_bias=False,
    )
    found = compact_model(model)
    assert (found.kept.tolist(), found.constant.tolist(), found.dead.tolist()) == ([0, 2], [1], [3])
    u = np.random.default_rng(0).normal(size=(5, 1))
    np.testing.assert_array_equal(found.model.predict(u), model.predict(u))


def test_a_dead_cycle_takes_its_verdict_along() -> None:
    """The model is not proven because of states that no output depends on: without them it is."""
    wild = free_model(n=4, p=3, norm=30.0, activation="tanh")
    good = free_model(n=5, p=3, norm=0.5, activation="tanh")
    a = sparse.block_diag([good.A, wild.A], format="lil")
    a[6, 2] = 1.0
    model = ImplicitModel(
        A=a,
        B=sparse.vstack([good.B, wild.B]),
        C=sparse.hstack([good.C, sparse.csr_array((3, 4))]),
        D=good.D,
        blocks=(
            replace(good.blocks[0], name="good"),
            Block("wild", good.blocks[0].activation, 5, 4, (4,), ("good", "input", "bias")),
        ),
    )
    assert not model.well_posedness().well_posed
    found = compact_model(model)
    assert found.dead.tolist() == [5, 6, 7, 8]
    assert found.model.well_posedness().by == "norm"
    assert [b.name for b in found.model.blocks] == ["good"]
    u = random_inputs(good, 6)
    np.testing.assert_array_equal(found.model.forward(u).Y, good.forward(u).Y)


def test_all_states_may_go(tmp_path: Path) -> None:
    model = layered_model(certified=False)
    model = replace(model, C=sparse.csr_array(model.C.shape))
    small = compact_model(model).model
    assert (small.n, small.blocks, small.output_parents) == (0, (), ("bias",))
    u = np.zeros((2, 6))
    np.testing.assert_array_equal(small.predict(u), model.predict(u))
    again = load_model(small.save(tmp_path / "m.h5"))
    np.testing.assert_array_equal(again.predict(u), model.predict(u))


def pruned(tmp_path: Path) -> Path:
    """A model file with dead, constant and useful states."""
    model = layered_model(hidden=(7, 5, 4))
    a, b, c = model.A.toarray(), model.B.toarray(), model.C.toarray()
    c[:, 1] = 0.0  # state 1 of h3 is dead
    a[0, :] = 0.0  # state 0 of h3 sees its bias alone
    b[0, -1] = 0.7
    b[:, 3] = 0.0
    return replace(model, A=a, B=b, C=c).save(tmp_path / "model.h5")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(x) for x in arguments])


def test_the_command(tmp_path: Path) -> None:
    source, target = pruned(tmp_path), tmp_path / "small.h5"
    result = invoke(source, "-o", target, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["states"], facts["states_removed"], facts["constant_states"]) == (14, 2, 1)
    assert (facts["inputs_unread"], facts["unread_inputs"], facts["inputs"]) == (1, [3], 7)
    assert facts["nnz"] == load_model(target).nnz == facts["parameters"] < facts["nnz_before"]
    assert facts["max_output_difference"] < 1e-12
    assert (facts["rows"], facts["certified"], facts["rows_changed"]) == (17, 14, 3)
    assert (facts["well_posed"], facts["well_posed_by"], facts["norm_a_inf"] < 1) == (True, "acyclic", True)
    assert facts["model"] == str(target)
    assert facts["seconds"] > 0
    assert set(load_model(target).fingerprints) == {"network", "compacted"}
    refused = invoke(source, "-o", target, "--json")
    assert refused.exit_code == 1
    assert "--overwrite" in json.loads(refused.stdout)["error"]
    first = target.read_bytes()
    shown = invoke(source, "-o", target, "--overwrite")
    assert shown.exit_code == 0
    assert "14 of 16 states are left" in shown.stdout
    assert target.read_bytes() == first
    kept = json.loads(invoke(source, "-o", target, "--overwrite", "--keep-constants", "--json").stdout)
    assert (kept["states"], kept["rows_changed"], kept["certified"]) == (15, 0, 18)
    assert "read by this very command" in invoke(source, "-o", source, "--overwrite").stderr
    assert "does not exist" in invoke(tmp_path / "absent.h5", "-o", tmp_path / "x.h5").stderr
    assert invoke(source).exit_code == 2


def test_a_model_with_nothing_to_remove_is_the_same_file(tmp_path: Path) -> None:
    source = layered_model().save(tmp_path / "model.h5")
    facts = compact(source, tmp_path / "same.h5")
    assert (facts["states_removed"], facts["max_output_difference"]) == (0, 0.0)
    assert (tmp_path / "same.h5").read_bytes() == source.read_bytes()
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(OutputError, match="not a model file"):
        compact(source, tmp_path / "notes.h5", overwrite=True)


def test_a_model_without_outputs_is_not_compared(tmp_path: Path) -> None:
    """A dead state whose fixed point does not exist: the model given cannot be run, the compacted one can."""
    model = layered_model(hidden=(3, 2), certified=False)
    a, c = model.A.tolil(), model.C.tolil()
    a[0, 0], c[:, 0] = -1e9, 0.0
    source = replace(
        model,
        A=a,
        C=c,
        blocks=tuple(replace(b, activation=activations.parse("softplus:1.0")) for b in model.blocks),
        structure="free",
    ).save(tmp_path / "m.h5")
    a[0, 0] = 50.0
    source = replace(load_model(source), A=a).save(source, overwrite=True)
    facts = compact(source, tmp_path / "small.h5")
    assert facts["states_removed"] == 1
    assert facts["max_output_difference"] is None
    assert "no outputs on some" in facts["not_compared"]
    assert facts["well_posed"]
    assert not facts["well_posed_before"]


def test_a_sparsified_network_through_every_command(digits: dict[str, Path], tmp_path: Path) -> None:
    """Digits at a size where states die: the same outputs, and evaluate and predict take the same data."""
    sparsify(digits["states"], tmp_path / "run", SparsifyOptions(objective="l1", beta=6.0), engine="serial")
    result = invoke(tmp_path / "run", "-o", tmp_path / "small.h5", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["states_removed"] > 0
    assert facts["inputs_unread"] > 0
    assert facts["max_output_difference"] < 1e-12
    whole, small = load_model(tmp_path / "run"), load_model(tmp_path / "small.h5")
    assert small.baseline_nnz == whole.baseline_nnz == facts["baseline_nnz"]
    for name, model in (("whole", tmp_path / "run"), ("small", tmp_path / "small.h5")):
        predict(model, "digits", output=tmp_path / f"{name}.npz")
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "small.npz") as other:
        np.testing.assert_allclose(other["outputs"], one["outputs"], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(other["classes"], one["classes"])
    scores = [
        evaluate(model, "digits", output=tmp_path / f"report-{i}")
        for i, model in enumerate((tmp_path / "run", tmp_path / "small.h5"))
    ]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    assert scores[1]["nnz"] == facts["nnz"]


class Conv(nn.Module):
    """Two channels of the first convolution never leave zero."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.out, self.gated = nn.Linear(3 * 16, 2), gated
        with torch.no_grad():
            self.first.weight[1:3] = 0.0
            self.first.bias[1:3] = torch.tensor([0.5, -0.5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        if self.gated:
            x = x * torch.tanh(x)
        return self.out(x.flatten(1))


def conv() -> nn.Module:
    return Conv()


def gated() -> nn.Module:
    return Conv(gated=True)


def test_shared_weights(tmp_path: Path) -> None:
    """The implicit form of a convolution loses the states of empty channels, and the layers it can no longer be put into."""
    spec = NetworkSpec(f"{Path(__file__).resolve()}:conv", input_shape=(1, 4, 4))
    inputs = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs)
    extract(spec, f"{tmp_path / 'd.npz'}", output=tmp_path / "s.h5")
    options = SparsifyOptions(objective="least-squares")
    sparsify(tmp_path / "s.h5", tmp_path / "run", options, engine="serial")
    model = load_model(tmp_path / "run")
    assert model.layers is not None
    blocks = {b.name: b for b in model.blocks}
    first = model.blocks[-1]
    rows = first.offset + np.arange(first.size)[16:48]  # channels 1 and 2
    b = model.B.tolil()
    b[rows, :-1] = 0.0
    source = replace(model, B=b).save(tmp_path / "model.h5")
    facts = compact(source, tmp_path / "small.h5")
    small = load_model(tmp_path / "small.h5")
    assert facts["layers_dropped"]
    assert small.layers is None
    # channel 1 is constant; channel 2 is always closed, so that least-squares rows do not read it, as others that never open
    assert facts["constant_states"] == 16
    assert facts["dead_states"] >= 16
    assert facts["parameters"] <= facts["parameters_before"] + facts["rows_changed"]
    assert facts["parameters"] < facts["nnz"]
    assert small.header_extra["compact"]["layers"]["rows"] == len(model.proofs or ())
    assert blocks.keys() == {b.name for b in small.blocks}
    np.testing.assert_allclose(small.predict(inputs), load_model(source).predict(inputs), rtol=0, atol=1e-10)


def test_exact_forms_lose_the_channels_of_the_network(tmp_path: Path) -> None:
    spec = NetworkSpec(f"{Path(__file__).resolve()}:conv", input_shape=(1, 4, 4))
    convert(spec, tmp_path / "exact.h5")
    facts = compact(tmp_path / "exact.h5", tmp_path / "small.h5")
    assert facts["constant_states"] == 32
    assert facts["max_output_difference"] < 1e-12


def test_layers_alone_are_refused(tmp_path: Path) -> None:
    spec = NetworkSpec(f"{Path(__file__).resolve()}:gated", input_shape=(1, 4, 4))
    inputs = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs)
    extract(spec, f"{tmp_path / 'd.npz'}", output=tmp_path / "s.h5")
    sparsify(tmp_path / "s.h5", tmp_path / "run", SparsifyOptions(), engine="serial")
    with pytest.raises(NoImplicitForm, match="no single state can go"):
        compact(tmp_path / "run", tmp_path / "small.h5")
    assert not (tmp_path / "small.h5").exists()
    with pytest.raises(InputError, match="holds no model"):
        compact(tmp_path, tmp_path / "small.h5")
