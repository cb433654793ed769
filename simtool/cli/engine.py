"""Options that say where a run is solved, shared by the commands that solve one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from simtool.engines import EngineOptions

Function = TypeVar("Function", bound=Callable[..., Any])
ENGINES = ["serial", "process", "ray", "slurm"]
_SLURM = ("partition", "time", "cpus_per_task", "array_size", "memory", "account", "extra", "ray_nodes")


def engine_options(default: str | None) -> Callable[[Function], Function]:
    """Adds --engine and what belongs to each engine; turn the parameters into options by :func:`taken_engine`."""
    options = (
        click.option(
            "--engine",
            type=click.Choice(ENGINES),
            default=default,
            show_default=default is not None,
            help="Where rows are solved; the answer is the same."
            + ("" if default else " [default: as before]"),
        ),
        click.option(
            "--workers", type=int, help="Tasks at once. [default: all cores; ray: all of the cluster]"
        ),
        click.option(
            "--ray-address",
            metavar="ADDRESS",
            help="ray: auto (a running cluster), local, or an address. [default: auto]",
        ),
        click.option("--partition", help="slurm: the partition."),
        click.option("--time", metavar="T", help="slurm: time limit of an array task, as 2:00:00."),
        click.option("--cpus-per-task", type=int, help="slurm: cores of an array task. [default: 1]"),
        click.option("--array-size", type=int, help="slurm: tasks of an array, at most. [default: 16]"),
        click.option(
            "--memory", type=int, metavar="MIB", help="slurm: memory of an array task. [default: the site's]"
        ),
        click.option("--account", help="slurm: whom to charge."),
        click.option(
            "--sbatch",
            "extra",
            multiple=True,
            metavar="OPTION",
            help="slurm: a further option, as --sbatch=--qos=short; repeatable.",
        ),
        click.option(
            "--ray-nodes", type=int, help="slurm: solve on Ray inside one allocation of so many nodes."
        ),
        click.option("--wait", is_flag=True, help="slurm: return when the run has ended."),
        click.option(
            "--allow-mixed",
            is_flag=True,
            help="Let machines with other packages, BLAS or CPU work on the run; recorded in the model.",
        ),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def taken_engine(options: dict[str, Any]) -> tuple[EngineOptions | None, bool]:
    """Take the parameters of :func:`engine_options` out of ``options``: the engine (None: not asked for), --allow-mixed.

    Raises OptionError for options that do not belong to the engine.
    """
    from simtool.engines import EngineOptions
    from simtool.errors import OptionError

    name, workers, address = options.pop("engine"), options.pop("workers"), options.pop("ray_address")
    wait, allow_mixed = options.pop("wait"), options.pop("allow_mixed")
    given = {key: options.pop(key) for key in _SLURM}
    given = {key: value for key, value in given.items() if value not in (None, ())}
    if name is None:  # what belongs to one engine alone names it
        name = "slurm" if given or wait else "ray" if address is not None else None
    if name is None:
        if workers is not None:
            raise OptionError(
                f"--workers {workers} was given without an engine. Add --engine process or --engine ray."
            )
        return None, allow_mixed
    slurm = None
    if given:
        from simtool.engines.slurm import SlurmOptions

        slurm = SlurmOptions(**given)
    return EngineOptions(name, workers, address, slurm, wait), allow_mixed
