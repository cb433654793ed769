"""Options that several commands share: which data, and how to load a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from simtool.networks.network import NetworkSpec

Function = TypeVar("Function", bound=Callable[..., Any])


class ShapeType(click.ParamType):
    """``1,28,28`` or ``1x28x28`` as a tuple of integers."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(
                int(part) for part in str(value).strip("()").replace("x", ",").split(",") if part.strip()
            )
        except ValueError:
            self.fail(f"{value!r} is not a shape such as 1,28,28.", param, ctx)


def _all(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def data_options(split_default: str, required: bool = True) -> Callable[[Function], Function]:
    """Adds --data, --split, --samples, --seed; parameters ``data``, ``split``, ``samples``, ``seed``."""
    return _all(
        click.option(
            "--data",
            required=required,
            metavar="DATA",
            help="digits, fashion-mnist, mnist; an .npz or .h5 (PATH:inputs,labels); a folder of IDX files; package.module:f.",
        ),
        click.option(
            "--split", default=split_default, show_default=True, help="Ignored where the data has no splits."
        ),
        click.option("--samples", type=int, help="How many samples, chosen by --seed. [default: all]"),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Seed of the choice of samples.",
        ),
    )


def network_options(prefix: str = "") -> Callable[[Function], Function]:
    """Adds --model-arg, --weights, --input-shape, --trust-model (each with ``prefix`` in front, as ``baseline-``).

    The parameters are always ``model_arg``, ``weights``, ``input_shape``, ``trust_model``; pass them to :func:`network_spec`.
    """
    return _all(
        click.option(
            f"--{prefix}model-arg",
            "model_arg",
            multiple=True,
            metavar="K=V",
            help="Argument of the factory; repeatable.",
        ),
        click.option(
            f"--{prefix}weights",
            "weights",
            type=click.Path(path_type=Path),
            help=".safetensors or a weights-only state_dict.",
        ),
        click.option(
            f"--{prefix}input-shape",
            "input_shape",
            type=ShapeType(),
            help="One sample as the network takes it, as 1,28,28.",
        ),
        click.option(
            f"--{prefix}trust-model",
            "trust_model",
            is_flag=True,
            help="Load pickled modules and .pt2, which can run code.",
        ),
    )


def network_spec(
    network: str,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
) -> NetworkSpec:
    """What the options of :func:`network_options` say about ``network``."""
    from simtool.networks.network import NetworkSpec

    return NetworkSpec(network, tuple(model_arg), weights, input_shape, trust_model)


def optional_network(
    network: str | None,
    model_arg: tuple[str, ...],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
) -> NetworkSpec | None:
    """The same where --network may be left out; its options may not come without it. Raises OptionError."""
    from simtool.errors import OptionError

    if network is not None:
        return network_spec(network, model_arg, weights, input_shape, trust_model)
    if model_arg or weights or input_shape or trust_model:
        raise OptionError(
            "--model-arg, --weights, --input-shape and --trust-model describe a network, which is missing. Pass --network NETWORK, or leave "
            "them out."
        )
    return None
