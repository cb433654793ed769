"""The cone solvers behind CVXPY, how accurate they are asked to be, and whether they can be used here.

CVXPY's own choice of solver is never used: it takes MOSEK as soon as that is installed, licence or not.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtool.errors import SolverError

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True)
class Backend:
    """A cone solver of CVXPY: what we call it, CVXPY's name, and its options."""

    name: str
    solver: str
    options: dict[str, Any] = field(hash=False)


CLARABEL = Backend("Clarabel", "CLARABEL", {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10})
SCS = Backend("SCS", "SCS", {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000})
MOSEK = Backend(
    "MOSEK",
    "MOSEK",
    {
        "mosek_params": {
            "MSK_DPAR_INTPNT_CO_TOL_PFEAS": 1e-10,
            "MSK_DPAR_INTPNT_CO_TOL_DFEAS": 1e-10,
            "MSK_DPAR_INTPNT_CO_TOL_REL_GAP": 1e-10,
            # Shards run one to a core.
            "MSK_IPAR_NUM_THREADS": 1,
        }
    },
)
BACKENDS = {"clarabel": CLARABEL, "scs": SCS, "mosek": MOSEK}
_INSTEAD = "Or use --solver clarabel, or native where rows are matched up to a loss: neither needs a licence."


def require(solver: str) -> None:
    """Raise SolverError if ``solver`` cannot be used here; takes milliseconds. Only MOSEK can be missing."""
    if solver == "mosek":
        _require_mosek()


def _require_mosek() -> None:
    if importlib.util.find_spec("mosek") is None:
        raise SolverError(
            f"--solver mosek needs the package mosek, which is not installed: pip install 'simtool[mosek]'. {_INSTEAD}"
        )
    try:
        import mosek
    except ImportError as error:
        raise SolverError(
            f"the package mosek is installed but cannot be imported ({error}): pip install --force-reinstall "
            f"'simtool[mosek]'. {_INSTEAD}"
        ) from error
    place = os.environ.get("MOSEKLM_LICENSE_FILE")
    try:
        with mosek.Env() as env:
            env.checkoutlicense(mosek.feature.pton)
    except mosek.Error as error:
        seen = (
            f"MOSEKLM_LICENSE_FILE is {place!r}"
            if place
            else f"nothing at {Path.home() / 'mosek' / 'mosek.lic'}"
        )
        raise SolverError(
            f"MOSEK is installed but has no licence for conic problems ({_first_line(error.msg)}; {seen}). Put the licence "
            "file at ~/mosek/mosek.lic, or set MOSEKLM_LICENSE_FILE to its path or to port@host of a licence server. "
            f"{_INSTEAD}"
        ) from error


def _first_line(error: Exception | str) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or (type(error).__name__ if isinstance(error, Exception) else "no reason given")


def run_quietly(problem: cp.Problem, backend: Backend) -> None:
    """Solve the compiled ``problem`` as it is now parametrised; raises SolverError where the solver gives up."""
    import cvxpy as cp

    with warnings.catch_warnings():
        # CVXPY warns "solution may be inaccurate"; the certificate decides that.
        warnings.simplefilter("ignore", UserWarning)
        try:
            problem.solve(solver=backend.solver, **backend.options)
        except cp.error.SolverError as error:
            raise SolverError(
                f"{backend.name} gave up on a row ({_first_line(error)}). Use another --solver, or rescale the states "
                "(simtool extract --rescale)."
            ) from error
        except Exception as error:
            # MOSEK's own exceptions are not CVXPY's; a licence lost on the way is the likely one.
            if type(error).__module__.partition(".")[0] != "mosek":
                raise
            raise SolverError(f"MOSEK stopped ({_first_line(error)}). {_INSTEAD}") from error
