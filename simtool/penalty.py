"""The one penalty family that covers the papers, its conjugate and its proximal map.

    pen(w) = lam1 |w| + min over 0 <= t <= 1 of ( lam0 t + lam2 w^2 / t )

The inner minimum is the reverse Huber function (SIM eq. 4 with the sum of t): with knee = sqrt(lam0 / lam2) it
is 2 sqrt(lam0 lam2) |w| up to the knee and lam0 + lam2 w^2 beyond it. Hence, with s = |w|,

    pen(w) = slope s + lam2 (s - knee)_+^2,          slope = lam1 + 2 sqrt(lam0 lam2)

so lasso, l1, perspective, elastic net (lam0 = 0: t sits at 1) and least squares differ in three numbers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simtool.errors import OptionError


@dataclass(frozen=True)
class Penalty:
    """The weights of the family; every one is finite and >= 0.

    ``lam0`` counts non-zeros, ``lam1`` weighs |w|, ``lam2`` weighs w^2 (over t). Without ``lam2`` the cheapest
    t is 0, so ``lam0`` alone costs nothing and is refused.
    """

    lam0: float = 0.0
    lam1: float = 0.0
    lam2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lam0", "lam1", "lam2"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise OptionError(f"the penalty weight {name} must be finite and >= 0, got {value!r}.")
            object.__setattr__(self, name, float(value))
        if self.lam0 > 0 and self.lam2 == 0:
            raise OptionError(
                f"lam0 = {self.lam0!r} has no effect without lam2 > 0 (the relaxed t is then 0 at no cost). "
                "Set lam2 too, or use lam1."
            )

    @property
    def knee(self) -> float:
        """|w| beyond which the penalty turns quadratic."""
        return math.sqrt(self.lam0) / math.sqrt(self.lam2) if self.lam2 > 0 else 0.0

    @property
    def slope(self) -> float:
        """The slope at zero: the threshold a correlation must pass for a non-zero to pay."""
        return self.lam1 + 2.0 * math.sqrt(self.lam0) * math.sqrt(self.lam2)

    @property
    def free(self) -> bool:
        """No penalty at all."""
        return self.lam1 == 0 and self.lam2 == 0

    def value(self, w: np.ndarray) -> np.ndarray:
        """pen(w), elementwise."""
        s = np.abs(w)
        if self.lam2 == 0:
            return self.slope * s
        return self.slope * s + self.lam2 * np.maximum(s - self.knee, 0.0) ** 2

    def conjugate(
        self, v: np.ndarray, multiplier: np.ndarray | float = 0.0, reach: np.ndarray | None = None
    ) -> np.ndarray:
        """sup over w of ( v w - pen(w) - multiplier |w| ), elementwise; infinite where nothing bounds it.

        ``reach`` bounds w in the direction of v: 0 <= w sign(v) <= reach.
        """
        excess = np.maximum(np.abs(v) - self.slope - multiplier, 0.0)
        if reach is None:
            if self.lam2 == 0:
                return np.where(excess > 0, np.inf, 0.0)
            return excess * self.knee + excess * excess / (4.0 * self.lam2)
        size = self.maximiser(excess, reach)
        with np.errstate(invalid="ignore"):
            value = excess * size - self.lam2 * np.maximum(size - self.knee, 0.0) ** 2
        return np.where(np.isposinf(size), np.inf, value)

    def maximiser(self, excess: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """The least |w| <= ``reach`` at which the conjugate's supremum is attained, for |v| - slope - multiplier = ``excess``."""
        if self.lam2 == 0:
            return np.where(excess > 0, reach, 0.0)
        return np.where(excess > 0, np.minimum(self.knee + excess / (2.0 * self.lam2), reach), 0.0)

    def prox(self, v: np.ndarray, step: float) -> np.ndarray:
        """argmin over w of ( pen(w) + (w - v)^2 / (2 step) ), elementwise; ``step`` > 0."""
        s = np.maximum(np.abs(v) - step * self.slope, 0.0)
        beyond = (s + 2.0 * step * self.lam2 * self.knee) / (1.0 + 2.0 * step * self.lam2)
        return np.sign(v) * np.where(s <= self.knee, s, beyond)
