"""Perturbed inputs: the fast gradient sign method of the SIM paper, and the slides' inversion attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simtool.errors import OptionError

METHODS = ("fgsm", "inversion")
GRADIENTS = ("model", "baseline")
DEFAULT_FRACTION = {"fgsm": 0.5, "inversion": 1.0}


@dataclass(frozen=True)
class Attack:
    """A validated attack.

    ``epsilons`` pairs each size as typed with its value; ``fraction`` of the inputs is perturbed, the same ones in
    every sample, drawn with ``seed``; ``gradient`` says whose gradient fgsm follows.
    """

    method: str
    epsilons: tuple[tuple[str, float], ...]
    fraction: float
    gradient: str
    seed: int

    def mask(self, inputs: int) -> np.ndarray:
        """Sorted indices of the perturbed inputs, out of ``inputs`` (the bias is not one of them)."""
        count = max(1, round(self.fraction * inputs))
        chosen = np.random.default_rng(self.seed).choice(inputs, size=count, replace=False)
        return np.sort(chosen)


def make_attack(
    method: str,
    epsilons: Sequence[float | str],
    fraction: float | None,
    gradient: str,
    seed: int,
) -> Attack:
    """Check the options; raises OptionError."""
    if method not in METHODS:
        raise OptionError(f"attack must be one of {', '.join(METHODS)}, got {method!r}.")
    if gradient not in GRADIENTS:
        raise OptionError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}.")
    share = DEFAULT_FRACTION[method] if fraction is None else float(fraction)
    if not 0.0 < share <= 1.0:
        raise OptionError(f"fraction must be in (0, 1], got {fraction!r}. Pass 0.5 for half of the inputs.")
    if seed < 0:
        raise OptionError(f"--seed must not be negative, got {seed}. Pass 0 or any larger integer.")
    sizes: dict[str, float] = {}
    for epsilon in epsilons:
        try:
            value = float(epsilon)
        except (TypeError, ValueError):
            value = float("nan")
        if not (np.isfinite(value) and value > 0.0):
            raise OptionError(
                f"epsilon must be a finite number > 0, got {epsilon!r}. Pass --epsilon 0.004,0.008; without an attack "
                "the clean accuracy is measured anyway."
            )
        key = epsilon if isinstance(epsilon, str) else _shortest(value)
        twin = next((name for name, other in sizes.items() if other == value), None)
        if twin is not None:
            raise OptionError(
                f"every epsilon must be given once, but {twin} and {key} are equal. Leave one of them out."
            )
        sizes[key] = value
    if not sizes:
        raise OptionError("an attack needs at least one epsilon. Pass --epsilon 0.004,0.008.")
    return Attack(method, tuple(sizes.items()), share, gradient, seed)


def _shortest(value: float) -> str:
    """The shortest text that is ``value`` again."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def inversion_direction(u: np.ndarray) -> np.ndarray:
    """sign(1/2 - u): towards the inverted image (slides)."""
    return np.sign(0.5 - u)


def perturb(
    u: np.ndarray, direction: np.ndarray, mask: np.ndarray, epsilon: float, clip: tuple[float, float] | None
) -> np.ndarray:
    """A copy of U (p, k) with ``epsilon * direction`` added on the rows ``mask``, clipped there if asked."""
    result = u.copy()
    moved = u[mask] + epsilon * direction[mask]
    result[mask] = moved if clip is None else np.clip(moved, *clip)
    return result
