"""``simtool sweep``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from simtool.cli.engine import engine_options, taken_engine
from simtool.cli.options import network_options, optional_network
from simtool.cli.output import common_options, emit, progress_for
from simtool.cli.sparsify import command as sparsify_command

if TYPE_CHECKING:
    from simtool.stages.sweep import Axis

# Options of sparsify that are the same for all points.
_FIXED = (
    *("objective", "match", "structure", "kappa_relative", "kappa_on", "kappa_outputs", "mean_loss", "solver", "tol"),
    *("eliminate", "features", "sign", "box", "mask", "weight_samples", "paths", "pattern"),
    *("sequential", "anchor", "untied"),
)  # fmt: skip
_PRESETS = ["thesis-3.1", "thesis-3.6", "sim-2", "sim-3", "sim-4"]
_HELP = {
    "kappa": "Bounds of a row's l1 norm.",
    "lambda1": "Loss weights of state rows.",
    "lambda2": "Loss weights of output rows.",
    "alpha": "Weights of the perspective penalty.",
    "beta": "Weights of the l1 norm.",
    "gamma": "Weights of the squared norm.",
    "target_sparsity": "Budgets: shares of the network's non-zero parameters that go.",
    "samples": "How many samples of STATES, from the first.",
}


class ValuesType(click.ParamType):
    """Numbers separated by commas."""

    name = "V,V,..."

    def __init__(self, axis: str) -> None:
        self._axis = axis

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Axis:
        """An Axis; what is no list of numbers is refused here."""
        from simtool.errors import OptionError
        from simtool.stages.sweep import Axis

        if isinstance(value, Axis):
            return value
        try:
            return Axis.parse(self._axis, str(value))
        except OptionError as error:
            self.fail(str(error), param, ctx)


def _axis_options(function: Any) -> Any:
    for name, words in reversed(_HELP.items()):
        option = click.option(f"--{name.replace('_', '-')}", type=ValuesType(name), help=words)
        function = option(function)
    return function


@click.command(
    epilog="Example: simtool sweep states.h5 --kappa 0.01,0.1,0.5,0.99 --kappa-relative --data fashion-mnist --baseline mlp.onnx -o sweep",
    short_help="Many runs on the same states, over grids of options, side by side.",
)
@click.argument("states", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder of the sweep."
)
@click.option("--preset", type=click.Choice(_PRESETS), help="The grid of a figure or table of the papers.")
@_axis_options
@click.option("--target-nnz", type=int, metavar="N", help="One budget for all points: N non-zeros stay.")
@click.option(
    "--recipe",
    type=click.Choice(["auto", "plain", "sequential", "gate", "fisher"]),
    help="With --target-sparsity: as in sparsify; auto tries all of them at every point. [default: plain]",
)
@click.option(
    "--data", metavar="DATA", help="Measure every model on these data. [default: on the states' samples]"
)
@click.option("--split", default="test", show_default=True, help="Of the data.")
@click.option(
    "--eval-samples", type=int, help="How many samples of the data, chosen by --seed. [default: all]"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of that choice, and of the attack.",
)
@click.option("--baseline", metavar="NETWORK", help="The network the models replace.")
@network_options()
@click.option("--attack", type=click.Choice(["fgsm", "inversion"]), help="Measure robust accuracy as well.")
@click.option("--epsilon", help="Sizes of the perturbation, separated by commas. [default: 0.004,0.008]")
@click.option("--fraction", type=float, help="Share of the inputs perturbed. [default: .5; inversion: 1]")
@click.option(
    "--gradient",
    type=click.Choice(["model", "baseline"]),
    help="Whose gradient fgsm follows. [default: model]",
)
@engine_options("process")
@common_options
def command(
    states: Path, output: Path, preset: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Solve STATES once for every value, or every combination of values, and show what size costs.

    Several lists are multiplied. Writes a folder with sweep.csv, sweep.json, sweep.html and its pictures; every point is a run of its
    own in OUT/points. The same command again goes on where an interrupted sweep stopped. Exit code 3 means that some rows of some
    points are not certified at --tol.
    """
    from simtool.report.sweep import sweep
    from simtool.stages.sweep import AXES, PRESETS, Grid, Measure
    from simtool.stages.sweep.presets import grids_of

    where, allow_mixed = taken_engine(options)
    assert where is not None  # --engine has a default here
    axes = [axis for name in AXES if (axis := options.pop(name)) is not None]
    measured = _measure(options, PRESETS[preset].attack if preset is not None else None)
    recipe = options.pop("recipe")
    context = click.get_current_context()
    given = ParameterSource.COMMANDLINE
    fixed = {
        key: options[key] for key in (*_FIXED, "target_nnz") if context.get_parameter_source(key) == given
    }
    grids = (Grid(fixed, tuple(axes)),) if preset is None else grids_of(preset, fixed, axes)
    assert isinstance(measured, Measure)
    result = sweep(
        states,
        output,
        grids,
        measured=measured,
        recipe=recipe,
        preset=preset,
        engine=where,
        network=measured.baseline,
        allow_mixed=allow_mixed,
        progress=progress_for(quiet),
    )
    emit(result, as_json, describe(result))
    missed = [point for point in result["points"] if point["certified"] < point["rows"]]
    if missed:
        click.echo(
            f"warning: {len(missed)} of {len(result['points'])} points have rows that are not certified; see simtool inspect "
            f"{missed[0]['run']}.",
            err=True,
        )
        raise SystemExit(3)


_after = next(index for index, param in enumerate(command.params) if param.name == "target_nnz")
command.params[_after:_after] = [param for param in sparsify_command.params if param.name in _FIXED]


def _measure(options: dict[str, Any], attack: dict[str, Any] | None) -> Any:
    """Take what measures the points out of ``options``; ``attack`` is that of a preset. Raises OptionError."""
    from simtool.errors import OptionError
    from simtool.stages.sweep import Measure

    taken = {key: options.pop(key) for key in ("data", "split", "seed")}
    loading = {key: options.pop(key) for key in ("model_arg", "weights", "input_shape", "trust_model")}
    baseline = options.pop("baseline")
    if baseline is None and any(loading.values()):
        raise OptionError(
            "--model-arg, --weights, --input-shape and --trust-model describe the baseline, which is missing. Pass --baseline NETWORK, "
            "or leave them out."
        )
    asked = {key: options.pop(key) for key in ("attack", "epsilon", "fraction", "gradient")}
    samples = options.pop("eval_samples")
    given = {key: value for key, value in asked.items() if value is not None}
    if given and "attack" not in given and attack is None:
        raise OptionError(
            "--epsilon, --fraction and --gradient describe an attack, which is missing. Pass --attack fgsm or --attack inversion, or "
            "leave them out."
        )
    if "epsilon" in given:
        given["epsilons"] = tuple(part.strip() for part in given.pop("epsilon").split(",") if part.strip())
    preset = dict(attack or {})
    if taken["data"] is None and preset:
        preset = {}
        if not given:  # what is asked for is refused with its own words
            logging.getLogger("simtool").warning(
                "the attack of --preset is measured on data: without --data DATA there is no robust accuracy"
            )
    spec = optional_network(baseline, *loading.values())
    return Measure(**taken, samples=samples, baseline=spec, **{**preset, **given})


def describe(result: dict[str, Any]) -> str:
    """The table of the points, and where the rest is."""
    from simtool.report.sweep import lines
    from simtool.report.text import MISSING

    head, rows = lines(result)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    shown = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    shown += ["", f"report  {result['report']}"]
    return "\n".join(shown).replace(MISSING, "-")
