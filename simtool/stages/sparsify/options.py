"""What may be asked of sparsify, its defaults, and the objective each group of rows gets from it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

from simtool.errors import OptionError
from simtool.importing import is_reference
from simtool.penalty import Penalty
from simtool.problem import Objective
from simtool.solvers import SOLVERS
from simtool.stages.sparsify.budget_options import FISHER, GATE, check_budget
from simtool.stages.sparsify.constraints import SIGNS, parse_box

_log = logging.getLogger("simtool")

OBJECTIVES = ("lasso", "l1", "perspective", "elastic-net", "least-squares")
STRUCTURES = ("layered", "dag", "free")
KAPPA_ON = ("a", "ab")
ELIMINATE = ("none", "safe", "heuristic")
MATCHES = ("relaxed", "exact")
CONE_SOLVERS = ("clarabel", "scs", "mosek")

_LOSS_WEIGHT = {"lasso": 0.5, "l1": 0.1, "perspective": 0.1, "elastic-net": 0.5, "least-squares": 0.5}
_BETA = {"lasso": 0.0, "l1": 1e-3, "elastic-net": 0.0, "perspective": 0.0}
_ALPHA: dict[str, float] = {"perspective": 1e-3}
# Of perspective only where it is given: lam2 is alpha otherwise.
_GAMMA: dict[str, float | None] = {"elastic-net": 1e-2, "perspective": None}
_OWN_LOSS_WEIGHT = 0.1
_LASSO_KAPPA = 0.99
_FREE_KAPPA = 0.99
_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 1e-12, 1e12


@dataclass(frozen=True)
class SparsifyOptions:
    """Hyper-parameters as typed; None means the default of the objective (see :func:`resolve`).

    Attributes
    ----------
    objective : lasso, l1, perspective, elastic-net or least-squares; or package.module:function, file.py:function, a
        function (a, b) -> (CVXPY expression, [constraints]) of one row (see simtool.solvers.custom.objective)
    structure : layered, dag or free
    kappa, kappa_on : bound of ||w_S||_1 for rows of Z, and S: ``a`` (the A-part) or ``ab`` (all of the row)
    kappa_outputs : the same bound for rows of Y; None for none
    lambda1, lambda2 : loss weights of rows of Z and of Y
    alpha, beta, gamma : weights of the perspective, l1 and squared l2 penalties
    mean_loss : divide the loss by the number of samples
    match : relaxed weighs the loss; exact asks for W^T w = z (SIM 2b, 2c): the least penalty among the rows that match, or
        any such row where the objective has no penalty
    solver : one of SOLVERS; the default is native, and clarabel for exact matching and objectives of one's own
    tol : relative duality gap at which a row counts as certified
    eliminate : safe reports the features that are proven inactive, heuristic removes all but ``features`` before
        the rows are solved
    features : how many states and inputs heuristic keeps; the bias stays beside them
    sign, box : nonnegative or nonpositive; LO,HI with LO <= 0 <= HI: bounds of every coefficient but the bias's
    mask : a .npy (n + q, n + p) of zeros and ones, or a model: the coefficients there may be; in a spec, its sha256
    weight_samples : a .npy (m,) of weights of the samples in the loss; in a spec, its sha256. Or ``gate`` or ``fisher``,
        with a budget: samples weigh less in a row whose gate is closed on them, or where the network is sure
    target_sparsity, target_nnz : how sparse the model shall be, as a share of the network's non-zero parameters in [0, 1), or as the number of
        non-zeros that stay: supports are chosen by elimination under one budget for all rows, coefficients are least squares on them
    anchor : a ridge towards the network's own rows, relative to the features' mean square, for few samples; None for none
    paths : how a budget's supports of every size are found, one of PATHS; None for elimination
    pattern : N:M, of every M consecutive features of a row at most N stay
    sequential : with a budget, fit layer by layer on the states of the part that is sparse already
    kappa_relative : kappa counts in l1 norms of each row's own least squares
    untied : give every position of a layer with shared weights rows of its own (the papers' expanded rows), instead of one row for
        each of its output channels; `layered` only
    """

    objective: str = "lasso"
    structure: str = "layered"
    kappa: float | None = None
    kappa_on: str | None = None
    kappa_outputs: float | None = None
    lambda1: float | None = None
    lambda2: float | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    mean_loss: bool = False
    match: str = "relaxed"
    solver: str | None = None
    tol: float = 1e-6
    eliminate: str = "none"
    features: int | None = None
    sign: str | None = None
    box: str | None = None
    mask: str | None = None
    weight_samples: str | None = None
    untied: bool = False
    target_sparsity: float | None = None
    target_nnz: int | None = None
    anchor: float | None = None
    paths: str | None = None
    pattern: str | None = None
    sequential: bool = False
    kappa_relative: bool = False

    def __post_init__(self) -> None:
        if not self.custom and self.objective not in OBJECTIVES:
            raise OptionError(
                f"--objective must be one of {', '.join(OBJECTIVES)}, or a function of your own as package.module:function "
                f"or file.py:function, got {self.objective!r}."
            )
        _one_of("--structure", self.structure, STRUCTURES)
        if self.solver is not None:
            _one_of("--solver", self.solver, SOLVERS)
        _one_of("--match", self.match, MATCHES)
        _one_of("--eliminate", self.eliminate, ELIMINATE)
        if self.eliminate == "heuristic" and self.features is None:
            raise OptionError("--eliminate heuristic needs --features F, the number of features to keep.")
        if self.eliminate != "heuristic" and self.features is not None:
            raise OptionError(
                f"--features {self.features} belongs to --eliminate heuristic, got --eliminate {self.eliminate}. "
                "Add it, or leave --features out."
            )
        if self.untied and self.structure != "layered":
            raise OptionError(
                f"--untied belongs to --structure layered; rows of --structure {self.structure} are never shared. Leave it out."
            )
        if self.sign is not None:
            _one_of("--sign", self.sign, SIGNS)
        if self.box is not None:
            parse_box(self.box)
        if self.mask is not None and self.eliminate != "none":
            raise OptionError(
                f"--mask gives every row features of its own, --eliminate {self.eliminate} looks for those that no row needs: "
                "leave one of them out."
            )
        if self.kappa_on is not None:
            _one_of("--kappa-on", self.kappa_on, KAPPA_ON)
            bounded = self.kappa is not None or self.kappa_outputs is not None or self.structure == "free"
            the_lasso = self.objective == "lasso" and self.match == "relaxed"
            if self.kappa_on == "ab" and not bounded and not the_lasso:  # "a" is what is meant without it
                raise OptionError(
                    f"--kappa-on {self.kappa_on} says what kappa bounds, but --objective {self.objective} has none. Pass "
                    "--kappa, or leave --kappa-on out."
                )
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            defaults: dict[str, dict[str, Any]] = {"alpha": _ALPHA, "beta": _BETA, "gamma": _GAMMA}
            allowed = defaults[name]
            if value is not None and self.objective not in allowed:
                raise OptionError(
                    f"--{name} does not belong to --objective {self.objective}; it belongs to "
                    f"{', '.join(allowed)}. Leave it out or change the objective."
                )
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise OptionError(f"--{name} must be finite and >= 0, got {value!r}.")
        for name in ("lambda1", "lambda2"):
            value = getattr(self, name)
            if value is not None and not _SMALLEST_WEIGHT <= value <= _LARGEST_WEIGHT:
                raise OptionError(
                    f"--{name} must lie in [{_SMALLEST_WEIGHT:g}, {_LARGEST_WEIGHT:g}], got {value!r}: beyond, the "
                    "loss drowns in rounding, or the penalty does."
                )
        for name in ("kappa", "kappa_outputs"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise OptionError(
                    f"--{name.replace('_', '-')} must be finite and >= 0, got {value!r}. It bounds an l1 norm."
                )
        if not (math.isfinite(self.tol) and 1e-12 <= self.tol <= 0.1):
            raise OptionError(f"--tol must lie in [1e-12, 0.1], got {self.tol!r}. The default is 1e-6.")
        if self.anchor is not None and not (math.isfinite(self.anchor) and 0.0 < self.anchor <= 1e6):
            raise OptionError(
                f"--anchor must lie in (0, 1e6], got {self.anchor!r}. It weighs the distance to the network's own rows; try 0.01."
            )
        if self.anchor is not None and self.match == "exact":
            raise OptionError(
                "--anchor weighs a distance beside the loss, but --match exact has none. Leave one of them out."
            )
        self._check_cone_program()
        check_budget(self)

    @property
    def has_budget(self) -> bool:
        """Whether a size, or a pattern of it, is asked for."""
        return self.target_sparsity is not None or self.target_nnz is not None or self.pattern is not None

    @property
    def weights_file(self) -> bool:
        """Whether the samples' weights are the user's own."""
        return self.weight_samples is not None and not self.weighs_rows

    @property
    def weighs_rows(self) -> bool:
        """Whether samples weigh differently in each row: see :mod:`simtool.stages.sparsify.sample_weights`."""
        return self.weight_samples in (GATE, FISHER)

    @property
    def custom(self) -> bool:
        """Whether the objective is a function of the user's own."""
        return self.objective not in OBJECTIVES and is_reference(self.objective)

    @property
    def needs_cone_solver(self) -> bool:
        """Exact matching and objectives of one's own are cone programs."""
        return self.custom or self.match == "exact"

    def _check_cone_program(self) -> None:
        if not self.needs_cone_solver:
            return
        what = f"--objective {self.objective}" if self.custom else "--match exact"
        if self.solver is not None and self.solver not in CONE_SOLVERS:
            raise OptionError(
                f"{what} is solved as a cone program: --solver must be one of {', '.join(CONE_SOLVERS)}, got "
                f"{self.solver!r}. Leave it out for clarabel."
            )
        if self.eliminate != "none":
            raise OptionError(
                f"--eliminate {self.eliminate} belongs to the losses of {', '.join(OBJECTIVES)}, got {what}. Leave it out."
            )
        if self.match == "exact":
            given = [name for name in ("lambda1", "lambda2") if getattr(self, name) is not None]
            given += ["mean-loss"] if self.mean_loss else []
            if given:
                raise OptionError(
                    f"--{given[0]} weighs the loss, but --match exact has none: every row matches its target. Leave it "
                    "out, or use --match relaxed."
                )


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{option} must be one of {', '.join(allowed)}, got {value!r}.")


def resolve(options: SparsifyOptions, largest_lipschitz: float) -> SparsifyOptions:
    """``options`` with every default filled in, and kappa checked against the structure.

    ``largest_lipschitz`` is the largest Lipschitz constant among the blocks: a free structure is well-posed by
    its norm only if kappa times that constant is below one.
    """
    name = options.objective
    kappa, kappa_on = options.kappa, options.kappa_on
    # Exact matching is SIM's problem (8): its kappa bounds the A-part, and is asked for.
    the_lasso = name == "lasso" and options.match == "relaxed"
    if options.has_budget and kappa is None and options.structure != "free":
        name, the_lasso = "least-squares", False
    if kappa is None and the_lasso:
        kappa = _LASSO_KAPPA
    if kappa_on is None:
        kappa_on = "ab" if the_lasso else "a"
    solver = options.solver
    if solver is None:
        solver = "clarabel" if options.needs_cone_solver else "native"
        if options.needs_cone_solver:
            _log.info(
                "%s is a cone program: using --solver clarabel", name if options.custom else "--match exact"
            )
    limit = 1.0 / largest_lipschitz
    if options.structure == "free":
        if kappa is None or (options.kappa is None and kappa >= limit):
            kappa = min(_FREE_KAPPA, _FREE_KAPPA * limit)
            _log.info("a free structure needs a kappa: using --kappa %.6g", kappa)
        if kappa == 1.0 and kappa >= limit:
            _log.warning(
                "kappa = 1 is used by the papers, but a norm of 1 proves nothing about well-posedness"
            )
        elif kappa >= limit:
            raise OptionError(
                f"kappa must be in [0, {limit:.6g}) for a free structure (1 / the largest Lipschitz constant "
                f"{largest_lipschitz:.6g} of the activations), got {kappa:g}. Pass --kappa "
                f"{math.floor(0.95 * limit * 1000) / 1000:g}, or --structure layered, which is well-posed "
                "without it."
            )
    lambda1, lambda2 = options.lambda1, options.lambda2
    if options.match == "relaxed":
        default = _LOSS_WEIGHT.get(name, _OWN_LOSS_WEIGHT)
        lambda1 = default if lambda1 is None else lambda1
        lambda2 = default if lambda2 is None else lambda2
    return replace(
        options,
        objective=name,
        kappa=kappa,
        kappa_on=kappa_on,
        solver=solver,
        lambda1=lambda1,
        lambda2=lambda2,
        alpha=options.alpha if options.alpha is not None else _ALPHA.get(name),
        beta=options.beta if options.beta is not None else _BETA.get(name),
        gamma=options.gamma if options.gamma is not None else _GAMMA.get(name),
        paths=None if options.paths == "elimination" else options.paths,
    )


def penalty_of(options: SparsifyOptions) -> Penalty:
    """The penalty that resolved ``options`` mean."""
    if options.objective == "perspective":
        assert options.alpha is not None
        lam2 = options.alpha if options.gamma is None else options.gamma / 2.0
        return Penalty(lam0=options.alpha, lam1=options.beta or 0.0, lam2=lam2)
    if options.objective == "elastic-net":
        assert options.gamma is not None
        return Penalty(lam1=options.beta or 0.0, lam2=options.gamma / 2.0)
    return Penalty(lam1=options.beta or 0.0)


def objective_of(options: SparsifyOptions, is_output: bool, samples: int) -> Objective:
    """The objective of rows of Z, or of rows of Y with ``is_output``, from resolved ``options``."""
    weight = options.lambda2 if is_output else options.lambda1
    if options.match == "exact":
        weight = 1.0  # of a loss that is zero
    assert weight is not None
    return Objective(
        loss_weight=weight / samples if options.mean_loss else weight,
        penalty=penalty_of(options),
        kappa=options.kappa_outputs if is_output else options.kappa,
    )
