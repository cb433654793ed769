"""Column norms: rows that are coupled, so that whole columns of the coefficients vanish (IDL section 5.1).

    minimise over V (r, d)   loss_weight ||Z - V W||_F^2 + weight sum_{j in J} ||V e_j||_2

with J the grouped features (for IDL's feature selection the inputs, so that columns of (B; D) vanish; for states, columns of
(A; C)), and no penalty on the others. No row is a problem by itself, and this is solved by an OUTER LOOP OVER ROW SOLVES. With

    weight ||v||_2 = min over eta > 0 of  weight/2 ( ||v||^2 / eta + eta ),

the rows given eta are ridge regressions of their own, feature j weighted by weight / (2 eta_j), which share one Gram matrix.
What is left is convex in eta >= 0, one number a column, and smooth up to eta_j = 0, where a column is exactly zero:

    f(eta) = weight/2 sum eta + loss_weight min over V,     f_j' = weight/2 (1 - (2 loss_weight ||C_j|| / weight)^2)

with C_j the correlations of the residuals of all rows with feature j. The outer step is Newton's on eta, projected to eta >= 0, with

    f_jk'' = 2 loss_weight / s^2 <C_j, C_k> (W (W^T diag(eta) W / s + I)^-1 W^T)_jk,     s = weight / (2 loss_weight),

or the reweighting eta_j = ||V e_j||, which never raises f, wherever that is no better. Only the norm ||.||_2 splits into rows so.

The certificate does not know how V was found. For any T (r, m) with T_i W_j^T = 0 for the features j without a penalty and
||T W_j^T||_2 <= weight over the rows that may use j in J, <T, Z> - ||T||^2 / (4 loss_weight) is a lower bound; T is a multiple of
the residual Z - V W.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from simtool.errors import OptionError

_ROUNDS = 300
_HALVINGS = 4
_DAMPINGS = (
    1e-12,
    1e-4,
    1e-1,
    10.0,
)  # of the diagonal of f''; features that depend on each other leave it singular
_HIDDEN = 1e-11


@dataclass(frozen=True, eq=False)
class CoupledRows:
    """Rows coupled by the norms of their columns; see the module. Solved by an outer loop over row solves.

    Attributes
    ----------
    design : W (d, m)
    targets : Z (r, m)
    grouped : (d,) bool, the set J; the other features have no penalty
    loss_weight : > 0
    allowed : (r, d) bool, the features each row may use, or None for all
    """

    design: np.ndarray
    targets: np.ndarray
    grouped: np.ndarray
    loss_weight: float = 0.5
    allowed: np.ndarray | None = None

    def __post_init__(self) -> None:
        design = np.ascontiguousarray(self.design, dtype=np.float64)
        targets = np.ascontiguousarray(self.targets, dtype=np.float64)
        if design.ndim != 2 or targets.ndim != 2 or design.shape[1] != targets.shape[1]:
            raise OptionError(
                f"design (d, m) and targets (r, m) must have the same samples, got shapes {design.shape} and {targets.shape}."
            )
        if not (np.isfinite(design).all() and np.isfinite(targets).all()):
            raise OptionError("design and targets must be finite.")
        grouped = np.asarray(self.grouped)
        if grouped.dtype != np.bool_ or grouped.shape != (len(design),):
            raise OptionError(
                f"grouped must be {len(design)} booleans, got {grouped.dtype} of shape {grouped.shape}."
            )
        allowed = self.allowed
        if allowed is not None:
            allowed = np.asarray(allowed)
            if allowed.dtype != np.bool_ or allowed.shape != (len(targets), len(design)):
                raise OptionError(
                    f"allowed must be booleans of shape {(len(targets), len(design))}, got {allowed.dtype} of shape {allowed.shape}."
                )
        if not (np.isfinite(self.loss_weight) and self.loss_weight > 0):
            raise OptionError(f"loss_weight must be finite and above 0, got {self.loss_weight!r}.")
        for name, value in (("design", design), ("targets", targets), ("allowed", allowed)):
            object.__setattr__(self, name, value)

    @cached_property
    def _classes(self) -> tuple[_Class, ...]:
        """Rows that may use the same features; they share their Gram matrix."""
        gram = self.design @ self.design.T
        if self.allowed is None:
            return (_Class(self, gram, np.arange(len(self.targets)), np.ones(len(self.design), bool)),)
        kinds, member = np.unique(self.allowed, axis=0, return_inverse=True)
        member = member.ravel()
        return tuple(_Class(self, gram, np.flatnonzero(member == i), kind) for i, kind in enumerate(kinds))

    @cached_property
    def largest_weight(self) -> float:
        """The smallest weight at which every grouped column is zero."""
        return (
            2.0
            * self.loss_weight
            * float(self._norms([c.correlation for c in self._classes]).max(initial=0.0))
        )

    def _norms(self, columns: list[np.ndarray]) -> np.ndarray:
        """||.||_2 over all rows of ``columns``, one array (features, rows) for each class: (d,)."""
        total = np.zeros(len(self.design))
        for one, values in zip(self._classes, columns, strict=True):
            total[one.grouped] += (values**2).sum(axis=1)
        return np.sqrt(total)


class _Class:
    """Rows with the same features: their problem in the grouped ones, those without a penalty projected out."""

    def __init__(self, problem: CoupledRows, gram: np.ndarray, rows: np.ndarray, allowed: np.ndarray) -> None:
        self.rows = rows
        self.grouped = np.flatnonzero(allowed & problem.grouped)
        self.free = np.flatnonzero(allowed & ~problem.grouped)
        targets, correlation = problem.targets[rows], problem.design @ problem.targets[rows].T
        self.basis = np.zeros((0, problem.design.shape[1]))
        grouped = problem.design[self.grouped]
        self.gram, self.correlation = gram[np.ix_(self.grouped, self.grouped)], correlation[self.grouped]
        self.targets = targets
        if self.free.size:
            self.basis = _row_basis(problem.design[self.free])
            grouped = _outside(grouped, self.basis)
            self.targets = _outside(targets, self.basis)
            self.gram, self.correlation = grouped @ grouped.T, grouped @ self.targets.T
        self.squares = float((self.targets**2).sum())


def _row_basis(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span those of ``matrix``."""
    _, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return vt[s > s.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps]


def _outside(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """``vectors`` without their part in the span of ``basis``; twice, so that rounding alone is left."""
    for _ in range(2):
        vectors = vectors - (vectors @ basis.T) @ basis
    return vectors


@dataclass(frozen=True, eq=False)
class _Point:
    """f at eta, its gradient (d,), and for each class V of the grouped features and C, both (features, rows)."""

    eta: np.ndarray
    value: float
    gradient: np.ndarray
    coefficients: list[np.ndarray]
    correlations: list[np.ndarray]
    gap: float


@dataclass(frozen=True)
class CoupledCertificate:
    """What is proven of coefficients: ``primal`` - ``dual``, relative to max(primal, 1e-2 loss_weight ||Z||^2).

    ``projection_error`` is the largest |cos| between a residual and a feature without a penalty that it must be orthogonal to.
    """

    primal: float
    dual: float
    relative_gap: float
    projection_error: float
    certified: bool


@dataclass(frozen=True, eq=False)
class CoupledSolution:
    """``coefficients`` (r, d), ``norms`` (d,) of their columns, f after each outer step in ``history``, and the certificate."""

    coefficients: np.ndarray
    norms: np.ndarray
    history: tuple[float, ...]
    certificate: CoupledCertificate


def solve(problem: CoupledRows, weight: float, tolerance: float = 1e-6) -> CoupledSolution:
    """The rows at this ``weight`` > 0, columns that pay for nothing exactly zero, certified to ``tolerance`` where that is reached."""
    _check_weight(weight)
    if not 0.0 < tolerance < 1.0:
        raise OptionError(f"tolerance must be in (0, 1), got {tolerance!r}. Pass 1e-6.")
    now = _evaluate(problem, weight, _start(problem, weight))
    history = [now.value]
    for _ in range(_ROUNDS):
        if now.gap <= 0.1 * tolerance:
            break
        following = _newton(problem, weight, now)
        if following is None:
            # reweighting: minimises over eta what was minimised over V; never raises f
            following = _evaluate(problem, weight, problem._norms(now.coefficients))
            if not following.value < now.value:
                break
        now = following
        history.append(now.value)
    coefficients = np.zeros((len(problem.targets), len(problem.design)))
    for one, part in zip(problem._classes, now.coefficients, strict=True):
        coefficients[np.ix_(one.rows, one.grouped)] = part.T
        _fit_free(problem, one, coefficients)
    certificate = certify(problem, weight, coefficients, tolerance)
    return CoupledSolution(coefficients, np.linalg.norm(coefficients, axis=0), tuple(history), certificate)


def refit(problem: CoupledRows, coefficients: np.ndarray) -> np.ndarray:
    """Least squares on the columns of ``coefficients`` that are not zero (and those without a penalty): (r, d).

    The columns were chosen by the norms; on them nothing is shrunk any more. Of several solutions the shortest.
    """
    kept = (coefficients != 0.0).any(axis=0) | ~problem.grouped
    result = np.zeros_like(coefficients)
    for one in problem._classes:
        used = np.flatnonzero(kept & _mask(problem, one))
        found = np.linalg.lstsq(problem.design[used].T, problem.targets[one.rows].T, rcond=None)[0]
        result[np.ix_(one.rows, used)] = found.T
    return result


def certify(
    problem: CoupledRows, weight: float, coefficients: np.ndarray, tolerance: float = 1e-6
) -> CoupledCertificate:
    """What is proven of any ``coefficients`` (r, d), from the design itself."""
    _check_weight(weight)
    for one in problem._classes:
        outside = ~_mask(problem, one)
        if coefficients[np.ix_(one.rows, np.flatnonzero(outside))].any():
            raise OptionError("the coefficients use features that their rows may not use.")
    residual = problem.targets - coefficients @ problem.design
    norms = np.linalg.norm(coefficients[:, problem.grouped], axis=0)
    primal = problem.loss_weight * float((residual**2).sum()) + weight * float(norms.sum())
    dual_point = 2.0 * problem.loss_weight * residual
    worst = 0.0
    for one in problem._classes:
        if one.free.size:
            mine = _outside(dual_point[one.rows], one.basis)
            dual_point[one.rows] = mine
            features = problem.design[one.free]
            size = np.linalg.norm(features, axis=1) * np.linalg.norm(mine, axis=1)[:, None]
            cosines = np.divide(np.abs(mine @ features.T), size, out=np.zeros_like(size), where=size > 0)
            worst = max(worst, float(cosines.max(initial=0.0)))
    reach = problem._norms([problem.design[one.grouped] @ dual_point[one.rows].T for one in problem._classes])
    most = float(reach.max(initial=0.0))
    inner, square = float((dual_point * problem.targets).sum()), float((dual_point**2).sum())
    dual = 0.0
    if square > 0.0:
        limit = min(weight / most, 1e300) if most > 0.0 else 1e300
        step = float(np.clip(2.0 * problem.loss_weight * inner / square, -limit, limit))
        dual = max(0.0, step * inner - step * step * square / (4.0 * problem.loss_weight))
    scale = max(primal, 1e-2 * problem.loss_weight * float((problem.targets**2).sum()))
    gap = (primal - dual) / scale if scale > 0.0 else 0.0
    return CoupledCertificate(primal, dual, gap, worst, gap <= tolerance)


def _check_weight(weight: float) -> None:
    if not (np.isfinite(weight) and weight > 0.0):
        raise OptionError(f"the weight of the column norms must be finite and above 0, got {weight!r}.")


def _mask(problem: CoupledRows, one: _Class) -> np.ndarray:
    return np.ones(len(problem.design), bool) if problem.allowed is None else problem.allowed[one.rows[0]]


def _fit_free(problem: CoupledRows, one: _Class, coefficients: np.ndarray) -> None:
    """The features without a penalty, by least squares on what the grouped ones leave."""
    if one.free.size:
        left = problem.targets[one.rows] - coefficients[one.rows] @ problem.design
        found = np.linalg.lstsq(problem.design[one.free].T, left.T, rcond=None)[0]
        coefficients[np.ix_(one.rows, one.free)] = found.T


def _ridge(one: _Class, eta: np.ndarray, shrink: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V (features, rows) of the ridge with eta, the features with eta > 0, and L^-1 diag(root eta) G of those (k, features), where
    L L^T = diag(root eta) G diag(root eta) + s I."""
    inside = np.flatnonzero(eta[one.grouped] > 0.0)
    root = np.sqrt(eta[one.grouped][inside])
    system = root[:, None] * one.gram[np.ix_(inside, inside)] * root
    system[np.diag_indices_from(system)] += shrink
    lower = np.linalg.cholesky(system)
    right = np.hstack([root[:, None] * one.correlation[inside], root[:, None] * one.gram[inside]])
    solved = scipy.linalg.solve_triangular(lower, right, lower=True)
    rows = one.correlation.shape[1]
    found = np.zeros_like(one.correlation)
    found[inside] = root[:, None] * scipy.linalg.solve_triangular(lower.T, solved[:, :rows], lower=False)
    return found, inside, solved[:, rows:]


def _evaluate(problem: CoupledRows, weight: float, eta: np.ndarray) -> _Point:
    lam, lw = weight, problem.loss_weight
    value, loss, inner, squares = 0.5 * lam * float(eta.sum()), 0.0, 0.0, 0.0
    coefficients, correlations = [], []
    for one in problem._classes:
        found, inside, _ = _ridge(one, eta, lam / (2.0 * lw))
        left = one.correlation - one.gram[:, inside] @ found[inside]
        fitted = float((found * one.correlation).sum())
        value += lw * (one.squares - fitted)
        mine = max(one.squares - fitted - float((found * left).sum()), 0.0)  # ||Z - V W||^2
        loss, inner, squares = loss + mine, inner + one.squares - fitted, squares + one.squares
        coefficients.append(found)
        correlations.append(left)
    reach = 2.0 * lw * problem._norms(correlations)
    gradient = 0.5 * lam * (1.0 - (reach / lam) ** 2)
    primal = lw * loss + lam * float(problem._norms(coefficients).sum())
    step = min(lam / max(float(reach.max(initial=0.0)), 1e-300), inner / loss if loss > 0 else 1.0)
    dual = 2.0 * lw * step * inner - lw * step * step * loss
    scale = max(primal, 1e-2 * lw * squares)
    gap = (primal - dual) / scale if scale > 0.0 else 0.0
    return _Point(eta, value, gradient, coefficients, correlations, gap)


def _start(problem: CoupledRows, weight: float) -> np.ndarray:
    """The norm of each column if it were alone."""
    sizes = problem._norms([one.correlation for one in problem._classes])
    squares = np.zeros_like(sizes)
    for one in problem._classes:
        squares[one.grouped] = np.maximum(squares[one.grouped], one.gram.diagonal())
    excess = np.maximum(sizes - weight / (2.0 * problem.loss_weight), 0.0)
    return np.divide(excess, squares, out=np.zeros_like(excess), where=squares > 0)


def _newton(problem: CoupledRows, weight: float, now: _Point) -> _Point | None:
    """The next point by a projected Newton step, or None where no step of it is better than reweighting."""
    grouped, eta = np.flatnonzero(problem.grouped), now.eta
    small = 1e-9 * float(eta.max(initial=0.0))
    moving = grouped[(now.gradient[grouped] < 0.0) | (eta[grouped] > small)]
    if not moving.size:
        return None
    shrink = weight / (2.0 * problem.loss_weight)
    place = np.full(len(eta), -1)
    place[moving] = np.arange(moving.size)
    hessian = np.zeros((moving.size, moving.size))
    for one, left in zip(problem._classes, now.correlations, strict=True):
        mine = np.flatnonzero(place[one.grouped] >= 0)
        _, _, solved = _ridge(one, eta, shrink)
        inner = one.gram[np.ix_(mine, mine)] - solved[:, mine].T @ solved[:, mine]
        target = place[one.grouped[mine]]
        hessian[np.ix_(target, target)] += (left[mine] @ left[mine].T) * inner
    hessian *= 2.0 * problem.loss_weight / shrink**2
    diagonal = hessian.diagonal() + 1e-300
    for damping in _DAMPINGS:
        try:
            factor = scipy.linalg.cho_factor(hessian + np.diag(damping * diagonal))
        except np.linalg.LinAlgError:
            continue
        step = -scipy.linalg.cho_solve(factor, now.gradient[moving])
        found = _search(problem, weight, now, moving, step) if np.isfinite(step).all() else None
        if found is not None:
            return found
    return None


def _search(
    problem: CoupledRows, weight: float, now: _Point, moving: np.ndarray, step: np.ndarray
) -> _Point | None:
    """The first point along ``step``, projected to eta >= 0, that is better; None where none is."""
    eta = now.eta
    start = np.zeros_like(eta)
    start[moving] = eta[moving]
    share = 1.0
    for _ in range(_HALVINGS):
        trial = start.copy()
        trial[moving] = np.maximum(eta[moving] + share * step, 0.0)
        share *= 0.5
        try:
            found = _evaluate(problem, weight, trial)
        except np.linalg.LinAlgError:  # far too large an eta
            continue
        foreseen = float(now.gradient @ (trial - eta))
        if found.value < now.value and found.value <= now.value + 1e-4 * foreseen:
            return found
        # so near that rounding hides the difference of two values of f: the gap, which is linear in eta's error, still tells
        if abs(foreseen) <= _HIDDEN * abs(now.value) and found.gap <= 0.5 * now.gap:
            return found
    return None
