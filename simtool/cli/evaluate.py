"""``simtool evaluate``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from simtool.cli.options import data_options, network_options
from simtool.cli.output import common_options, emit, progress_for

_COLUMNS = 80
DEFAULT_EPSILON = "0.004,0.008"


@click.command(
    epilog="Example: simtool evaluate run --data fashion-mnist --baseline mlp.onnx --attack fgsm -o report",
    short_help="Accuracy, sparsity and robustness of a model, as a report.",
)
@click.argument("model", type=click.Path(path_type=Path))
@data_options("test")
@click.option("--baseline", help="The network the model replaces (the options below say how to load it).")
@network_options()
@click.option(
    "--attack", type=click.Choice(["fgsm", "inversion"]), help="Perturb the inputs. [default: no attack]"
)
@click.option("--epsilon", help="Sizes of the perturbation, separated by commas. [default: 0.004,0.008]")
@click.option("--fraction", type=float, help="Share of the inputs perturbed. [default: .5; inversion: 1]")
@click.option(
    "--gradient",
    type=click.Choice(["model", "baseline"]),
    help="Whose gradient fgsm follows. [default: model]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The report folder to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
@common_options
def command(
    model: Path,
    data: str,
    split: str,
    samples: int | None,
    seed: int,
    baseline: str | None,
    model_arg: Any,
    weights: Path | None,
    input_shape: Any,
    trust_model: bool,
    attack: str | None,
    epsilon: str | None,
    fraction: float | None,
    gradient: str | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure MODEL (a run folder or its model.h5) on held-out data, beside the network it came from.

    Writes a folder with report.html (open it in a browser), report.json and the figures.
    """
    from simtool.cli.options import network_spec
    from simtool.errors import OptionError
    from simtool.report import evaluate

    if baseline is None and (model_arg or weights or input_shape or trust_model):
        raise OptionError(
            "--model-arg, --weights, --input-shape and --trust-model describe the baseline, which is missing. "
            "Pass --baseline NETWORK, or leave them out."
        )
    if attack is None and not (epsilon is None and fraction is None and gradient is None):
        raise OptionError(
            "--epsilon, --fraction and --gradient describe an attack, which is missing. "
            "Pass --attack fgsm or --attack inversion, or leave them out."
        )
    if attack == "inversion" and gradient is not None:
        raise OptionError("--attack inversion follows no gradient. Leave --gradient out.")
    spec = None
    if baseline is not None:
        spec = network_spec(baseline, model_arg, weights, input_shape, trust_model)
    result = evaluate(
        model,
        data,
        output=output,
        split=split,
        baseline=spec,
        attack=attack,
        epsilons=[
            part.strip()
            for part in (DEFAULT_EPSILON if epsilon is None else epsilon).split(",")
            if part.strip()
        ],
        fraction=fraction,
        gradient=gradient or "model",
        samples=samples,
        seed=seed,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    emit(result, as_json, describe(result))


def describe(result: dict[str, Any]) -> str:
    """A short aligned table, then the facts that have no baseline column."""
    from simtool.report import text

    head, body = text.summary(result)
    rows = [head, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for first, *others in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    facts = [("sparsity", f"{text.sparsity(result)}")]
    if result["sparsity"] is not None:
        facts[0] = ("sparsity", f"{text.percent(result['sparsity'])} of {result['denominator']}")
    if result["certified"] is None:
        if result["structure"] == "exact":
            facts.append(("certified rows", "none needed: the exact form of a network"))
    else:
        chosen = ", on supports that a heuristic chose" if result["fixed_support"] else ""
        facts.append(("certified rows", f"{result['certified']} of {result['rows']}{chosen}"))
    by = result["well_posed_by"]
    facts.append(("well-posed", f"yes, {by}" if by else "not proven"))
    if result["rho"] is not None:
        facts.append(
            ("bounds", f"||S||inf {text.number(result['s_norm_inf'])}, rho {text.number(result['rho'])}")
        )
    if result["iterations_max"]:
        facts.append(
            ("iterations", f"mean {result['iterations_mean']:.1f}, largest {result['iterations_max']}")
        )
    width = max(len(name) for name, _ in facts) + 2
    lines.append("")
    for name, value in facts:
        lines += _wrapped(f"{name:<{width}}{value}", width)
    lines.append(f"{'report':<{width}}{Path(result['report']) / 'report.html'}")  # a path stays in one piece
    for kind in ("warning", "note"):
        for remark in result[f"{kind}s"]:
            lines += ["", *_wrapped(f"{kind}: {remark}", 2)]
    return "\n".join(lines).replace(text.MISSING, "-")  # not every terminal can show the dash


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(
        line, _COLUMNS, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False, drop_whitespace=True,
    )  # fmt: skip
