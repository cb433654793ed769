"""``simtool bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simtool.cli.options import network_options, network_spec
from simtool.cli.output import common_options, emit, progress_for


class NumbersType(click.ParamType):
    """``0.8,0.9`` as a tuple of numbers of one type."""

    name = "numbers"

    def __init__(self, number: type) -> None:
        self.number = number

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.number(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(
                f"{value!r} is no list of numbers such as {'1,1000' if self.number is int else '0.8,0.9'}."
            )


@click.group(
    epilog="Example: simtool bench rows --quick",
    short_help="Speed beside other solvers, of engines and inference; quality beside other pruning.",
)
def command() -> None:
    """Measure simtool beside its peers, at equal certified accuracy, on this machine."""


@command.command(epilog="Example: simtool bench rows --case case-f --network trained/mlp.onnx -o speed")
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="NAME",
    help="case-f, case-f-60000, sparse-l1, dense, mlp-1024, mlp-1024-layered, conv-l1, conv-kappa (or conv), path, memory, import; "
    "repeatable. [default: all]",
)
@click.option(
    "--states", type=click.Path(path_type=Path), help="A states file for every chosen case (not conv)."
)
@click.option("--network", metavar="NETWORK", help="Case F's network. [default: random weights of its sizes]")
@network_options()
@click.option("--data", metavar="DATA", help="What the networks run on. [default: fashion-mnist]")
@click.option("--rows", type=int, default=5, show_default=True, help="Rows that every peer solves.")
@click.option(
    "--seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="How long a peer may take over them, about.",
)
@click.option(
    "--tol", type=float, default=1e-6, show_default=True, help="The relative gap asked of everyone."
)
@click.option(
    "--figure",
    "figures",
    multiple=True,
    type=click.Choice(["gap", "thesis"]),
    help="Gap against time, or the bisection figures of the thesis; repeatable.",
)
@click.option("--quick", is_flag=True, help="Small random networks: whether it works, not how fast.")
@click.option("--markdown", is_flag=True, help="Print only the speed table, as Markdown.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="REPORT", help="A folder for the report."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
@common_options
def rows(
    cases: tuple[str, ...],
    states: Path | None,
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    data: str | None,
    output: Path | None,
    overwrite: bool,
    figures: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """The row solver beside CVXPY (Clarabel, SCS), scikit-learn, celer, skglm and the bisection of the thesis.

    Times are CPU seconds of one thread, everyone's rows are certified by the same certificate, and what fails stays in
    the table with its reason. celer and skglm come with: pip install 'simtool[bench]'.
    """
    from simtool.bench.rows import BenchOptions, bench_rows

    given = None if network is None else network_spec(network, model_arg, weights, input_shape, trust_model)
    result = bench_rows(
        BenchOptions(names=cases, states=states, network=given, data=data, figures=figures, **options),
        output,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    text, speed = result.pop("text"), result.pop("markdown")
    emit(result, as_json, speed.rstrip("\n") if markdown else text)


@command.command(epilog="Example: simtool bench engines --network trained/mlp.onnx -o engines")
@click.option(
    "--case",
    "names",
    multiple=True,
    metavar="NAME",
    help="case-f (784-64-32-16-10) or mlp-1024 (2058 rows); repeatable. [default: both]",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME",
    help="serial, process, ray; repeatable; serial always runs. [default: all]",
)
@click.option(
    "--workers",
    multiple=True,
    type=int,
    metavar="N",
    help="How many workers; repeatable. [default: 1, 2, 4, ... up to the cores]",
)
@click.option("--repeats", type=int, default=3, show_default=True, help="Runs of every engine, interleaved.")
@click.option(
    "--wait",
    type=float,
    default=0.0,
    show_default=True,
    help="Seconds that each run waits, at most, until other programs leave the machine alone.",
)
@click.option("--states", type=click.Path(path_type=Path), help="A states file in place of the cases.")
@click.option("--network", metavar="NETWORK", help="Case F's network. [default: random weights of its sizes]")
@network_options()
@click.option("--data", metavar="DATA", help="What the networks run on. [default: fashion-mnist]")
@click.option("--quick", is_flag=True, help="Small random networks: whether it works, not how fast.")
@click.option("--markdown", is_flag=True, help="Print the report as Markdown.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="REPORT", help="A folder for the report."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
@common_options
def engines(
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    output: Path | None,
    overwrite: bool,
    markdown: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Serial, process and Ray side by side: speed-up, overhead, start-up and memory, at equal bytes.

    Every run is a process of its own; engines take turns, and medians are reported. model.h5 must be the same to the
    byte on all of them. Ray is used where it is installed: pip install 'simtool[ray]'.
    """
    from simtool.bench.engines import EngineBenchOptions, bench_engines

    given = None if network is None else network_spec(network, model_arg, weights, input_shape, trust_model)
    result = bench_engines(
        EngineBenchOptions(network=given, **options),
        output,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    text, page = result.pop("text"), result.pop("markdown")
    emit(result, as_json, page.rstrip("\n") if markdown else text)


@command.command(epilog="Example: simtool bench inference --network trained/mlp.onnx --data fashion-mnist")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="A run folder or its model.h5, as it is.",
)
@click.option("--network", metavar="NETWORK", help="A network, with its weights taken out to --sparsity.")
@network_options()
@click.option(
    "--sizes",
    multiple=True,
    metavar="WIDTHS",
    help="Widths of a ReLU network with random weights; repeatable. "
    "[default: 784-64-32-16-10, 784-256-128-10, 784-1024-1024-10]",
)
@click.option(
    "--sparsity",
    type=NumbersType(float),
    default="0.8,0.9,0.95",
    show_default=True,
    help="Fractions of each layer's weights that are 0.",
)
@click.option(
    "--pattern",
    type=click.Choice(["magnitude", "random"]),
    default="magnitude",
    show_default=True,
    help="Which weights stay: the largest, or any.",
)
@click.option("--batch", type=NumbersType(int), default="1,1000", show_default=True, help="Samples a call.")
@click.option("--data", metavar="DATA", help="Labelled inputs. [default: random numbers, no accuracy]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random."
)
@click.option("--repeats", type=int, default=15, show_default=True, help="Turns of every contender.")
@click.option("--quick", is_flag=True, help="A small random network: whether it works, not how fast.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@common_options
def inference(
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    markdown: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Sparse inference beside the same weights in dense layers (PyTorch, ONNX Runtime) and in scipy's CSR.

    One process and one thread; contenders take turns, and medians are reported beside how far each one's outputs are
    from the model's. A second table has the bytes that the weights take.
    """
    from simtool.bench.inference import InferenceBenchOptions, bench_inference

    given = None if network is None else network_spec(network, model_arg, weights, input_shape, trust_model)
    result = bench_inference(InferenceBenchOptions(network=given, **options), progress=progress_for(quiet))
    text, page = result.pop("text"), result.pop("markdown")
    emit(result, as_json, page if markdown else text)


@command.command(epilog="Example: simtool bench quality --sparsity 0.9,0.95 -o quality")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="A fully connected network, made sparse; repeatable. [default: 784-64-32-16-10, trained from each seed]",
)
@network_options()
@click.option("--data", metavar="DATA", help="Labelled, with a split to train on. [default: fashion-mnist]")
@click.option(
    "--samples",
    type=NumbersType(int),
    metavar="N,...",
    help="Calibration samples, without labels; a table for each number. [default: 6000,1000]",
)
@click.option("--sparsity", type=NumbersType(float), metavar="S,...", help="[default: 0.8,0.9,0.95,0.98]")
@click.option("--seeds", type=int, metavar="N", help="Networks and draws of the samples. [default: 3]")
@click.option("--quick", is_flag=True, help="A small network on digits: whether it works, not how well.")
@click.option("--markdown", is_flag=True, help="Print the report as Markdown.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="REPORT", help="A folder for the report."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
@common_options
def quality(
    networks: tuple[str, ...],
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    output: Path | None,
    overwrite: bool,
    markdown: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Sparse models of the same size, from the same samples, without retraining: ours, and magnitude pruning, Wanda,
    SparseGPT, ALPS and OBC written from their papers.

    Peers share out the non-zeros over layers evenly, and as our model does. Their settings are chosen on the last fifth
    of the samples. About half an hour on one core.
    """
    from simtool.bench.quality import QualityBenchOptions, bench_quality

    given = tuple(network_spec(name, model_arg, weights, input_shape, trust_model) for name in networks)
    result = bench_quality(
        QualityBenchOptions(networks=given, **options),
        output,
        overwrite=overwrite,
        progress=progress_for(quiet),
    )
    text, page = result.pop("text"), result.pop("markdown")
    emit(result, as_json, page.rstrip("\n") if markdown else text)
