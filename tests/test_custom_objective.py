"""A user's own objective and constraints: what is refused, what is solved, and what the proof is worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import PENALTIES, make_rows

from simtool.certificate import SOLVER_GAP, certify
from simtool.cli import main
from simtool.design import Design
from simtool.errors import InputError, OptionError, SimtoolError, SpecChanged
from simtool.model import load_model
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet
from simtool.row_status import RowStatus
from simtool.solvers import native
from simtool.solvers.backends import CLARABEL, SCS
from simtool.solvers.custom import objective, proof, solve
from simtool.solvers.custom.objective import OwnObjective
from simtool.stages.sparsify.options import SparsifyOptions, resolve
from simtool.stages.sparsify.stage import sparsify

EXAMPLES = Path(__file__).parents[1] / "examples" / "own_objectives.py"

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "zero": lambda a, b: (0, []),
    "norm of a": lambda a, b: (cp.norm1(a), []),
    "all but the bias": lambda a, b: (cp.norm1(a) + 3 * cp.norm1(b[:-1]), []),
    "groups": lambda a, b: (cp.norm(a, 2) + cp.norm(b, 2), []),
    "largest": lambda a, b: (cp.max(cp.abs(b)), []),
    "signs": lambda a, b: (0, [a >= 0, b[:-1] >= 0]),
    "smooth": lambda a, b: (0.5 * cp.sum_squares(cp.diff(b)), [cp.abs(a) <= 1]),
    "simplex": lambda a, b: (cp.sum_squares(b), [cp.sum(a) == 1, a >= 0]),
    "entropy": lambda a, b: (-cp.sum(cp.entr(a + 1)), [a >= -0.9]),
}
STATES = 6


def _own(function: Callable[..., Any], name: str = "mine.py:f") -> OwnObjective:
    return OwnObjective(name, function, "")


def _rows(
    seed: int, d: int = 14, m: int = 40, r: int = 2, kappa: float | None = None, exact: bool = False
) -> RowSet:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, m)).astype(np.float32)
    w[1], w[3], w[-1] = 0.0, w[2], 1.0
    truth = np.abs(rng.standard_normal((r, d))) * (rng.random((r, d)) < 0.5)
    truth[:, :STATES] /= np.maximum(truth[:, :STATES].sum(axis=1, keepdims=True), 1e-9)
    z = truth @ w.astype(float) + (0.0 if exact else 0.3) * rng.standard_normal((r, m))
    return RowSet(Design(w), z.astype(np.float32), Objective(0.5, Penalty(), kappa), np.arange(d) < STATES)


# --- what a function must return ---------------------------------------------------------------------------------------


def _raises(a: Any, b: Any) -> Any:
    raise ValueError("kaputt")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raises, "mine.py:f.* failed: ValueError: kaputt"),
        (lambda a: (0, []), r"failed: TypeError"),
        (lambda a, b: cp.norm1(a), r"must return a tuple \(expression, \[constraints\]\), got "),
        (lambda a, b: ("norm", []), "must return a CVXPY expression first, got str"),
        (lambda a, b: (a, []), r"must return a real scalar, got the shape \(3,\)"),
        (lambda a, b: (-cp.norm(a, 2), []), "is not convex by CVXPY's rules"),
        (lambda a, b: (cp.sum(cp.multiply(b, b)), []), "is not convex by CVXPY's rules"),
        (lambda a, b: (0, b >= 0), "must return a list of constraints second"),
        (lambda a, b: (0, [True]), "returned True among its constraints"),
        (lambda a, b: (0, [cp.norm(a, 2) >= 1]), "has a constraint that is not convex"),
        (lambda a, b: (cp.norm1(a - cp.Variable(3)), []), "uses variables of its own"),
        (
            lambda a, b: (cp.Parameter(nonneg=True, name="p") * cp.norm1(a), []),
            "the parameter p without a value",
        ),
        (lambda a, b: (cp.norm1(a), [], 0), "got 3 values"),
        (lambda a, b: (np.inf, []), "must return a finite value"),
        (lambda a, b: (1j * cp.sum(a), []), "must return a real scalar, got a complex one"),
        (lambda a, b: (cp.square(cp.Parameter(value=2.0)) * cp.norm1(a), []), "is not DPP"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(SimtoolError, match=message):
        objective.check(_own(function), {(3, 4)})


def test_a_part_of_length_zero_is_compiled_before_any_work() -> None:
    empty = _own(lambda a, b: (cp.max(cp.abs(a)), []))
    objective.check(empty, {(3, 4)})
    with pytest.raises(OptionError, match=r"0 states, 4 inputs.* may have length 0"):
        objective.check(empty, {(3, 4), (0, 4)})


def test_what_a_function_prints_is_not_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def talks(a: Any, b: Any) -> Any:
        print("hello")
        return 0, []

    objective.check(_own(talks), {(3, 4)})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_features_that_are_always_zero_keep_no_coefficient() -> None:
    rows = _rows(3)
    assert rows.design.dead[1]
    for name in ("signs", "zero", "smooth"):
        found = solve.solve(_own(FUNCTIONS[name]), rows, STATES, CLARABEL, 1e-6, exact=False)
        assert (found.w[:, 1] == 0.0).all(), name


def test_every_shape_of_row_is_tried() -> None:
    """Fine for rows with states, wrong for the first layer, which sees none."""
    fragile = _own(lambda a, b: (cp.max(a) if a.size else "nothing", []))
    objective.check(fragile, {(3, 4)})
    with pytest.raises(InputError, match=r"got str"):
        objective.check(fragile, {(3, 4), (0, 4)})


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_rows_without_states_are_no_special_case(name: str) -> None:
    if name != "simplex":  # an empty sum is not 1
        objective.check(_own(FUNCTIONS[name]), {(0, 4), (3, 4)})


def test_references_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no 'nothing'"):
        objective.load(f"{EXAMPLES}:nothing")
    with pytest.raises(InputError, match="is a int, not a function"):
        objective.load(f"{EXAMPLES}:IMAGE_WIDTH")
    with pytest.raises(InputError, match="does not exist"):
        objective.load(f"{tmp_path / 'none.py'}:f")
    with pytest.raises(InputError, match="has changed since the run was started"):
        objective.load(f"{EXAMPLES}:smooth", expected_sha256="0" * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "native"}, "--solver must be one of clarabel, scs, mosek, got 'native'"),
        ({"alpha": 1.0}, "--alpha does not belong to --objective m:f"),
        ({"eliminate": "safe"}, "--eliminate safe belongs to the losses"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(objective="m:f", **options)


def test_defaults() -> None:
    resolved = resolve(SparsifyOptions(objective="m:f"), 1.0)
    assert (resolved.solver, resolved.lambda1, resolved.kappa, resolved.kappa_on) == (
        "clarabel",
        0.1,
        None,
        "a",
    )


# --- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_rows_are_certified(name: str, exact: bool) -> None:
    own = _own(FUNCTIONS[name])
    for d, m in ((14, 40), (30, 12)):
        rows = _rows(1, d=d, m=m, exact=exact)
        found = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=exact)
        certificates = proof.certify_custom(own, rows, STATES, found.w, found.nu if exact else None, 1e-6)
        assert found.trouble == (None, None)
        assert certificates.certified.all(), certificates
        assert (certificates.kind == SOLVER_GAP).all()


@pytest.mark.parametrize("kappa", [None, 0.5])
@pytest.mark.parametrize(
    ("function", "penalty"),
    [
        (lambda a, b: (0.8 * cp.norm1(a) + 0.8 * cp.norm1(b), []), "l1"),
        (lambda a, b: (0.3 * (cp.norm1(a) + cp.norm1(b)) + 0.5 * (cp.sum_squares(a) + cp.sum_squares(b)), []), "elastic-net"),
        (lambda a, b: (0.4 * (cp.sum(cp.huber(a)) * 0 + 2 * cp.norm1(a) + cp.sum_squares(cp.pos(cp.abs(a) - 1))
                              + 2 * cp.norm1(b) + cp.sum_squares(cp.pos(cp.abs(b) - 1))), []), "perspective"),
    ],
    ids=["l1", "elastic-net", "perspective"],
)  # fmt: skip
def test_the_familys_own_objectives_agree_with_native(
    function: Callable[..., Any], penalty: str, kappa: float | None
) -> None:
    for exclude in (False, True):
        rows = make_rows(
            3, d=14, m=40, penalty=PENALTIES[penalty], kappa=kappa, on_a=True, exclude=exclude, bounds="none"
        )
        plain = RowSet(rows.design, rows.targets, rows.objective, rows.constrained, rows.allowed)
        found = solve.solve(_own(function), plain, 7, CLARABEL, 1e-6, exact=False)
        ours = certify(rows, native.solve(rows, 1e-9), 1e-6)
        theirs = certify(rows, found.w, 1e-6)
        np.testing.assert_allclose(theirs.primal, ours.primal, rtol=1e-6)
        certificates = proof.certify_custom(_own(function), plain, 7, found.w, None, 1e-6)
        assert certificates.certified.all()
        # The small program's bound is a bound of the same problem.
        assert np.all(certificates.dual <= ours.primal * (1 + 1e-7))
        assert (found.w[:, [1]] == 0).all()  # the dead feature


def test_scs_rows_pass_the_same_judge() -> None:
    own, rows = _own(FUNCTIONS["groups"]), _rows(2)
    found = solve.solve(own, rows, STATES, SCS, 1e-6, exact=False)
    assert proof.certify_custom(own, rows, STATES, found.w, None, 1e-6).certified.all()


def test_whole_groups_vanish_exactly() -> None:
    own = _own(lambda a, b: (cp.norm1(a) + 60 * cp.norm(b[:4], 2), []))
    found = solve.solve(own, _rows(4), STATES, CLARABEL, 1e-6, exact=False)
    assert not found.w[:, STATES : STATES + 4].any()
    assert found.w[:, STATES + 4 :].any()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(["norm of a", "groups", "signs", "smooth", "largest"]))
def test_bound_holds_at_random_rows_and_certifies_only_good_ones(seed: int, name: str) -> None:
    own, rows = _own(FUNCTIONS[name]), _rows(seed, r=1)
    rng = np.random.default_rng(seed)
    stored = np.clip(np.abs(rng.standard_normal((1, 14))) * rng.choice([0.01, 0.3]), 0, 1)
    found = proof.certify_custom(own, rows, STATES, stored, None, 1e-6)
    best = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=False)
    optimum = proof.certify_custom(own, rows, STATES, best.w, None, 1e-6)
    assert optimum.certified.all()
    scale = np.abs(optimum.primal) + 1e-2 * 0.5 * rows.target_norms
    assert np.all(found.dual <= optimum.primal + 1e-6 * scale)
    if found.primal[0] > optimum.primal[0] + 1e-3 * scale[0]:
        assert not found.certified.any()


def test_rows_outside_the_constraint_set_are_never_certified() -> None:
    own, rows = _own(FUNCTIONS["signs"]), _rows(5)
    found = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=False)
    assert (found.w[:, :-1] >= 0).all()
    assert proof.certify_custom(own, rows, STATES, found.w, None, 1e-6).certified.all()
    found.w[0, 0] = -1e-6
    found.w[1, 2] = np.nan
    certificates = proof.certify_custom(own, rows, STATES, found.w, None, 1e-6)
    assert not certificates.certified.any()
    assert certificates.projection_error[0] > 1e-8


def test_no_row_in_the_constraint_set() -> None:
    own = _own(lambda a, b: (0, [cp.sum(a) >= 1, cp.norm1(a) <= 0.5]))
    rows = _rows(6)
    found = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=False)
    assert found.trouble == (RowStatus.INFEASIBLE, RowStatus.INFEASIBLE)
    assert not proof.certify_custom(own, rows, STATES, found.w, None, 1e-6).certified.any()


def test_an_objective_without_a_lower_bound_gives_no_row() -> None:
    """Nothing holds the coefficient of the dead feature back."""
    own, rows = _own(lambda a, b: (cp.sum(a), [])), _rows(7)
    found = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=False)
    assert found.trouble == (RowStatus.GAVE_UP, RowStatus.GAVE_UP)
    assert not proof.certify_custom(own, rows, STATES, found.w, None, 1e-6).certified.any()


def test_targets_that_cannot_be_matched_are_infeasible() -> None:
    own, rows = _own(FUNCTIONS["norm of a"]), _rows(8)
    found = solve.solve(own, rows, STATES, CLARABEL, 1e-6, exact=True)
    assert found.trouble == (RowStatus.INFEASIBLE, RowStatus.INFEASIBLE)
    certificates = proof.certify_custom(own, rows, STATES, found.w, found.nu, 1e-6)
    assert not certificates.certified.any()
    w = rows.design.dense(np.arange(14))
    residual = rows.target() - np.linalg.lstsq(w.T, rows.target().T, rcond=None)[0].T @ w
    least = np.linalg.norm(residual, axis=1) / np.linalg.norm(rows.target(), axis=1)
    np.testing.assert_allclose(certificates.projection_error, least, rtol=1e-5)


# --- the whole stage ---------------------------------------------------------------------------------------------------


def test_an_example_end_to_end_and_a_changed_function_is_refused(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    shutil.copyfile(EXAMPLES, source)
    run = tmp_path / "run"
    command = ["sparsify", str(digits["states"]), "--objective", f"{source}:group_sparse", "-o", str(run)]
    done = CliRunner().invoke(main, [*command, "--engine", "process", "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["certified"] == result["rows"]
    model = load_model(run)
    assert model.certificates is not None
    assert (model.certificates.kind == SOLVER_GAP).all()
    assert 0 < model.sparsity < 1
    # Nothing is done again, and nothing is taken for the same that is not.
    again = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(again.stdout)["nnz"] == result["nnz"]
    source.write_text(source.read_text().replace("2.0 * sum", "3.0 * sum"))
    import sys

    for name in [name for name in sys.modules if name.startswith("_simtool_file_") and "mine" in name]:
        del sys.modules[name]
    with pytest.raises(SpecChanged, match=r"objective\.source_sha256"):
        sparsify(digits["states"], run, SparsifyOptions(objective=f"{source}:group_sparse"), engine="serial")


def test_a_broken_function_leaves_no_run_behind(digits: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "broken.py"
    source.write_text("def f(a, b):\n    return a @ b, []\n")
    done = CliRunner().invoke(
        main, ["sparsify", str(digits["states"]), "--objective", f"{source}:f", "-o", str(tmp_path / "run")]
    )
    assert done.exit_code == 1
    assert "failed: " in done.output
    assert not (tmp_path / "run").exists()
    unknown = CliRunner().invoke(main, ["sparsify", "s.h5", "--objective", "ridge", "-o", "run"])
    assert unknown.exit_code == 2
    assert "is neither one of lasso, l1, perspective" in unknown.output
