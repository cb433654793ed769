"""MOSEK without a licence: what it says, and that the problem it is handed is the right one."""

from __future__ import annotations

import builtins
import importlib.util
import time
from pathlib import Path
from typing import Any

import clarabel
import numpy as np
import pytest
from row_problems import PENALTIES, make_rows
from scipy import sparse

from simtool.certificate import certify
from simtool.errors import SolverError
from simtool.problem import RowSet
from simtool.solvers import backends, conic, native
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

INSTALLED = importlib.util.find_spec("mosek") is not None
needs_mosek = pytest.mark.skipif(not INSTALLED, reason="mosek is not installed: pip install 'simtool[mosek]'")


def _licensed() -> bool:
    try:
        backends.require("mosek")
    except SolverError:
        return False
    return True


LICENSED = INSTALLED and _licensed()
needs_no_licence = pytest.mark.skipif(LICENSED, reason="this machine has a MOSEK licence")


@pytest.fixture
def _no_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSEKLM_LICENSE_FILE", str(tmp_path / "nowhere.lic"))


def test_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mosek" else found(name))
    with pytest.raises(
        SolverError, match=r"pip install 'simtool\[mosek\]'. Or use --solver clarabel, or native"
    ):
        backends.require("mosek")


def test_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "mosek":
            raise ImportError("libmosek64.so.11.2: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(SolverError, match=r"cannot be imported \(libmosek64"):
        backends.require("mosek")


def test_the_other_solvers_need_nothing() -> None:
    for name in ("native", "bisection", "clarabel", "scs"):
        backends.require(name)


@needs_mosek
@pytest.mark.usefixtures("_no_licence")
def test_without_a_licence_it_says_where_to_put_one() -> None:
    with pytest.raises(
        SolverError, match=r"MOSEKLM_LICENSE_FILE is .*nowhere\.lic.*--solver clarabel, or native"
    ):
        backends.require("mosek")


@needs_mosek
@pytest.mark.usefixtures("_no_licence")
def test_without_a_licence_sparsify_touches_nothing(digits: dict[str, Path], tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(SolverError, match="no licence for conic problems"):
        sparsify(digits["states"], tmp_path / "run", SparsifyOptions(solver="mosek"), engine="serial")
    assert time.perf_counter() - started < 30
    assert not (tmp_path / "run").exists()


@needs_mosek
@pytest.mark.usefixtures("_no_licence")
def test_without_a_licence_there_is_no_fallback() -> None:
    with pytest.raises(SolverError, match="licence"):
        conic.solve_mosek(make_rows(1, kappa=0.5), 1e-6)


def _row_of_task(path: Path) -> float:
    """The optimal value of the problem in the task file ``path``, as MOSEK reads it and Clarabel solves it."""
    import mosek

    with mosek.Env() as env, env.Task() as task:
        task.readdata(str(path))
        n, m = task.getnumvar(), task.getnumcon()
        assert task.getnumacc() == 0
        assert task.getnumbarvar() == 0
        row, column, value = (np.array(part) for part in task.getatrip())
        a = sparse.csc_array((value, (row, column)), shape=(m, n))
        sign = -1.0 if task.getobjsense() == mosek.objsense.maximize else 1.0
        cost, constant = sign * np.array(task.getc()), task.getcfix()
        blocks: list[Any] = []
        rights: list[np.ndarray] = []
        cones: list[Any] = []
        identity = sparse.eye_array(n, format="csr")

        def bounded(part: Any, keys: list[Any], low: np.ndarray, up: np.ndarray) -> None:
            """low <= part x <= up as cones of Clarabel: A x + s = b."""
            low_key = {mosek.boundkey.lo, mosek.boundkey.ra}
            up_key = {mosek.boundkey.up, mosek.boundkey.ra}
            for take, factor, bound, cone in (
                ([k == mosek.boundkey.fx for k in keys], 1.0, low, clarabel.ZeroConeT),
                ([k in low_key for k in keys], -1.0, -low, clarabel.NonnegativeConeT),
                ([k in up_key for k in keys], 1.0, up, clarabel.NonnegativeConeT),
            ):
                chosen = np.flatnonzero(take)
                if chosen.size:
                    blocks.append(factor * part[chosen])
                    rights.append(bound[chosen])
                    cones.append(cone(chosen.size))

        keys, low, up = task.getconboundslice(0, m)
        bounded(a.tocsr(), keys, np.array(low), np.array(up))
        keys, low, up = task.getvarboundslice(0, n)
        bounded(identity, keys, np.array(low), np.array(up))
        for k in range(task.getnumcone()):
            kind, _, size = task.getconeinfo(k)
            assert kind == mosek.conetype.quad
            members = np.zeros(size, dtype=np.int32)
            task.getcone(k, members)
            blocks.append(-identity[members])
            rights.append(np.zeros(size))
            cones.append(clarabel.SecondOrderConeT(size))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    solver = clarabel.DefaultSolver(
        sparse.csc_array((n, n)),
        cost,
        sparse.csc_array(sparse.vstack(blocks)),
        np.concatenate(rights),
        cones,
        settings,
    )
    solution = solver.solve()
    assert str(solution.status) == "Solved"
    return float(sign * solution.obj_val + constant)


def _written(rows: RowSet, path: Path) -> float:
    """Hand the only row of ``rows`` to MOSEK, let it write the task instead; returns the unit of the objective."""
    alive = np.flatnonzero(~rows.design.dead)
    features = rows.design.dense(alive)
    unit = conic._unit_of(rows, features)
    problem = conic._Problem(
        features / unit.feature, unit.scaled(rows.objective), rows.bounded[alive], backends.MOSEK
    )
    problem._backend = backends.Backend("MOSEK", "MOSEK", {**backends.MOSEK.options, "save_file": str(path)})
    with pytest.raises(SolverError, match=r"MOSEK stopped .*licen"):
        problem.solve(rows.target()[0] / unit.target)
    return unit.target**2


@needs_mosek
@needs_no_licence
@pytest.mark.parametrize("extension", ["jtask", "task"])
@pytest.mark.parametrize("on", ["none", "a", "ab"])
@pytest.mark.parametrize("name", ["none", "l1", "perspective", "perspective-wide", "elastic-net", "all"])
def test_the_task_that_mosek_gets_has_the_native_optimum(
    name: str, on: str, extension: str, tmp_path: Path
) -> None:
    """Written by MOSEK, read back, solved by Clarabel."""
    if name == "none" and on == "none":
        name = "ridge"
    rows = make_rows(
        5,
        d=14,
        m=40,
        r=1,
        penalty=PENALTIES[name],
        kappa=None if on == "none" else 0.4,
        on_a=on == "a",
    )
    path = tmp_path / f"row.{extension}"
    unit = _written(rows, path)
    proof = certify(rows, native.solve(rows, 1e-9), 1e-6)
    assert proof.certified.all()
    assert _row_of_task(path) * unit == pytest.approx(float(proof.primal[0]), rel=1e-6)


@pytest.mark.skipif(not LICENSED, reason="no MOSEK licence here")
@pytest.mark.parametrize("name", ["l1", "perspective", "all"])
def test_mosek_rows_are_certified(name: str) -> None:
    rows = make_rows(7, d=20, m=80, penalty=PENALTIES[name], kappa=0.6)
    assert certify(rows, conic.solve_mosek(rows, 1e-6), 1e-6).certified.all()
