"""The other public ways to solve a row, each with its best honest settings; packages are imported when they run.

Every peer answers :meth:`Peer.run`: rows and a relative gap in, coefficients and seconds out. Conversions to what a
package wants (float64, Fortran order), compilation of its kernels, and the shared Gram matrix where it takes one are
done before the clock starts, which favours the peers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from time import process_time
from typing import Any, Protocol

import numpy as np

from simtool.bench.lasso_search import LassoRow, SolveLasso, lasso_rows, refusal, search
from simtool.certificate import certify
from simtool.environment import package_version
from simtool.errors import SolverError
from simtool.problem import RowSet
from simtool.solvers import get


class Unavailable(Exception):
    """A peer cannot run here, or cannot pose these rows; the message is the reason in the table."""


class Peer(Protocol):
    """``name`` in tables, ``package`` whose version is printed; ``run`` returns coefficients (r, d) and seconds."""

    @property
    def name(self) -> str: ...

    @property
    def package(self) -> str | None: ...

    def run(self, rows: RowSet, tolerance: float) -> tuple[np.ndarray, float]:
        """Raises Unavailable, or SolverError where the package gives up."""
        ...


@dataclass(frozen=True)
class Ours:
    """One of simtool's own solvers on a Gram matrix that is known already."""

    name: str
    solver: str
    package: str | None = None

    def run(self, rows: RowSet, tolerance: float) -> tuple[np.ndarray, float]:
        get(self.solver)(_tiny(rows), tolerance)  # compiles
        if not rows.smooth.any():
            _ = rows.design.gram
        started = process_time()
        w = get(self.solver)(rows, tolerance)
        return w, process_time() - started


@dataclass(frozen=True)
class Conic:
    """CVXPY with a cone solver, asked for a hundredth of the gap, as its own criteria are not the certificate's; where
    that does not certify, for a ten-thousandth, and the time is that of the second run alone."""

    name: str
    package: str
    seconds: float = 120.0

    def run(self, rows: RowSet, tolerance: float) -> tuple[np.ndarray, float]:
        w, seconds = self._solve(rows, tolerance, max(1e-2 * tolerance, 1e-10))
        if not certify(rows, w, tolerance).certified.all():
            w, seconds = self._solve(rows, tolerance, max(1e-4 * tolerance, 1e-12))
        return w, seconds

    def _solve(self, rows: RowSet, tolerance: float, accuracy: float) -> tuple[np.ndarray, float]:
        from simtool.solvers import backends, conic

        if self.package == "clarabel":
            options: dict[str, Any] = {f"tol_{key}": accuracy for key in ("gap_abs", "gap_rel", "feas")}
            backend = replace(backends.CLARABEL, options={**options, "time_limit": self.seconds})
        else:
            options = {"eps_abs": accuracy, "eps_rel": accuracy}
            limits = {"max_iters": 10**7, "time_limit_secs": self.seconds}
            backend = replace(backends.SCS, options={**options, **limits})
        started = process_time()
        w, gave_up = conic.attempt(backend, rows, tolerance)
        seconds = process_time() - started
        if gave_up.any():
            raise SolverError(f"gave up on {int(gave_up.sum())} of {rows.count} rows")
        return w, seconds


@dataclass(frozen=True)
class Lassos:
    """A lasso solver brought to kappa by a search on its multiplier (:mod:`simtool.bench.lasso_search`)."""

    name: str
    package: str
    prepare: Callable[[LassoRow, np.ndarray | None], SolveLasso]
    secant: bool = True
    wants_gram: bool = False
    seconds: float = 120.0

    def run(self, rows: RowSet, tolerance: float) -> tuple[np.ndarray, float]:
        reason = refusal(rows)
        if reason is not None:
            raise Unavailable(reason)
        try:
            _warm(self.package)
        except ImportError as error:
            raise Unavailable(f"not installed: {error}. pip install 'simtool[bench]'") from error
        out, seconds = np.zeros((rows.count, rows.design.d)), 0.0
        for i, row in enumerate(lasso_rows(rows)):
            gram = rows.design.gram[np.ix_(row.columns, row.columns)] if self.wants_gram else None
            solve = self.prepare(row, gram)
            started = process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "did not converge": the certificate decides that
                out[i, row.columns] = search(row, solve, tolerance, self.secant, self.seconds)
            seconds += process_time() - started
        return out, seconds


def _sklearn(row: LassoRow, gram: np.ndarray | None) -> SolveLasso:
    from sklearn.linear_model import lasso_path

    m, square = row.y.size, row.square
    product = row.x.T @ row.y

    def solve(t: float, start: np.ndarray, gap: float) -> np.ndarray:
        _, coefficients, _ = lasso_path(
            row.x,
            row.y,
            alphas=[t / m],
            coef_init=start,
            tol=gap / square,
            max_iter=100_000,
            precompute=False if gram is None else gram,
            Xy=product,
        )
        return np.ascontiguousarray(coefficients[:, 0])

    return solve


def _celer(row: LassoRow, gram: np.ndarray | None) -> SolveLasso:
    del gram
    from celer import celer_path

    m, square = row.y.size, row.square

    def solve(t: float, start: np.ndarray, gap: float) -> np.ndarray:
        path = celer_path(
            row.x,
            row.y,
            "lasso",
            alphas=[t / m],
            coef_init=start,
            tol=gap / square,
            max_iter=100,
            prune=1,
        )
        return np.ascontiguousarray(path[1][:, 0])

    return solve


def _skglm(row: LassoRow, gram: np.ndarray | None) -> SolveLasso:
    del gram
    from skglm.datafits import Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD

    m = row.y.size

    def solve(t: float, start: np.ndarray, gap: float) -> np.ndarray:
        # It stops on the violation of the optimality conditions: a violation v costs at most 2 v m ||w||_1.
        reach = max(row.kappa or 0.0, float(np.abs(start).sum()), 1e-3)
        solver = AndersonCD(max_iter=200, tol=gap / (2.0 * m * reach), fit_intercept=False, p0=10)
        w, _, _ = solver.solve(
            row.x,
            row.y,
            Quadratic(),
            L1(t / m),
            w_init=start,
            Xw_init=row.x @ start,
            run_checks=False,
        )
        return np.asarray(w)

    return solve


@lru_cache(maxsize=8)
def _warm(package: str) -> None:
    """Import ``package`` and let it compile on a problem of the same types. Raises ImportError."""
    rng = np.random.default_rng(0)
    x = np.asfortranarray(rng.standard_normal((30, 12)))
    row = LassoRow(x, np.ascontiguousarray(x[:, 0] + x[:, 1]), 0.0, 0.5, np.arange(12))
    prepare = {"scikit-learn": _sklearn, "celer": _celer, "skglm": _skglm}[package]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search(row, prepare(row, None), 1e-4)


def _tiny(rows: RowSet) -> RowSet:
    """The same kind of problem with three features, to compile a solver's kernels on."""
    from simtool.design import Design

    w = np.eye(3, 4, dtype=np.float32)
    return RowSet(Design(w), w[:1] + w[1:2], rows.objective, np.full(3, bool(rows.constrained.any())))


SKLEARN = Lassos("scikit-learn", "scikit-learn", _sklearn)
SKLEARN_GRAM = Lassos("scikit-learn, Gram", "scikit-learn", _sklearn, wants_gram=True)
SKLEARN_BISECTION = Lassos("scikit-learn, bisection", "scikit-learn", _sklearn, secant=False)
SKLEARN_GRAM_BISECTION = Lassos(
    "scikit-learn, Gram, bisection", "scikit-learn", _sklearn, secant=False, wants_gram=True
)
CELER = Lassos("celer", "celer", _celer)
SKGLM = Lassos("skglm", "skglm", _skglm)
CLARABEL = Conic("CVXPY + Clarabel", "clarabel")
SCS = Conic("CVXPY + SCS", "scs")
THESIS = Ours("bisection of the thesis", "bisection")
NATIVE = Ours("simtool, Gram given", "native")

ALL: tuple[Any, ...] = (NATIVE, THESIS, SKLEARN_GRAM, SKLEARN, CELER, SKGLM, CLARABEL, SCS)


def version(peer: Peer) -> str | None:
    """The installed version of the peer's package."""
    return package_version(peer.package) if peer.package else None


__all__ = [
    "ALL",
    "CELER",
    "CLARABEL",
    "NATIVE",
    "SCS",
    "SKGLM",
    "SKLEARN",
    "SKLEARN_BISECTION",
    "SKLEARN_GRAM",
]
__all__ += ["SKLEARN_GRAM_BISECTION", "THESIS", "Peer", "SolverError", "Unavailable", "version"]
