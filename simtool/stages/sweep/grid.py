"""What may be swept, and the points of a grid: the product of its axes, in the order in which they are listed here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simtool.errors import OptionError
from simtool.stages.sparsify.options import SparsifyOptions

# Slowest first: points of one number of samples come together, since they share a Gram matrix.
AXES = ("samples", "target_sparsity", "lambda1", "lambda2", "alpha", "beta", "gamma", "kappa")
_WHOLE = ("samples",)
_MOST_POINTS = 1000


def option_of(axis: str) -> str:
    """``target_sparsity`` as ``--target-sparsity``."""
    return f"--{axis.replace('_', '-')}"


@dataclass(frozen=True)
class Axis:
    """``name`` (one of AXES) and its values: each as typed, and as a number."""

    name: str
    values: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, name: str, text: str) -> Axis:
        """Values separated by commas. Raises OptionError for what is no number, none at all, or twice the same."""
        return cls.of(name, [part.strip() for part in text.split(",") if part.strip()])

    @classmethod
    def of(cls, name: str, values: Sequence[str | float]) -> Axis:
        """The same from a list."""
        if name not in AXES:
            raise OptionError(f"{name!r} cannot be swept; what can be is {', '.join(AXES)}.")
        option = option_of(name)
        found: list[tuple[str, float]] = []
        for value in values:
            typed = value if isinstance(value, str) else f"{value:.12g}"
            number = _number(typed)
            if number is None or (name in _WHOLE and number != int(number)):
                kind = "a whole number" if name in _WHOLE else "a finite number"
                raise OptionError(
                    f"{option} takes numbers separated by commas, and {typed!r} is not {kind}. For example {option} "
                    f"{'100,200,400' if name in _WHOLE else '0.1,0.5,0.99'}."
                )
            twin = next((text for text, other in found if other == number), None)
            if twin is not None:
                raise OptionError(
                    f"every value of {option} must be given once, but {twin} and {typed} are equal. Leave one of them out."
                )
            found.append((typed, number))
        if not found:
            raise OptionError(f"{option} is empty. Pass at least one number, several separated by commas.")
        return cls(name, tuple(found))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Grid:
    """Axes to be multiplied, on top of ``fixed`` options of sparsify (name -> value; what is missing has its default)."""

    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes
    ----------
    index : its number, from 0
    typed : axis -> value as typed
    values : axis -> number
    options : what its run is asked for
    samples : how many samples of the states it may see, from the first; None for all
    """

    index: int
    typed: dict[str, str]
    values: dict[str, float]
    options: SparsifyOptions
    samples: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index:03d}"

    @property
    def words(self) -> str:
        """``kappa 0.1, samples 200``."""
        return ", ".join(f"{axis.replace('_', ' ')} {text}" for axis, text in self.typed.items())


def points_of(grids: Sequence[Grid]) -> tuple[Point, ...]:
    """All points of ``grids``, one grid after the other, every one checked. Raises OptionError."""
    found: list[Point] = []
    for grid in grids:
        axes = sorted(grid.axes, key=lambda axis: AXES.index(axis.name))
        names = [axis.name for axis in axes]
        count = math.prod(len(axis.values) for axis in axes)
        if len(found) + count > _MOST_POINTS:
            raise OptionError(
                f"the grid has {len(found) + count} points, {_MOST_POINTS} are allowed. Pass fewer values, or several sweeps."
            )
        for chosen in itertools.product(*(axis.values for axis in axes)):
            typed = {name: text for name, (text, _) in zip(names, chosen, strict=True)}
            values = {name: number for name, (_, number) in zip(names, chosen, strict=True)}
            samples = int(values["samples"]) if "samples" in values else None
            if samples is not None and samples < 1:
                raise OptionError(f"--samples must be at least 1, got {samples}.")
            own: dict[str, Any] = {name: number for name, number in values.items() if name != "samples"}
            options = SparsifyOptions(**{**grid.fixed, **own})
            found.append(Point(len(found), typed, values, options, samples))
    return tuple(found)
