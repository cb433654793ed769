"""The import arrows between the parts of simtool, read from the source, and what an import may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simtool

ROOT = Path(simtool.__file__).parent

# A part may import the parts named here, and itself. "words" are the modules everything shares.
WORDS = {
    *(
        "errors",
        "activations",
        "blocks",
        "layers",
        "progress",
        "strict_json",
        "importing",
        "environment",
        "row_status",
        "temporary",
    ),
    "__init__",
}
ALLOWED: dict[str, set[str]] = {
    # the mathematics, in the order of its arrows
    "penalty": set(),
    "row_space": set(),
    "design": set(),
    "problem": {"design", "penalty", "row_space"},
    "dual_bound": {"penalty"},
    "certificate": {"penalty", "dual_bound", "row_space", "problem"},
    "equality": {"certificate", "problem"},
    "screening": {"penalty", "dual_bound", "design", "problem", "certificate"},
    "solvers": {
        "penalty",
        "row_space",
        "design",
        "screening",
        "dual_bound",
        "problem",
        "certificate",
        "equality",
    },
    "budget": {"solvers"},
    # the infrastructure
    "hdf5": set(),
    "states": {"hdf5"},
    "data": {"hdf5"},
    "model": {"hdf5"},
    "networks": {"model", "hdf5"},
    "rescale": {"networks", "model"},
    "inference": {"model"},
    "engines": set(),
    "export": {"model", "hdf5"},
    # above both
    "stages": {
        *("penalty", "dual_bound", "design", "problem", "certificate", "equality", "screening", "solvers"),
        *("budget", "hdf5", "states", "data", "model", "networks", "rescale", "engines", "export"),
    },
    "report": {"model", "networks", "stages", "hdf5"},
    # measures all of it; nothing imports it but the command line
    "bench": {
        *("penalty", "row_space", "design", "problem", "certificate", "solvers"),
        *("stages", "states", "data", "networks", "model", "inference", "export"),
    },
    "cli": {"stages", "engines", "report", "networks", "model", "demo", "bench"},
    "demo": {"stages", "report", "networks", "data"},
    "__main__": {"cli"},
}
FORBIDDEN_AT_IMPORT = (
    "torch",
    "cvxpy",
    "numba",
    "ray",
    "h5py",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "sklearn",
)


def _part(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """The parts of simtool that a file imports, also inside functions, not for types alone."""
    found: set[str] = set()
    typing_only: set[ast.AST] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "simtool":
                names = [f"simtool.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("simtool.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        return  # the public names; loaded lazily, checked below
    allowed = WORDS if part in WORDS else WORDS | ALLOWED[part] | {part}
    wrong = _imports(path) - allowed
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; {part} may import {sorted(allowed)}"


def test_every_part_is_on_the_map() -> None:
    parts = {_part(path) for path in ROOT.rglob("*.py")}
    assert parts <= set(ALLOWED) | WORDS


def test_modules_hold_one_idea() -> None:
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in ROOT.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import simtool",
        "from click.testing import CliRunner; from simtool.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0",
    ],
    ids=["import", "help"],
)
def test_import_and_help_stay_light(code: str) -> None:
    check = f"{code}; import sys; print([n for n in {FORBIDDEN_AT_IMPORT!r} if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_solver_workers_import_neither_torch_nor_cvxpy() -> None:
    check = (
        "import simtool.stages.sparsify.work, simtool.solvers.native, sys; "
        "print([n for n in ('torch', 'cvxpy', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    for name in simtool.__all__:
        assert getattr(simtool, name) is not None


def test_what_is_listed_on_both_sides_of_an_arrow_agrees() -> None:
    """Names that two parts hold because neither may import the other (or because --help must stay light)."""
    from simtool import certificate, model, solvers
    from simtool.cli.sparsify import command
    from simtool.stages.sparsify import options

    assert certificate.KINDS == model.KINDS
    choices = {p.name: tuple(p.type.choices) for p in command.params if hasattr(p.type, "choices")}
    assert choices["solver"] == solvers.SOLVERS
    assert choices["objective"] == options.OBJECTIVES
    assert choices["structure"] == options.STRUCTURES
    assert choices["kappa_on"] == options.KAPPA_ON
