"""The activations a block can have, with the facts that well-posedness theorems ask of them.

An activation is elementwise. It declares its Lipschitz constant, whether its slopes lie in [0, 1] (what the
matrix-measure theorem of the slides needs) and whether it is positively homogeneous, phi(a z) = a phi(z) for
a >= 0 (what every rescaling needs). silu and gelu are neither non-expansive nor monotone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import erf, expit

from simtool.errors import FormatError, OptionError

Array = np.ndarray

# max |d/dz z*sigmoid(z)| = 1.0998393..., max |d/dz z*Phi(z)| = 1.1289042... (at sqrt 2) and, for the tanh form
# of gelu, 1.1289931...: rounded up, so that a norm below one is still a proof.
SILU_LIPSCHITZ = 1.09984
GELU_LIPSCHITZ = 1.12891
GELU_TANH_LIPSCHITZ = 1.129

_GELU_TANH_SCALE = float(np.sqrt(2.0 / np.pi))
_GELU_TANH_CUBIC = 0.044715


@dataclass(frozen=True)
class Activation:
    """One elementwise activation. Build it with :func:`make`; compare and store it by :attr:`spec`.

    Attributes
    ----------
    name : the family, for instance ``leaky_relu``
    parameter : the slope of leaky_relu, alpha of elu, beta of softplus, the bound of clip and square; None elsewhere
    lipschitz : an upper bound of |phi'|
    unit_slopes : all slopes lie in [0, 1]
    homogeneous : phi(a z) = a phi(z) for a >= 0
    bound : an upper bound of |phi|; infinite where there is none
    """

    name: str
    parameter: float | None
    lipschitz: float
    unit_slopes: bool
    homogeneous: bool
    _value: Callable[[Array], Array] = field(repr=False, compare=False)
    _slope: Callable[[Array], Array] = field(repr=False, compare=False)
    bound: float = float("inf")

    @property
    def spec(self) -> str:
        """Text form stored in files: ``relu``, ``leaky_relu:0.01``."""
        return self.name if self.parameter is None else f"{self.name}:{self.parameter!r}"

    def __call__(self, z: Array) -> Array:
        """phi(z), of the same shape and floating type as ``z``."""
        return self._value(z).astype(z.dtype, copy=False)

    def slope(self, z: Array) -> Array:
        """phi'(z), of the same shape as ``z`` (the right derivative 0 is taken for relu at 0)."""
        return self._slope(z).astype(z.dtype, copy=False)


def _silu_slope(z: Array) -> Array:
    s = expit(z)
    return s * (1.0 + z * (1.0 - s))


def _gelu(z: Array) -> Array:
    return 0.5 * z * (1.0 + erf(z / np.sqrt(2.0)))


def _gelu_slope(z: Array) -> Array:
    density = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    return 0.5 * (1.0 + erf(z / np.sqrt(2.0))) + z * density


def _gelu_tanh(z: Array) -> Array:
    return 0.5 * z * (1.0 + np.tanh(_GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3)))


def _gelu_tanh_slope(z: Array) -> Array:
    t = np.tanh(_GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3))
    inner = _GELU_TANH_SCALE * (1.0 + 3.0 * _GELU_TANH_CUBIC * z * z)
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner


def _identity() -> Activation:
    return Activation("identity", None, 1.0, True, True, lambda z: z.copy(), np.ones_like)


def _relu() -> Activation:
    return Activation("relu", None, 1.0, True, True, lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0)


def _leaky_relu(slope: float) -> Activation:
    return Activation(
        "leaky_relu",
        slope,
        max(1.0, abs(slope)),
        0.0 <= slope <= 1.0,
        True,
        lambda z: np.where(z > 0, z, slope * z),
        lambda z: np.where(z > 0, 1.0, slope),
    )


def _tanh() -> Activation:
    return Activation("tanh", None, 1.0, True, False, np.tanh, lambda z: 1.0 - np.tanh(z) ** 2, bound=1.0)


def _sigmoid() -> Activation:
    return Activation("sigmoid", None, 0.25, True, False, expit, lambda z: expit(z) * expit(-z), bound=1.0)


def _elu(alpha: float) -> Activation:
    return Activation(
        "elu",
        alpha,
        max(1.0, abs(alpha)),
        0.0 <= alpha <= 1.0,
        False,
        lambda z: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1.0, alpha * np.exp(np.minimum(z, 0))),
    )


def _silu() -> Activation:
    return Activation("silu", None, SILU_LIPSCHITZ, False, False, lambda z: z * expit(z), _silu_slope)


def _gelu_exact() -> Activation:
    return Activation("gelu", None, GELU_LIPSCHITZ, False, False, _gelu, _gelu_slope)


def _gelu_approximate() -> Activation:
    return Activation("gelu_tanh", None, GELU_TANH_LIPSCHITZ, False, False, _gelu_tanh, _gelu_tanh_slope)


def _softplus(beta: float) -> Activation:
    return Activation(
        "softplus",
        beta,
        1.0,
        True,
        False,
        lambda z: np.logaddexp(0.0, beta * z) / beta,
        lambda z: expit(beta * z),
    )


def _clip(bound: float) -> Activation:
    """z cut off at +-bound (the hard tanh)."""
    return Activation(
        "clip",
        bound,
        1.0,
        True,
        False,
        lambda z: np.clip(z, -bound, bound),
        lambda z: (np.abs(z) < bound) * 1.0,
        bound=bound,
    )


def _square(bound: float) -> Activation:
    """z^2 for |z| <= bound and bound^2 beyond: a square alone has no Lipschitz constant. Slopes lie in +-2 bound."""
    return Activation(
        "square",
        bound,
        2.0 * bound,
        False,
        False,
        lambda z: np.minimum(np.abs(z), bound) ** 2,
        lambda z: np.where(np.abs(z) < bound, 2.0 * z, 0.0),
        bound=bound * bound,
    )


_PLAIN: dict[str, Callable[[], Activation]] = {
    "identity": _identity,
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu_exact,
    "gelu_tanh": _gelu_approximate,
}
_WITH_PARAMETER: dict[str, tuple[Callable[[float], Activation], float]] = {
    "leaky_relu": (_leaky_relu, 0.01),
    "elu": (_elu, 1.0),
    "softplus": (_softplus, 1.0),
    "clip": (_clip, 1.0),
    "square": (_square, 1.0),
}
_POSITIVE_PARAMETER = ("softplus", "clip", "square")
NAMES = tuple(sorted([*_PLAIN, *_WITH_PARAMETER]))


def make(name: str, parameter: float | None = None) -> Activation:
    """The activation called ``name``; ``parameter`` only for leaky_relu, elu, softplus, clip and square.

    Its default is PyTorch's, and the bound 1 for clip and square.
    """
    if name in _PLAIN:
        if parameter is not None:
            raise OptionError(f"activation {name} takes no parameter, got {parameter!r}. Leave it out.")
        return _PLAIN[name]()
    if name in _WITH_PARAMETER:
        build, default = _WITH_PARAMETER[name]
        value = default if parameter is None else float(parameter)
        positive = name in _POSITIVE_PARAMETER
        if not np.isfinite(value) or (positive and value <= 0):
            raise OptionError(
                f"the parameter of {name} must be finite{' and above 0' if positive else ''}, got {parameter!r}."
            )
        return build(value)
    raise OptionError(f"unknown activation {name!r}; known are {', '.join(NAMES)}.")


def parse(spec: str) -> Activation:
    """The activation written as ``spec`` in a file; the inverse of :attr:`Activation.spec`."""
    name, _, parameter = spec.partition(":")
    try:
        return make(name, float(parameter) if parameter else None)
    except (OptionError, ValueError) as error:
        raise FormatError(f"the file names the activation {spec!r}, which is not one: {error}") from error
