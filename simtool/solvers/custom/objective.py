"""What ``--objective package.module:function`` names: SIM's f and C for one row, in CVXPY's words.

    def function(a, b):
        return expression, [constraint, ...]

``a`` and ``b`` are CVXPY expressions, vectors: the coefficients of the states and of the inputs (the bias last) that the
row may use, in the order of [X; U]. For a row of Y they are C's and D's parts. Either may have length 0 (in a layered
structure the first layer sees no states). The expression is convex, the constraints are convex, and both speak of a and b
only. The loss, or the exact match, and kappa are added by simtool.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np

from simtool import importing
from simtool.errors import InputError, OptionError

# Constraints are solved to the cone solver's accuracy: this much of the size of their own arguments is forgiven.
FEASIBILITY = 1e-8


@dataclass(frozen=True)
class OwnObjective:
    """The function behind ``reference`` and the sha256 of the file that defines it."""

    reference: str
    function: Callable[..., Any]
    source_sha256: str


def load(reference: str, expected_sha256: str | None = None) -> OwnObjective:
    """Import the function. Raises InputError if that fails, or if its file is not the one with ``expected_sha256``."""
    function = importing.resolve(reference)
    if not callable(function):
        raise InputError(
            f"{reference} is a {type(function).__name__}, not a function (a, b) -> (expression, [constraints])."
        )
    digest = hashlib.sha256(_source(reference, function).read_bytes()).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256:
        raise InputError(
            f"the file of {reference} has changed since the run was started (sha256 {digest[:12]}, was "
            f"{expected_sha256[:12]}). Restore it to resume the run, or start a new one with another -o."
        )
    return OwnObjective(reference, function, digest)


def _source(reference: str, function: Any) -> Path:
    try:
        return Path(inspect.getfile(inspect.unwrap(function)))
    except TypeError:
        module = sys.modules.get(getattr(function, "__module__", ""), None)
        file = getattr(module, "__file__", None)
        if file is None:
            raise InputError(
                f"{reference} is not defined in a Python file, so a run could not tell whether it changed. Define it "
                "with def in a .py file."
            ) from None
        return Path(file)


@dataclass(frozen=True)
class Terms:
    """f and C on one CVXPY expression for w: ``cost`` (scalar) and ``constraints``."""

    cost: cp.Expression
    constraints: list[cp.Constraint]


def build(own: OwnObjective, w: cp.Expression, states: int) -> Terms:
    """Call the function on a = w[:states], b = w[states:] and check what it returns.

    Raises InputError where it fails, OptionError where what it returns is not convex or speaks of something else.
    """
    shown = f"--objective {own.reference}"
    returned = importing.call(
        own.function, f"{shown}({states} states, {w.size - states} inputs)", *_parts(w, states)
    )
    if not (isinstance(returned, tuple) and len(returned) == 2):
        got = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
        raise InputError(
            f"{shown} must return a tuple (expression, [constraints]), got {got}. "
            "Return (expression, []) if there are no constraints."
        )
    cost = _cost(f"{shown}({states} states, {w.size - states} inputs)", returned[0])
    constraints = _constraints(shown, returned[1])
    own_variables = set(w.variables())
    for part in (cost, *constraints):
        foreign = [v for v in part.variables() if v not in own_variables]
        if foreign:
            raise OptionError(
                f"{shown} uses variables of its own ({', '.join(v.name() for v in foreign[:3])}); a stored row holds only "
                "a and b, so it could not be judged. Write it with CVXPY's functions of a and b (cp.norm, cp.max, ...)."
            )
        for parameter in part.parameters():
            if parameter.value is None and parameter not in w.parameters():
                raise OptionError(
                    f"{shown} uses the parameter {parameter.name()} without a value. Give it one."
                )
    return Terms(cost, constraints)


def _not_compiled(shown: str, error: Exception) -> OptionError:
    return OptionError(
        f"{shown} cannot be compiled by CVXPY: {importing.describe(error)}. a and b may have length 0: leave terms on an "
        "empty one out (if a.size: ...)."
    )


def _parts(w: cp.Expression, states: int) -> tuple[cp.Expression, cp.Expression]:
    return w[:states], w[states:]


def _cost(shown: str, cost: Any) -> cp.Expression:
    if isinstance(cost, (int, float, np.number)):
        cost = cp.Constant(float(cost))
    if not isinstance(cost, cp.Expression):
        raise InputError(
            f"{shown} must return a CVXPY expression first, got {type(cost).__name__} (0 asks for constraints alone)."
        )
    if cost.is_complex():
        raise OptionError(
            f"{shown} must return a real scalar, got a complex one. Take cp.real or cp.abs of it."
        )
    if cost.size != 1:
        raise OptionError(
            f"{shown} must return a real scalar, got the shape {cost.shape}. Sum it, for one with cp.sum."
        )
    try:
        value = cost.value if cost.is_constant() else 0.0
    except ValueError as error:  # a constant because its argument has no elements
        raise _not_compiled(shown, error) from error
    if not np.isfinite(np.asarray(value, dtype=float)).all():
        raise OptionError(f"{shown} must return a finite value, got the constant {value}. Return 0 for none.")
    if not cost.is_convex():
        raise OptionError(
            f"{shown} is not convex by CVXPY's rules (its curvature is {cost.curvature}): {_short(cost)}. Minimise a "
            "convex expression; -cp.norm(a) and products of variables are not."
        )
    return cost


def _constraints(shown: str, constraints: Any) -> list[cp.Constraint]:
    if not isinstance(constraints, (list, tuple)):
        raise InputError(
            f"{shown} must return a list of constraints second, got {type(constraints).__name__}. Return [] for none."
        )
    for constraint in constraints:
        if not isinstance(constraint, cp.Constraint):
            raise InputError(
                f"{shown} returned {constraint!r} among its constraints, which is no CVXPY constraint. Write them as "
                "comparisons of CVXPY expressions, such as b >= 0."
            )
        if not constraint.is_dcp():
            raise OptionError(
                f"{shown} has a constraint that is not convex by CVXPY's rules: {_short(constraint)}. A convex "
                "expression may only be bounded from above, a concave one from below."
            )
    return list(constraints)


def _short(expression: Any) -> str:
    text = str(expression)
    return text if len(text) <= 120 else f"{text[:117]}..."


def require_dpp(own: OwnObjective, problem: cp.Problem) -> None:
    """Refuse what CVXPY would have to compile anew for every row, or could not solve at all."""
    if problem.is_mixed_integer():
        raise OptionError(f"--objective {own.reference} asks for whole numbers, which is not convex.")
    if not problem.is_dpp():
        raise OptionError(
            f"--objective {own.reference} is not DPP (CVXPY's rule for problems that are compiled once): a cp.Parameter "
            "enters it in a way that is not affine. Use plain numbers instead of parameters."
        )


class Evaluator:
    """f, and how far C is violated, at given coefficients."""

    def __init__(self, own: OwnObjective, states: int, d: int) -> None:
        self._w = cp.Variable(d)
        self._terms = build(own, self._w, states)

    @property
    def constant(self) -> bool:
        """f does not depend on w: any row of C is as good."""
        return bool(self._terms.cost.is_constant())

    def value(self, w: np.ndarray) -> float:
        """f(w); infinite where it is not defined."""
        if not np.isfinite(w).all():
            return float("inf")
        self._w.value = w
        value = self._terms.cost.value
        if value is None:
            return float("inf")
        number = float(np.asarray(value).reshape(-1)[0])
        return number if np.isfinite(number) else float("inf")

    def violation(self, w: np.ndarray) -> float:
        """The largest violation of a constraint, relative to the largest of its own arguments."""
        if not np.isfinite(w).all():
            return float("inf")
        self._w.value = w
        worst = 0.0
        for constraint in self._terms.constraints:
            found = np.max(np.abs(constraint.violation()), initial=0.0)
            sizes = [
                np.max(np.abs(arg.value), initial=0.0) for arg in constraint.args if arg.value is not None
            ]
            size = float(max(sizes, default=0.0))
            if found > 0:
                worst = max(worst, float(found) / size if size > 0 else float("inf"))
        return worst


def check(own: OwnObjective, shapes: set[tuple[int, int]]) -> None:
    """Build the function for rows with these numbers of (states, inputs): whatever is wrong is said before any work."""
    for states, inputs in sorted(shapes):
        if states + inputs == 0:
            continue
        w = cp.Variable(states + inputs)
        terms = build(own, w, states)
        problem = cp.Problem(cp.Minimize(terms.cost), terms.constraints)
        require_dpp(own, problem)
        try:
            whole = cp.Problem(cp.Minimize(terms.cost + cp.sum_squares(w)), terms.constraints)  # with a loss
            whole.get_problem_data(cp.CLARABEL)
        except Exception as error:  # CVXPY raises whatever its atoms do, an empty vector in most of them
            raise _not_compiled(
                f"--objective {own.reference}({states} states, {inputs} inputs)", error
            ) from error
        Evaluator(own, states, states + inputs).violation(np.zeros(states + inputs))
