"""The command line end to end: what a user types, what comes back, and every mistake as one message."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from simtool.cli import COMMANDS, main
from simtool.demo import NETWORK

README = Path(__file__).parents[1] / "README.md"


def run(*arguments: Any) -> Result:
    """The command line in this process; fails the test on a traceback."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def fails(code: int, pattern: str, *arguments: Any) -> None:
    """The command ends with ``code`` and a message that matches, as text and as JSON."""
    plain = run(*arguments)
    assert plain.exit_code == code, plain.output
    assert re.search(pattern, plain.stderr), plain.stderr
    if code == 1:
        parsed = json.loads(run(*arguments, "--json").stdout)
        assert parsed["exit"] == 1
        assert re.search(pattern, parsed["error"])


# --- the main job ------------------------------------------------------------------------------------------------------


def test_main_job_through_the_command_line(digits: dict[str, Path], tmp_path: Path) -> None:
    network = [NETWORK, "--weights", digits["weights"]]
    states, model_run, report = tmp_path / "states.h5", tmp_path / "run", tmp_path / "report"
    extracted = run(
        "extract", *network, "--data", "digits", "--samples", 400, "-o", states, "--json", "--quiet"
    )
    assert extracted.exit_code == 0, extracted.output
    facts = json.loads(extracted.stdout)
    assert (facts["samples"], facts["inputs"], facts["states"], facts["outputs"]) == (400, 65, 80, 10)
    assert facts["max_reconstruction_error"] < 1e-5

    solved = run("sparsify", states, "--kappa", "0.1", "-o", model_run, "--json", "--quiet")
    assert solved.exit_code == 0, solved.output
    assert json.loads(solved.stdout)["certified"] == 90

    measured = run(
        *("evaluate", model_run, "--data", "digits", "--baseline", *network),
        *("--attack", "fgsm", "--epsilon", "0.004,0.02", "-o", report, "--json", "--quiet"),
    )
    assert measured.exit_code == 0, measured.output
    facts = json.loads(measured.stdout)
    assert set(facts["robust_accuracy"]) == {"0.004", "0.02"}
    assert facts["task"] == "classification"
    assert {"report.json", "report.html"} <= {p.name for p in report.iterdir()}

    predicted = run("predict", model_run, "--data", "digits", "-o", tmp_path / "y.npz")
    assert predicted.exit_code == 0, predicted.output
    with np.load(tmp_path / "y.npz") as arrays:
        assert arrays["outputs"].shape == (359, 10)

    converted = run("convert", *network, "-o", tmp_path / "exact.h5")
    assert converted.exit_code == 0, converted.output
    for what in (states, model_run, model_run / "model.h5", tmp_path / "exact.h5"):
        shown = run("inspect", what)
        assert shown.exit_code == 0, shown.output
    assert run("inspect", *network).exit_code == 0
    row = json.loads(run("inspect", model_run, "--row", 3, "--json").stdout)
    assert row["certificate"]["certified"] is True


def test_an_implicit_model_is_a_network_too(digits: dict[str, Path], tmp_path: Path) -> None:
    """SIM Algorithm 1, fixed-point branch: states of a cyclic model are its own fixed points."""
    free, again = tmp_path / "free", tmp_path / "again.h5"
    assert run("sparsify", digits["states"], "--structure", "free", "-o", free).exit_code == 0
    result = run(
        "extract", free / "model.h5", "--data", "digits", "--samples", 200, "-o", again, "--json", "--quiet"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["states"] == 80
    assert run("sparsify", again, "--structure", "free", "-o", tmp_path / "second").exit_code == 0


def test_uncertified_rows_give_exit_code_three(digits: dict[str, Path], tmp_path: Path) -> None:
    """Clarabel at 1e-10 cannot prove 1e-12 on every row; the model is written all the same."""
    result = run(
        *("sparsify", digits["states"], "--objective", "l1", "--beta", "4", "--tol", "1e-12"),
        *("--solver", "clarabel", "--engine", "serial", "-o", tmp_path / "run"),
    )
    assert result.exit_code in (0, 3)
    if result.exit_code == 3:
        assert "rows are not certified" in result.stderr
    assert (tmp_path / "run" / "model.h5").exists()


def test_demo_runs_and_shows_where_the_report_lies(tmp_path: Path) -> None:
    first = run("demo", "-o", tmp_path / "demo", "--quiet")
    assert first.exit_code == 0, first.output
    assert "90 of 90 rows certified" in first.stdout
    assert (tmp_path / "demo" / "report" / "report.html").exists()
    assert run("demo", "-o", tmp_path / "demo", "--quiet").exit_code == 0
    (tmp_path / "mine").mkdir()
    fails(1, "not an earlier demo", "demo", "-o", tmp_path / "mine")


def test_python_m_simtool_and_version() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "simtool", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"simtool, version \d+\.\d+\.\d+\n", shown.stdout)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_and_is_documented(name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert f"Example: simtool {name}" in shown.output
    assert f"simtool {name}" in README.read_text()


# --- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["sparsify"],
        ["sparsify", "s.h5", "-o", "r", "--no-such-option"],
        ["sparsify", "s.h5", "-o", "r", "--kappa", "many"],
        ["sparsify", "s.h5", "-o", "r", "--objective", "ridge"],
        ["no-such-command"],
    ],
)
def test_what_click_cannot_parse_is_exit_two(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def _truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:3000])


def _newer(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99


def _foreign(path: Path, source: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def _foreign_hdf5(path: Path, source: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _external_link(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        del file["Z"]
        file["Z"] = h5py.ExternalLink("/etc/passwd", "/Z")


def _soft_link(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        del file["Z"]
        file["Z"] = h5py.SoftLink("/X")


def _virtual(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        shape = file["Z"].shape
        del file["Z"]
        layout = h5py.VirtualLayout(shape=shape, dtype="f4")
        layout[:] = h5py.VirtualSource("elsewhere.h5", "Z", shape=shape)
        file.create_virtual_dataset("Z", layout)


def _external_data(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        shape = file["Z"].shape
        del file["Z"]
        file.create_dataset("Z", shape=shape, dtype="f4", external=[("/etc/passwd", 0, 10**6)])


def _object(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        del file["Z"]
        file.create_dataset("Z", data=["a", "b"], dtype=h5py.string_dtype())


def _huge(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        del file["Z"]
        file.create_dataset("Z", shape=(80, 10**11), dtype="f4", chunks=(80, 1000))


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (_truncated, "truncated"),
        (_newer, "format version 99"),
        (_foreign, "not a readable HDF5 file"),
        (_foreign_hdf5, "not a states file"),
        (_external_link, "soft or external link"),
        (_soft_link, "soft or external link"),
        (_virtual, "virtual dataset"),
        (_external_data, "external file"),
        (_object, "element type"),
        (_huge, "claims shape"),
    ],
)
def test_states_files_that_cannot_be_trusted(
    make: Callable[[Path, Path], None], pattern: str, digits: dict[str, Path], tmp_path: Path
) -> None:
    make(tmp_path / "bad.h5", digits["states"])
    fails(1, pattern, "sparsify", tmp_path / "bad.h5", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    fails(1, "absent.h5 does not exist", "sparsify", tmp_path / "absent.h5", "-o", tmp_path / "run")
    fails(1, "absent", "evaluate", tmp_path / "absent", "--data", "digits", "-o", tmp_path / "report")
    fails(1, "absent.onnx", "extract", tmp_path / "absent.onnx", "--data", "digits", "-o", tmp_path / "s.h5")
    fails(1, "absent.npz", "extract", NETWORK, "--data", tmp_path / "absent.npz", "-o", tmp_path / "s.h5")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/simtool-was-tricked"),))


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pkl", "net.pt2"])
def test_networks_that_run_code_need_trust(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(_Evil()))
    fails(1, "--trust-model", "extract", tmp_path / name, "--data", "digits", "-o", tmp_path / "s.h5")
    assert not Path("/tmp/simtool-was-tricked").exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(_Evil()))
    result = run(
        "extract", NETWORK, "--weights", tmp_path / "w.pt", "--data", "digits", "-o", tmp_path / "s.h5"
    )
    assert result.exit_code == 1
    assert not Path("/tmp/simtool-was-tricked").exists()


def test_an_unknown_onnx_operator_is_named_with_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Softsign", ["x"], ["y"], name="odd_one")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 64]) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "odd.onnx")
    for command in (["inspect"], ["extract", "--data", "digits", "-o", tmp_path / "s.h5"]):
        result = run(command[0], tmp_path / "odd.onnx", *command[1:])
        assert result.exit_code == 1
        assert "Softsign" in result.stderr
        assert "odd_one" in result.stderr


def test_data_with_nan_is_refused(digits: dict[str, Path], tmp_path: Path) -> None:
    inputs = np.zeros((10, 64), dtype=np.float32)
    inputs[3, 5] = np.nan
    np.savez(tmp_path / "bad.npz", inputs=inputs)
    network = [NETWORK, "--weights", digits["weights"]]
    fails(1, "sample 3", "extract", *network, "--data", tmp_path / "bad.npz", "-o", tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("samples", [0, -3, 100_000])
def test_sample_counts_outside_the_data_are_refused(samples: int, tmp_path: Path) -> None:
    fails(
        1, str(samples), "extract", NETWORK, "--data", "digits", "--samples", samples, "-o", tmp_path / "s.h5"
    )


def test_labels_that_are_named_but_missing(digits: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.zeros((10, 64), dtype=np.float32))
    network = [NETWORK, "--weights", digits["weights"]]
    data = f"{tmp_path / 'd.npz'}:inputs,classes"
    fails(1, "classes", "extract", *network, "--data", data, "-o", tmp_path / "s.h5")


def test_kappa_outside_its_range(digits: dict[str, Path], tmp_path: Path) -> None:
    fails(
        *(1, r"kappa must be in \[0, 1\) for a free structure .* got 1\.2"),
        *("sparsify", digits["states"], "--structure", "free", "--kappa", "1.2", "-o", tmp_path / "run"),
    )
    fails(
        1,
        "--kappa must be finite and >= 0",
        "sparsify",
        digits["states"],
        "--kappa=-1",
        "-o",
        tmp_path / "run",
    )
    assert not (tmp_path / "run").exists()


def test_a_changed_spec_names_the_field(digits: dict[str, Path], tmp_path: Path) -> None:
    assert run("sparsify", digits["states"], "--kappa", "0.5", "-o", tmp_path / "run").exit_code == 0
    before = (tmp_path / "run" / "model.h5").read_bytes()
    fails(1, r"options\.kappa = 0\.5", "sparsify", digits["states"], "--kappa", "0.6", "-o", tmp_path / "run")
    assert (tmp_path / "run" / "model.h5").read_bytes() == before


def test_outputs_that_cannot_be_written(digits: dict[str, Path], tmp_path: Path) -> None:
    network = [NETWORK, "--weights", digits["weights"]]
    (tmp_path / "file").write_text("x")
    nowhere = tmp_path / "file" / "below"
    fails(1, "below|file", "sparsify", digits["states"], "-o", nowhere)
    fails(1, "file", "extract", *network, "--data", "digits", "-o", nowhere / "s.h5")
    fails(1, "exists already", "extract", *network, "--data", "digits", "-o", digits["states"])
    assert run("sparsify", digits["states"], "-o", tmp_path / "run").exit_code == 0
    fails(1, "file", "evaluate", tmp_path / "run", "--data", "digits", "-o", nowhere)
    fails(1, "file", "predict", tmp_path / "run", "--data", "digits", "-o", nowhere / "y.npz")
    assert (tmp_path / "file").read_text() == "x"
