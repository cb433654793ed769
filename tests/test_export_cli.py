"""export: files that were run and compared before they got their name, in JSON and words, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from model_cases import free_model, layered_model
from safetensors.numpy import load_file, save_file

import simtool.export.verify as verify_module
from simtool.cli.export import command
from simtool.errors import ConvergenceError, FormatError, InputError, OptionError, OutputError
from simtool.export.onnx_model import runner
from simtool.export.safetensors_file import load_safetensors
from simtool.export.verify import difference, probes
from simtool.model import ImplicitModel
from simtool.stages.export import export
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

SUFFIXES = (".onnx", ".pt2", ".safetensors")
KEYS = {
    *("output", "format", "bytes", "dense_bytes", "sparse_bytes", "nnz", "baseline_nnz", "sparsity"),
    *("max_difference", "samples_checked", "speed_note"),
}


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return layered_model(output_map="softmax").save(tmp_path / "model.h5")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_json(model_file: Path, suffix: str, dtype: str) -> None:
    output = model_file.with_name(f"net{suffix}")
    result = call(model_file, "-o", output, "--dtype", dtype, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert set(said) >= KEYS
    model = layered_model()
    assert said["format"] == suffix[1:]
    assert said["bytes"] == output.stat().st_size
    assert (said["nnz"], said["baseline_nnz"], said["sparsity"]) == (model.nnz, 1000, model.sparsity)
    assert said["max_difference"] <= (1e-12 if dtype == "float64" else 1e-5)
    assert said["samples_checked"] >= 50
    assert [path.name for path in sorted(output.parent.iterdir())] == ["model.h5", output.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_run_elsewhere(model_file: Path, suffix: str) -> None:
    output = model_file.with_name(f"net{suffix}")
    model = layered_model(output_map="softmax")
    export(model_file, output)
    inputs = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    if suffix == ".onnx":
        found = runner(output)(inputs)
    elif suffix == ".pt2":
        found = torch.export.load(output).module()(torch.from_numpy(inputs)).numpy()
    else:
        found = load_safetensors(output).predict(inputs)
    assert difference(model.predict(inputs), found) < 1e-5


def test_words(model_file: Path) -> None:
    result = call(model_file, "-o", model_file.with_name("net.safetensors"))
    assert result.exit_code == 0, result.output
    model = layered_model()
    assert (
        f"{model.nnz} non-zeros, {100 * model.sparsity:.1f} % of the baseline's 1000 are gone"
        in result.stdout
    )
    assert "no faster" in result.stdout
    bare = replace(layered_model(), baseline_nnz=0).save(model_file.with_name("bare.h5"))
    result = call(bare, "-o", model_file.with_name("bare.onnx"), "--json")
    assert json.loads(result.stdout)["sparsity"] is None


def test_safetensors_hold_the_csr_arrays(tmp_path: Path) -> None:
    model = layered_model(inputs=300)
    export(model, tmp_path / "net.safetensors", dtype="float64")
    tensors = load_file(tmp_path / "net.safetensors")
    assert set(tensors) == {f"{m}.{part}" for m in "ABCD" for part in ("data", "indices", "indptr")}
    assert tensors["B.indices"].dtype == np.uint16
    assert tensors["C.indices"].dtype == np.uint8
    again = load_safetensors(tmp_path / "net.safetensors")
    for name in "ABCD":
        assert (getattr(again, name) != getattr(model, name)).nnz == 0
    assert again.blocks == model.blocks
    assert (again.structure, again.baseline_nnz, again.output_parents) == ("layered", 1000, ("h3", "bias"))


def test_shared_weights_are_counted_once(tmp_path: Path) -> None:
    model = replace(layered_model(), parameters_nnz=40)
    for suffix in SUFFIXES:
        said = export(model, tmp_path / f"net{suffix}")
        assert (said["nnz"], said["stored_nnz"], said["sparsity"]) == (40, model.nnz, 1 - 40 / 1000)
    assert load_safetensors(tmp_path / "net.safetensors").parameters_nnz == 40


def test_sparse_beside_dense(tmp_path: Path) -> None:
    model = layered_model(inputs=100, hidden=(60, 60))
    thin = replace(
        model,
        **{m: getattr(model, m).multiply(abs(getattr(model, m)) > 0.2).tocsr() for m in "ABCD"},
        certificates=None,
    )
    result = export(thin, tmp_path / "thin.safetensors")
    payload = sum(array.nbytes for array in load_file(tmp_path / "thin.safetensors").values())
    assert payload == result["sparse_bytes"] < result["dense_bytes"]
    dense = export(thin, tmp_path / "thin.onnx")
    assert dense["dense_bytes"] == result["dense_bytes"] < dense["bytes"] < result["dense_bytes"] + 4000


def test_cyclic_models(tmp_path: Path) -> None:
    model = free_model()
    assert export(model, tmp_path / "net.onnx")["cyclic"]
    assert export(model, tmp_path / "net.safetensors")["max_difference"] < 1e-5
    with pytest.raises(InputError, match="has cycles"):
        export(model, tmp_path / "net.pt2")
    wild = free_model(norm=30.0, activation="identity")
    with pytest.raises(ConvergenceError):
        export(wild, tmp_path / "wild.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.safetensors"]


def test_a_run_folder(digits: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    sparsify(digits["states"], run, SparsifyOptions(objective="l1", beta=4.0), engine="serial")
    result = call(run, "-o", tmp_path / "net.onnx", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert 0 < said["nnz"] < said["baseline_nnz"] == 64 * 48 + 48 + 48 * 32 + 32 + 32 * 10 + 10
    assert said["dense_bytes"] >= 4 * (64 * 48 + 48 * 32 + 32 * 10)
    assert said["sparse_bytes"] < said["dense_bytes"]
    with pytest.raises(OutputError, match="run folder"):
        export(run, _touch(run / "net.onnx"), overwrite=True)


def _touch(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite_replaces_exports_alone(model_file: Path, suffix: str) -> None:
    output = model_file.with_name(f"net{suffix}")
    export(model_file, output)
    first = output.stat()
    with pytest.raises(OutputError, match="--overwrite"):
        export(model_file, output)
    assert output.stat() == first
    export(model_file, output, dtype="float64", overwrite=True)
    assert output.stat().st_ino != first.st_ino
    foreign = model_file.with_name(f"mine{suffix}")
    if suffix == ".onnx":
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), foreign)
    elif suffix == ".pt2":
        torch.save({"w": torch.ones(2)}, foreign)
    else:
        save_file({"w": np.ones(2)}, foreign)
    for contents in (foreign.read_bytes(), b"", b"not a network"):
        foreign.write_bytes(contents)
        with pytest.raises(OutputError, match="not written by export"):
            export(model_file, foreign, overwrite=True)
        assert foreign.read_bytes() == contents


def test_refusals(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\.onnx, \.pt2, \.safetensors"):
        export(model_file, tmp_path / "net.txt")
    with pytest.raises(OptionError, match="float16"):
        export(model_file, tmp_path / "net.onnx", dtype="float16")
    with pytest.raises(InputError):
        export(tmp_path / "nothing.h5", tmp_path / "net.onnx")
    with pytest.raises(OutputError, match="does not exist"):
        export(model_file, tmp_path / "no" / "net.onnx")
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(OutputError, match="folder"):
        export(model_file, tmp_path / "d.onnx")
    linked = tmp_path / "link.onnx"
    os.symlink(tmp_path / "target.onnx", linked)
    with pytest.raises(OutputError, match="regular"):
        export(model_file, linked, overwrite=True)
    big = replace(layered_model(), D=layered_model().D * 1e300, certificates=None)
    with pytest.raises(InputError, match="float64"):
        export(big, tmp_path / "big.safetensors")
    result = call(model_file, "-o", tmp_path / "net.txt", "--json")
    assert result.exit_code == 1
    assert set(json.loads(result.stdout)) == {"error", "exit"}
    assert call(model_file).exit_code == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_differs_is_not_kept(
    model_file: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "TOLERANCE", 1e-12)
    output = model_file.with_name(f"net{suffix}")
    with pytest.raises(InputError, match=rf"net\{suffix} does not compute .*--dtype float64"):
        export(model_file, output)
    assert [path.name for path in output.parent.iterdir()] == ["model.h5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_nothing(
    model_file: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="no space left"):
        export(model_file, model_file.with_name(f"net{suffix}"))
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="no space left"):
        export(model_file, model_file.with_name(f"net{suffix}"))
    assert [path.name for path in model_file.parent.iterdir()] == ["model.h5"]


def test_damaged_safetensors(model_file: Path) -> None:
    path = model_file.with_name("net.safetensors")
    export(model_file, path)
    with pytest.raises(FormatError, match="simtool-csr"):
        load_safetensors(_foreign(model_file))
    tensors, metadata = load_file(path), _metadata(path)
    for change in (
        {"A.indices": np.full_like(tensors["A.indices"], 250)},
        {"A.indptr": tensors["A.indptr"][:-1]},
        {"C.data": np.full_like(tensors["C.data"], np.nan)},
    ):
        save_file({**tensors, **change}, path, metadata)
        with pytest.raises(FormatError, match="impossible"):
            load_safetensors(path)
    for field, text in (("blocks", "[]"), ("shapes", "{}"), ("input_shape", "3"), ("format_version", "2")):
        save_file(tensors, path, {**metadata, field: text})
        with pytest.raises(FormatError):
            load_safetensors(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError):
        load_safetensors(path)


def _metadata(path: Path) -> dict[str, str]:
    from simtool.export.safetensors_file import metadata_of

    return metadata_of(path)


def _foreign(beside: Path) -> Path:
    path = beside.with_name("foreign.safetensors")
    save_file({"w": np.ones(2)}, path)
    return path


@pytest.mark.parametrize(
    ("known", "low", "high"),
    [([0.0, 1.0], 0, 1), ([-3, 5], -3, 5), (None, -1, 1), (["a", 1], -1, 1), ([1.0, 1.0], -1, 1)],
)
def test_probes_stay_in_the_range(known: Any, low: float, high: float) -> None:
    model: ImplicitModel = replace(layered_model(), header_extra={"input_range": known})
    inputs = probes(model)
    assert inputs.shape[1:] == model.input_shape
    assert inputs.min() == low
    assert inputs.max() == high
