"""What may be asked of a budget of non-zeros: its size, its pattern, how supports are found, on which states and samples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from simtool.errors import OptionError

if TYPE_CHECKING:
    from simtool.stages.sparsify.options import SparsifyOptions

PATHS = ("elimination", "lasso", "reweighted", "perspective")
# Weights of samples by row, that --weight-samples takes beside a file.
GATE, FISHER = "gate", "fisher"
_LARGEST_PATTERN = 64


def parse_pattern(text: str) -> tuple[int, int]:
    """N and M of ``N:M``. Raises OptionError."""
    found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text)
    keep, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= keep < of <= _LARGEST_PATTERN:
        raise OptionError(
            f"--pattern must be N:M with 1 <= N < M <= {_LARGEST_PATTERN} (of every M consecutive features N stay), got {text!r}. Try 2:4."
        )
    return keep, of


def check_budget(options: SparsifyOptions) -> None:
    """Raise OptionError for what does not go together."""
    if options.paths is not None and options.paths not in PATHS:
        raise OptionError(f"--paths must be one of {', '.join(PATHS)}, got {options.paths!r}.")
    if options.kappa_relative and options.kappa is None:
        raise OptionError("--kappa-relative says how --kappa counts. Pass --kappa, or leave it out.")
    if options.kappa_relative and options.structure == "free":
        raise OptionError(
            "--kappa-relative bounds each row by its own norm, which proves nothing about --structure free. Leave it out."
        )
    if options.kappa_relative and options.eliminate == "heuristic":
        raise OptionError(
            "--kappa-relative needs each row's own least squares on all features, and --eliminate heuristic removes features first. Leave "
            "one of them out."
        )
    if not options.has_budget:
        _require_budget(options)
        return
    if options.target_sparsity is not None and options.target_nnz is not None:
        raise OptionError("--target-sparsity and --target-nnz ask for the same thing. Leave one of them out.")
    if options.target_sparsity is not None and not 0.0 <= options.target_sparsity < 1.0:
        raise OptionError(
            f"--target-sparsity must lie in [0, 1), got {options.target_sparsity!r}: .9 leaves a tenth of the network's non-zeros."
        )
    if options.target_nnz is not None and options.target_nnz < 0:
        raise OptionError(f"--target-nnz must not be negative, got {options.target_nnz}.")
    option = _asked(options)
    if options.pattern is not None:
        parse_pattern(options.pattern)
        if options.paths not in (None, "elimination"):
            raise OptionError(f"--pattern needs --paths elimination, got {options.paths}. Leave --paths out.")
    if options.objective not in ("lasso", "least-squares") or options.match == "exact":
        raise OptionError(
            f"{option} fits least squares on the supports it chooses (with --kappa, under its bound), got --objective {options.objective}"
            f"{' --match exact' if options.match == 'exact' else ''}. Leave the objective out."
        )
    if options.solver not in (None, "native"):
        raise OptionError(f"{option} needs --solver native, got {options.solver!r}. Leave --solver out.")
    given = {
        "--eliminate": None if options.eliminate == "none" else options.eliminate,
        "--mask": options.mask,
    }
    for other, value in given.items():
        if value is not None:
            raise OptionError(
                f"{option} chooses the features of every row itself: leave {other} {value} out."
            )
    if options.weighs_rows and (options.pattern is not None or options.paths not in (None, "elimination")):
        other = f"--pattern {options.pattern}" if options.pattern is not None else f"--paths {options.paths}"
        raise OptionError(
            f"--weight-samples {options.weight_samples} finds supports by elimination with each row's own weights. Leave {other} out."
        )
    if options.sequential and options.structure == "free":
        raise OptionError(
            "--sequential goes from layer to layer, and in --structure free every state may feed every other. Use --structure layered or dag."
        )


def _asked(options: SparsifyOptions) -> str:
    if options.target_nnz is not None:
        return "--target-nnz"
    return "--target-sparsity" if options.target_sparsity is not None else "--pattern"


def _require_budget(options: SparsifyOptions) -> None:
    """Refuse what only a budget has."""
    given = {
        "--paths": options.paths,
        "--sequential": options.sequential or None,
        f"--weight-samples {options.weight_samples}": options.weight_samples if options.weighs_rows else None,
    }
    for option, value in given.items():
        if value is not None:
            raise OptionError(
                f"{option} belongs to a budget of non-zeros. Pass --target-sparsity S or --target-nnz N, or leave it out."
            )
