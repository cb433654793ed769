"""extract: states files hold what the network computes, in constant memory, or are not there at all."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import networks_zoo as zoo
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from simtool.cli import main
from simtool.errors import FormatError, InputError, OptionError, OutputError
from simtool.model import ImplicitModel
from simtool.networks import NetworkSpec, network
from simtool.progress import Progress
from simtool.stages.convert import convert
from simtool.stages.extract import extract, stage
from simtool.states import open_states

ZOO = str(Path(__file__).with_name("networks_zoo.py"))


def spec(activation: str = "relu", sizes: str = "6-5-4-3") -> NetworkSpec:
    return NetworkSpec(f"{ZOO}:mlp", (f"sizes={sizes!r}", f"activation={activation!r}"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", inputs=rng.normal(size=(50, 2, 3)), labels=np.arange(50) % 3)
    return str(tmp_path / "d.npz")


class Counting(Progress):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int, unit: str, label: str) -> None:
        self.total = total

    def advance(self, count: int = 1) -> None:
        self.done += count


@pytest.mark.parametrize("activation", ["relu", "silu", "softplus", "leaky_relu"])
def test_states_are_the_networks(tmp_path: Path, data: str, activation: str) -> None:
    output, progress = tmp_path / "s.h5", Counting()
    result = extract(
        spec(activation), data, output=output, samples=20, seed=4, batch_size=7, progress=progress
    )
    assert (progress.total, progress.done) == (20, 20)
    assert {key: result[key] for key in ("samples", "inputs", "states", "outputs")} == {
        "samples": 20, "inputs": 7, "states": 9, "outputs": 3,
    }  # fmt: skip
    assert [block["size"] for block in result["blocks"]] == [4, 5]
    assert result["bytes"] == output.stat().st_size
    assert result["max_reconstruction_error"] < 1e-6
    chosen = np.sort(np.random.default_rng(4).choice(50, 20, replace=False))
    inputs = np.load(data)["inputs"][chosen].reshape(20, 6).astype(np.float32)
    module = zoo.mlp("6-5-4-3", activation).eval()
    with torch.no_grad():
        z1 = module[0](torch.from_numpy(inputs))
        x1 = module[1](z1)
        z2 = module[2](x1)
        x2 = module[3](z2)
        y = module[4](x2)
    with open_states(output) as states:
        assert (states.n, states.p, states.q, states.m) == (9, 7, 3, 20)
        assert states.U.dtype == np.float32
        assert states.has_bias
        np.testing.assert_array_equal(states.U[:-1], inputs.T)
        np.testing.assert_array_equal(states.U[-1], 1)
        np.testing.assert_allclose(states.Z[()], np.c_[z2, z1].T, atol=1e-6)
        np.testing.assert_allclose(states.X[()], np.c_[x2, x1].T, atol=1e-6)
        np.testing.assert_allclose(states.Y[()], y.T, atol=1e-6)
        np.testing.assert_array_equal(states.indices, chosen)
        np.testing.assert_array_equal(states.labels, chosen % 3)
        np.testing.assert_array_equal(states.scaling, 1)
        assert states.seed == 4
        assert states.data["split"] is None
        assert states.input_range == (inputs.min(), inputs.max())
        assert states.baseline_nnz == sum(p.numel() for p in module.parameters())
        assert states.baseline_bytes == 4 * states.baseline_nnz
        teacher = states.teacher()
        z = teacher["A"] @ states.X[()] + teacher["B"] @ states.U[()]
        np.testing.assert_allclose(z, states.Z[()], atol=1e-5)
        np.testing.assert_allclose(
            teacher["C"] @ states.X[()] + teacher["D"] @ states.U[()], states.Y[()], atol=1e-5
        )
        assert len(states.content_sha256()) == 64


def test_batches_do_not_matter(tmp_path: Path, data: str) -> None:
    hashes = set()
    for size in (1, 8, 50):
        extract(spec("tanh"), data, output=tmp_path / "s.h5", batch_size=size, overwrite=True)
        with open_states(tmp_path / "s.h5") as states:
            hashes.add((np.round(states.Z[()], 5) + 0.0).tobytes())
            assert states.sensitivity_samples == 50
    assert len(hashes) == 1


def finite_difference(model: ImplicitModel, u: np.ndarray, state: int) -> float:
    """E ||dy/dz_state||^2 by moving one pre-activation: the bias of that state."""
    step = np.zeros(model.B.shape)
    step[state, -1] = 1e-6
    moved = [
        ImplicitModel(A=model.A, B=model.B + sign * step, C=model.C, D=model.D, blocks=model.blocks)
        .forward(u)
        .Y
        for sign in (1, -1)
    ]
    return float((((moved[0] - moved[1]) / 2e-6) ** 2).sum(axis=0).mean())


@pytest.mark.parametrize(
    ("activation", "rescale"),
    [("relu", "none"), ("relu", "neuron"), ("relu", "uniform"), ("leaky_relu", "layer"), ("silu", "none")],
)
def test_rescaled_states_describe_the_same_function(
    tmp_path: Path, data: str, activation: str, rescale: str
) -> None:
    extract(spec(activation), data, output=tmp_path / "plain.h5")
    result = extract(spec(activation), data, output=tmp_path / "s.h5", rescale=rescale, batch_size=16)
    if rescale != "none":
        assert result["norm_a_inf"] < 1
    with open_states(tmp_path / "plain.h5") as plain, open_states(tmp_path / "s.h5") as states:
        g = states.scaling[:, None]
        np.testing.assert_allclose(states.X[()], g * plain.X[()], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(states.Z[()], g * plain.Z[()], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(states.Y[()], plain.Y[()], atol=1e-6)
        np.testing.assert_array_equal(states.U[()], plain.U[()])
        teacher = states.teacher()
        model = ImplicitModel(**teacher, blocks=states.blocks)
        forward = model.forward(states.U[()])
        np.testing.assert_allclose(forward.X, states.X[()], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(forward.Y, states.Y[()], atol=1e-5)
        np.testing.assert_allclose(states.sensitivity, plain.sensitivity / states.scaling**2, rtol=1e-5)
        u = states.U[()].astype(np.float64)
        for state in (0, 4, 8):
            assert states.sensitivity[state] == pytest.approx(
                finite_difference(model, u, state), rel=1e-4, abs=1e-12
            )


def test_uniform_is_the_papers_formula(tmp_path: Path, data: str) -> None:
    extract(spec("relu"), data, output=tmp_path / "s.h5", rescale="uniform", gamma=2.0)
    weights = [layer.weight.detach().numpy() for layer in zoo.mlp("6-5-4-3") if hasattr(layer, "weight")]
    c = 2.0 * max(np.abs(w).sum(axis=1).max() for w in weights)
    with open_states(tmp_path / "s.h5") as states:
        np.testing.assert_allclose(states.scaling, np.r_[np.full(4, c**-2), np.full(5, 1 / c)], rtol=1e-6)
        np.testing.assert_allclose(states.teacher()["A"].toarray()[:4, 4:], weights[1] / c, rtol=1e-6)


@pytest.mark.parametrize("rescale", ["uniform", "layer", "neuron"])
def test_rescaling_needs_homogeneous_activations(tmp_path: Path, data: str, rescale: str) -> None:
    with pytest.raises(OptionError, match="silu"):
        extract(spec("silu"), data, output=tmp_path / "s.h5", rescale=rescale)
    assert not (tmp_path / "s.h5").exists()


def test_wrong_options(tmp_path: Path, data: str) -> None:
    output = tmp_path / "s.h5"
    for arguments, message in (
        ({"rescale": "max"}, "none, uniform, layer, neuron"),
        ({"rescale": "uniform", "gamma": 1.0}, "above 1"),
        ({"samples": 51}, r"1\.\.50"),
        ({"samples": 0}, r"1\.\.50"),
        ({"batch_size": 0}, "above 0"),
    ):
        with pytest.raises(OptionError, match=message):
            extract(spec(), data, output=output, **arguments)
    with pytest.raises(InputError, match="no activation"):
        extract(spec(sizes="6-3"), data, output=output)
    np.savez(tmp_path / "other.npz", inputs=np.ones((4, 5)))
    with pytest.raises(InputError, match="shape"):
        extract(spec(), str(tmp_path / "other.npz"), output=output)
    onnx = zoo.export(zoo.mlp(), tmp_path / "n.onnx", (6,))
    with pytest.raises(InputError, match=r"\(5,\).*\(6,\)"):
        extract(str(onnx), str(tmp_path / "other.npz"), output=output)
    assert not output.exists()


def test_few_samples_warn(tmp_path: Path, data: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="simtool"):
        extract(spec(), data, output=tmp_path / "a.h5", samples=7)
        assert not caplog.text
        extract(spec(), data, output=tmp_path / "b.h5", samples=6)
    assert "6 samples are fewer than the 7 values" in caplog.text


def test_outputs_are_protected(tmp_path: Path, data: str) -> None:
    output = tmp_path / "s.h5"
    output.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        extract(spec(), data, output=output)
    np.savez(tmp_path / "nan.npz", inputs=np.full((9, 6), np.nan))
    with pytest.raises(InputError, match="sample 0"):
        extract(spec(), str(tmp_path / "nan.npz"), output=tmp_path / "nan.h5")
    with pytest.raises(OutputError, match="not a states file"):
        extract(spec(), data, output=output, overwrite=True)
    assert output.read_text() == "precious"
    output.unlink()
    with pytest.raises(OutputError, match="does not exist"):
        extract(spec(), data, output=tmp_path / "no" / "s.h5")
    with pytest.raises(OutputError, match="folder"):
        extract(spec(), data, output=tmp_path, overwrite=True)
    extract(spec(), data, output=output)
    extract(spec(), data, output=output, overwrite=True)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_full_disk(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(OutputError, match="MiB left"):
        extract(spec(), data, output=tmp_path / "s.h5")
    code = (
        "import resource, sys; from simtool.stages.extract import extract; from simtool.networks import NetworkSpec\n"
        "from simtool.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        f"try: extract(NetworkSpec({ZOO + ':mlp'!r}), {data!r}, output={str(tmp_path / 's.h5')!r})\n"
        "except OutputError as error: print('refused', error); sys.exit(0)\n"
        "sys.exit('nothing was raised')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert not list(tmp_path.glob("*.h5"))
    assert not list(tmp_path.glob(".s.h5*"))


def test_nan_states_name_block_and_sample(tmp_path: Path, data: str) -> None:
    state = zoo.mlp().state_dict()
    state["0.weight"] *= 1e30
    state["2.weight"] *= 1e30
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"block relu_2 hold NaN or infinity at sample \d+"):
        extract(NetworkSpec(f"{ZOO}:mlp", weights=tmp_path / "w.pt"), data, output=tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()


def test_broken_recording_is_noticed(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = network.collect

    def overwritten(graph, tensors):
        record = honest(graph, tensors)
        return network.Recorded(record.x, record.x, record.y)  # as if relu had worked in place on Z

    def shifted(graph, tensors):
        record = honest(graph, tensors)
        return network.Recorded(record.z, record.x, record.y + 0.01)

    from simtool.networks import outline

    monkeypatch.setattr(outline, "collect", overwritten)
    with pytest.raises(InputError, match=r"X = phi\(Z\) fails for block silu_2"):
        extract(spec("silu"), data, output=tmp_path / "s.h5")
    with pytest.raises(InputError, match="do not give what it computes for relu_2"):
        extract(spec("relu"), data, output=tmp_path / "s.h5")
    monkeypatch.setattr(outline, "collect", shifted)
    with pytest.raises(InputError, match="for the output"):
        extract(spec("relu"), data, output=tmp_path / "s.h5")


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    network_path = zoo.export(zoo.mlp("64-16-4"), tmp_path / "n.onnx", (64,))
    peaks = []
    for count in (2_000, 16_000):
        rows = np.random.default_rng(0).integers(0, 256, (count, 64), dtype=np.uint8)
        np.savez(tmp_path / f"{count}.npz", inputs=rows)
        del rows
        tracemalloc.start()
        extract(
            str(network_path), str(tmp_path / f"{count}.npz"), output=tmp_path / f"{count}.h5", batch_size=256
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 8 times the samples: the only growth allowed is the list of indices, 8 bytes a sample (some copies of it).
    assert peaks[1] < peaks[0] + 14_000 * 8 * 8


def test_implicit_model_as_the_network(tmp_path: Path, data: str) -> None:
    convert(spec("tanh"), tmp_path / "m.h5")
    extract(spec("tanh"), data, output=tmp_path / "net.h5")
    extract(str(tmp_path / "m.h5"), data, output=tmp_path / "model.h5")
    with open_states(tmp_path / "net.h5") as one, open_states(tmp_path / "model.h5") as two:
        for name in ("U", "Z", "X", "Y"):
            np.testing.assert_allclose(getattr(one, name)[()], getattr(two, name)[()], atol=1e-5)
        assert [b.parents for b in one.blocks] == [b.parents for b in two.blocks]
        assert (one.baseline_nnz, one.baseline_bytes) == (two.baseline_nnz, two.baseline_bytes)
        np.testing.assert_allclose(one.sensitivity, two.sensitivity, rtol=1e-5)
        assert one.network_sha256 != two.network_sha256


def test_cyclic_implicit_model(tmp_path: Path, data: str) -> None:
    from simtool import activations
    from simtool.blocks import Block

    rng = np.random.default_rng(1)
    a = rng.normal(size=(5, 5))
    a *= 0.8 / np.abs(a).sum(axis=1, keepdims=True)
    block = Block("state", activations.make("relu"), 0, 5, (5,), ("state", "input", "bias"))
    model = ImplicitModel(
        A=a,
        B=rng.normal(size=(5, 7)),
        C=rng.normal(size=(2, 5)),
        D=np.zeros((2, 7)),
        blocks=(block,),
        output_parents=("state",),
    )
    model.save(tmp_path / "m.h5")
    extract(str(tmp_path / "m.h5"), data, output=tmp_path / "s.h5")
    result = extract(str(tmp_path / "m.h5"), data, output=tmp_path / "r.h5", rescale="neuron")
    assert result["norm_a_inf"] < 1
    with open_states(tmp_path / "s.h5") as states:
        np.testing.assert_allclose(a @ states.X[()] + model.B @ states.U[()], states.Z[()], atol=1e-5)
        u = states.U[()].astype(np.float64)
        assert states.sensitivity[2] == pytest.approx(finite_difference(model, u, 2), rel=1e-4)
        assert states.baseline_nnz == model.nnz
    with pytest.raises(OptionError, match="cyclic"):
        extract(str(tmp_path / "m.h5"), data, output=tmp_path / "u.h5", rescale="uniform")


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def states_file(tmp_path: Path, data: str) -> Path:
    extract(spec(), data, output=tmp_path / "s.h5")
    return tmp_path / "s.h5"


def tamper(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def header_with(**values):
    def change(file: h5py.File) -> None:
        header = {**json.loads(file["header"][()].tobytes()), **values}
        del file["header"]
        file["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    return change


def replaced(name: str, value):
    def change(file: h5py.File) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header_with(samples=49), "the header says"),
        (header_with(samples=10**12), "the header says"),
        (header_with(outputs=0), "above 0"),
        (header_with(input_shape=[5]), "does not give 7 rows"),
        (header_with(output_map="exec"), "unknown output map"),
        (header_with(blocks=[]), "cover 0 states"),
        (header_with(data=None), "cannot be used"),
        (replaced("Z", None), "lacks the dataset 'Z'"),
        (replaced("scaling", np.zeros(9)), "positive"),
        (replaced("sensitivity", np.full(9, np.nan)), "finite"),
        (replaced("labels", np.zeros(3)), "labels have shape"),
        (replaced("X", h5py.ExternalLink("elsewhere.h5", "X")), "link"),
        (replaced("X", h5py.SoftLink("/Z")), "link"),
        (lambda file: file.attrs.__setitem__("format_version", 99), "99"),
    ],
)
def test_tampered_states_are_refused(states_file: Path, change, message: str) -> None:
    tamper(states_file, change)
    with pytest.raises(FormatError, match=message), open_states(states_file):
        pass


def test_tampered_teacher_is_refused(states_file: Path) -> None:
    tamper(states_file, replaced("teacher/A/indices", np.full(20, 99, dtype=np.int32)))
    with open_states(states_file) as states, pytest.raises(FormatError, match="teacher's A"):
        states.teacher()


def test_missing_foreign_and_truncated(tmp_path: Path, states_file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"), open_states(tmp_path / "none.h5"):
        pass
    (tmp_path / "cut.h5").write_bytes(states_file.read_bytes()[:3000])
    with pytest.raises(FormatError), open_states(tmp_path / "cut.h5"):
        pass
    convert(spec(), tmp_path / "m.h5")
    with pytest.raises(FormatError, match="not a states file"), open_states(tmp_path / "m.h5"):
        pass


def test_content_hash_follows_content_alone(tmp_path: Path, data: str, states_file: Path) -> None:
    with open_states(states_file) as states:
        first = states.content_sha256()
    extract(spec(), data, output=tmp_path / "again.h5", batch_size=9)
    with open_states(tmp_path / "again.h5") as states:
        again = states.content_sha256() if np.array_equal(states.Z[()], states.Z[()]) else ""
    extract(spec(), data, output=tmp_path / "other.h5", samples=30)
    with open_states(tmp_path / "other.h5") as states:
        other = states.content_sha256()
    assert len({first, other}) == 2
    assert len(again) == 64
    tamper(states_file, lambda file: file["Z"].__setitem__((0, 0), 5.0))
    with open_states(states_file) as states:
        assert states.content_sha256() != first


# --- the command ----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, data: str) -> None:
    call = ["extract", f"{ZOO}:mlp", "--data", data, "--samples", "20", "-o", str(tmp_path / "s.h5")]
    result = CliRunner().invoke(main, [*call, "--json", "--model-arg", "activation=tanh"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert {
        "samples",
        "inputs",
        "states",
        "outputs",
        "blocks",
        "bytes",
        "seconds",
        "max_reconstruction_error",
    } <= set(content)
    again = CliRunner().invoke(main, [*call, "--json"])
    assert again.exit_code == 1
    assert json.loads(again.stdout)["exit"] == 1
    human = CliRunner().invoke(main, [*call, "--overwrite"])
    assert human.exit_code == 0
    assert "relu_2" in human.stdout
    assert CliRunner().invoke(main, [*call, "--input-shape", "a,b"]).exit_code == 2
    assert CliRunner().invoke(main, ["extract", f"{ZOO}:mlp"]).exit_code == 2


def test_overwrite_replaces_states_alone(tmp_path: Path, data: str) -> None:
    for path in (Path(data), tmp_path / "notes.h5"):
        if not path.exists():
            path.write_text("mine")
        before = path.read_bytes()
        with pytest.raises(OutputError, match="not replace"):
            extract(spec(), data, output=path, overwrite=True)
        assert path.read_bytes() == before
    extract(spec(), data, output=tmp_path / "s.h5")
    extract(spec(), data, output=tmp_path / "s.h5", overwrite=True)


def test_samples_the_network_does_not_take(tmp_path: Path, data: str) -> None:
    convert(spec(sizes="7-5-3"), tmp_path / "m.h5")
    with pytest.raises(InputError, match=r"^a sample has 6 values, the network takes 7"):
        extract(str(tmp_path / "m.h5"), data, output=tmp_path / "s.h5")


def test_extract_prints_nothing_but_its_result(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.ones((9, 6), dtype=np.float32))
    arguments = ["extract", f"{ZOO}:mlp", "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "s.h5")]
    assert CliRunner().invoke(main, arguments).exit_code == 0  # a warning would be an error here
    for value in ("-1", "x"):
        refused = CliRunner().invoke(main, [*arguments, "--overwrite", "--seed", value])
        assert refused.exit_code == 2
    empty = CliRunner().invoke(main, ["extract", f"{ZOO}:mlp", "--data", "", "-o", str(tmp_path / "e.h5")])
    assert empty.exit_code == 1
    assert "no data was given" in empty.output
