"""The README is executed: its session and its library example run as printed, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from simtool.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def folder(case_f: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trained").mkdir()
    for name in ("onnx", "weights"):
        shutil.copy(case_f[name], tmp_path / "trained" / case_f[name].name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_session_runs_as_printed(folder: Path) -> None:
    session = re.search(r"```console\n(.*?)```", README, re.DOTALL)
    assert session is not None
    commands = re.findall(r"^\$ simtool (.*)$", session[1], re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["extract", "sparsify", "evaluate"]
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command))
        assert result.exit_code == 0, result.output
    assert (folder / "report" / "report.html").exists()
    # What the README promises of the last command, allowing for another machine's training.
    accuracy = re.search(r"accuracy +([\d.]+) % +([\d.]+) %", result.stdout)
    assert accuracy is not None
    assert abs(float(accuracy[1]) - float(accuracy[2])) < 1.0
    assert "certified rows  122 of 122" in result.stdout


@pytest.mark.slow
def test_the_library_example_runs_as_printed(folder: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    names: dict[str, object] = {}
    exec(compile(example[1], "README.md", "exec"), names)
    model = names["model"]
    assert model.well_posedness().by == "acyclic"  # type: ignore[attr-defined]
    assert (folder / "report" / "report.json").exists()


def test_the_two_commands_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
