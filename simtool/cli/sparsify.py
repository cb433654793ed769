"""``simtool sparsify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.engine import engine_options, taken_engine
from simtool.cli.options import network_options, optional_network
from simtool.cli.output import common_options, emit, progress_for, table
from simtool.cli.status import describe as describe_status
from simtool.importing import is_reference
from simtool.progress import format_seconds

OBJECTIVES = ["lasso", "l1", "perspective", "elastic-net", "least-squares"]


class ObjectiveType(click.ParamType):
    """A name of the family, or package.module:function."""

    name = "NAME|MODULE:FUNCTION"
    choices = tuple(OBJECTIVES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Only what is neither is refused here; the function is looked up later."""
        if value not in self.choices and not is_reference(str(value)):
            self.fail(
                f"{value!r} is neither one of {', '.join(self.choices)} nor package.module:function or file.py:function.",
                param,
                ctx,
            )
        return str(value)


@click.command(
    epilog="Example: simtool sparsify states.h5 --kappa 0.1 -o run",
    short_help="Solve one convex problem per row.",
)
@click.argument("states", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run folder.")
@click.option(
    "--objective",
    type=ObjectiveType(),
    default="lasso",
    show_default=True,
    help=f"{', '.join(OBJECTIVES)}; or a function of your own, (a, b) -> (CVXPY expression, [constraints]).",
)
@click.option(
    "--match",
    type=click.Choice(["relaxed", "exact"]),
    default="relaxed",
    show_default=True,
    help="exact: rows give the states exactly, at the least penalty.",
)
@click.option(
    "--structure", type=click.Choice(["layered", "dag", "free"]), default="layered", show_default=True
)
@click.option("--kappa", type=float, help="Bound of a row's l1 norm. [default: .99 for lasso and for free]")
@click.option(
    "--kappa-relative",
    is_flag=True,
    help="Count --kappa in l1 norms of each row's own least squares: .1 is a tenth.",
)
@click.option(
    "--kappa-on", type=click.Choice(["a", "ab"]), help="What kappa bounds. [default: ab for lasso, else a]"
)
@click.option("--kappa-outputs", type=float, help="The same bound for the rows of Y. [default: none]")
@click.option(
    "--lambda1", type=float, help="Loss weight of state rows. [default: .5; .1 for l1, perspective]"
)
@click.option(
    "--lambda2", type=float, help="Loss weight of output rows. [default: .5; .1 for l1, perspective]"
)
@click.option(
    "--alpha", type=float, help="Weight of the perspective penalty: lam0, and lam2. [default: 1e-3]"
)
@click.option("--beta", type=float, help="Weight of the l1 norm: lam1. [default: 1e-3 for l1, else 0]")
@click.option(
    "--gamma",
    type=float,
    help="Weight of the squared norm, 2 lam2 (elastic-net, perspective). [default: 1e-2, perspective: 2 alpha]",
)
@click.option("--mean-loss", is_flag=True, help="Divide the loss by the number of samples.")
@click.option(
    "--solver",
    type=click.Choice(["native", "bisection", "clarabel", "scs", "mosek"]),
    help="[default: native; clarabel for --match exact and your own objective]",
)
@click.option(
    "--tol", type=float, default=1e-6, show_default=True, help="Relative duality gap of a certified row."
)
@click.option(
    "--eliminate",
    type=click.Choice(["none", "safe", "heuristic"]),
    default="none",
    show_default=True,
    help="safe: report the features proven inactive. heuristic: keep only --features of them.",
)
@click.option("--features", type=int, help="States and inputs that --eliminate heuristic keeps.")
@click.option(
    "--sign",
    type=click.Choice(["nonnegative", "nonpositive"]),
    is_flag=False,
    flag_value="nonnegative",
    help="Sign of every coefficient but the biases; --sign alone means nonnegative.",
)
@click.option("--box", metavar="LO,HI", help="Bounds of every coefficient but the biases, LO <= 0 <= HI.")
@click.option(
    "--mask",
    type=click.Path(),
    metavar="FILE",
    help="Which coefficients there may be: a .npy of zeros and ones, rows [Z; Y] by features [X; U]; or a model.",
)
@click.option(
    "--weight-samples",
    type=click.Path(),
    metavar="FILE|gate|fisher",
    help="Weights of the samples in the loss, a .npy. With a budget also gate: less where a row's ReLU is closed; fisher: and where the "
    "network is sure.",
)
@click.option(
    "--target-sparsity",
    type=float,
    metavar="S",
    help="Keep a share 1 - S of the network's non-zero parameters, chosen over all rows at once, and fit least squares on them.",
)
@click.option("--target-nnz", type=int, metavar="N", help="The same, with N non-zeros kept.")
@click.option(
    "--max-accuracy-drop",
    type=float,
    metavar="D",
    help="In place of a size: the sparsest model that loses at most this fraction on samples it was not fitted on.",
)
@click.option(
    "--recipe",
    type=click.Choice(["auto", "plain", "sequential", "gate", "fisher"]),
    default="auto",
    show_default=True,
    help="How a budget is spent; auto: as does best on the last fifth of the samples, kept back for that.",
)
@click.option(
    "--validate",
    type=click.Choice(["agreement", "labels"]),
    default="agreement",
    show_default=True,
    help="What these samples are judged by: agreement with the network, or the file's labels.",
)
@click.option(
    "--paths",
    type=click.Choice(["elimination", "lasso", "reweighted", "perspective"]),
    help="How a budget finds each row's supports of every size. [default: elimination]",
)
@click.option(
    "--pattern", metavar="N:M", help="Of every M consecutive features of a row keep at most N: 2:4."
)
@click.option(
    "--sequential",
    is_flag=True,
    help="With a budget: fit layer by layer on the states of the part that is sparse already.",
)
@click.option(
    "--network",
    metavar="NETWORK",
    help="The network that the states came from, which --sequential runs where layers share weights over positions.",
)
@network_options()
@click.option(
    "--anchor",
    type=float,
    metavar="R",
    help="Hold the rows near the network's own (a ridge, relative to the features' mean square): for few samples. Try 0.01.",
)
@click.option(
    "--untied",
    is_flag=True,
    help="Of layers whose weights are shared over positions (convolutions), fit every position's row by itself, not one row a channel.",
)
@engine_options("process")
@click.option(
    "--dry-run", is_flag=True, help="Print what the run would take in time, memory and disk; write nothing."
)
@common_options
def command(
    states: Path,
    output: Path,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    **options: Any,
) -> None:
    """Turn STATES into a sparse implicit model: one convex problem per row, each with a proof of optimality.

    The same command again resumes an interrupted run, or prints the result of a finished one. Exit code 3 means
    that the model was written but some rows are not certified at --tol.
    """
    from simtool.errors import OptionError
    from simtool.stages import tune
    from simtool.stages.sparsify import stage
    from simtool.stages.sparsify.options import SparsifyOptions

    wish = tune.Wish(*(options.pop(name) for name in ("recipe", "max_accuracy_drop", "validate")))
    where, allow_mixed = taken_engine(options)
    assert where is not None  # --engine has a default here
    asked = SparsifyOptions(**options)
    given = optional_network(network, model_arg, weights, input_shape, trust_model)
    if dry_run:
        if wish.max_accuracy_drop is not None:
            raise OptionError(
                "--dry-run needs to know the size, and --max-accuracy-drop has to solve rows to find it. Pass --target-sparsity S."
            )
        found = stage.dry_run(states, output, asked, engine=where)
        emit(found, as_json, describe_estimate(found))
        return
    result = tune.sparsify(
        states,
        output,
        asked,
        wish=wish,
        engine=where,
        network=given,
        allow_mixed=allow_mixed,
        progress=progress_for(quiet),
    )
    show(result, as_json, asked.tol)


def show(result: dict[str, Any], as_json: bool, tol: float) -> None:
    """Print the result of a run, or where its jobs stand; exit code 3 where rows are not certified."""
    if "model" not in result:
        emit(result, as_json, describe_status(result))
        return
    emit(result, as_json, describe(result))
    if result["certified"] < result["rows"]:
        click.echo(_what_to_do(result, tol), err=True)
        raise SystemExit(3)


def _what_to_do(result: dict[str, Any], tol: float) -> str:
    """Why rows are not certified, and the remedy for each reason."""
    from simtool.row_status import STATUSES

    missed = result["rows"] - result["certified"]
    lines = [
        f"warning: {missed} of {result['rows']} rows are not certified at --tol {tol:g} (largest relative gap "
        f"{result['max_relative_gap']:.1e}). See simtool inspect {result['run']} --row i."
    ]
    for status in STATUSES[1:]:
        count = result["statuses"].get(status.label, 0)
        if count:
            lines.append(f"  {count} {status.label}: {status.value}")
    return "\n".join(lines)


def describe(result: dict[str, Any]) -> str:
    """The result in a few aligned lines."""
    sparsity = "no baseline" if result["sparsity"] is None else f"{result['sparsity']:.2%}"
    lines = [
        ("rows certified", f"{result['certified']} of {result['rows']}"),
        ("largest relative gap", f"{result['max_relative_gap']:.1e}"),
        (
            "non-zeros",
            f"{result['nnz']} of {result['baseline_nnz']} in the baseline: sparsity {sparsity}",
        ),
        (
            "||A||inf",
            _norms(result),
        ),
        *(
            [
                (
                    "features eliminated",
                    f"{result['eliminated_features']} in all rows, {result['eliminated_per_row_mean']:.1f} a row on average",
                )
            ]
            if "eliminated_features" in result
            else []
        ),
        *(
            [
                (
                    "recipe",
                    f"{result['recipe']}, the best of {_scores(result['validation'])} on samples kept back",
                )
            ]
            if "recipe" in result
            else []
        ),
        ("well-posed", f"yes, {result['well_posed_by']}" if result["well_posed"] else "not proven"),
        (
            "time",
            f"{result['seconds']:.2f} s, {result['solve_seconds']:.2f} s of it solving "
            f"({result['engine']}, {result['workers']} worker{'s' if result['workers'] > 1 else ''})",
        ),
        ("model", result["model"]),
    ]
    return table(lines)


def _scores(validation: dict[str, float]) -> str:
    return ", ".join(f"{name} {score:.2%}" for name, score in validation.items())


def _norms(result: dict[str, Any]) -> str:
    if result["norm_a_inf"] is None:
        return "none: rows of layers, in a network that has no implicit form (or too large a one)"
    raw = f" rescaled, {result['norm_a_inf_raw']:.4g} as stored"
    return f"{result['norm_a_inf']:.4g}" + (raw if result["norm_a_inf"] != result["norm_a_inf_raw"] else "")


def describe_estimate(found: dict[str, Any]) -> str:
    """What --dry-run says, in a few aligned lines."""

    def size(value: int | None) -> str:
        return "unknown" if value is None else f"{value / 2**20:.0f} MiB"

    return table(
        [
            ("rows", f"{found['rows']} in {found['shards']} shards; {found['tiles']} Gram tiles"),
            ("workers", str(found["workers"])),
            ("time", f"about {format_seconds(found['seconds'])}, more where rows end with many non-zeros"),
            ("memory", f"{size(found['memory_bytes'])} of {size(found['free_memory_bytes'])} free"),
            ("disk", f"{size(found['disk_bytes'])} of {size(found['free_disk_bytes'])} free"),
            ("fits", "yes" if found["fits"] else f"no: {found['lack']}"),
        ]
    )
