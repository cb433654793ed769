"""What each ATen operator means: the translation table of the PyTorch reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simtool import activations
from simtool.networks import torch_layers
from simtool.networks.layer_search import LOOKS_UP
from simtool.networks.patterns import is_softplus
from simtool.networks.torch_layers import Meaning, unsupported

PASSED = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "clone", "contiguous", "alias", "detach",
        "_to_copy", "to", "lift_fresh_copy", "dropout", "feature_dropout", "alpha_dropout", "unflatten",
    )
)  # fmt: skip


def _argument(call: tuple[tuple[Any, ...], dict[str, Any]], index: int, name: str, default: Any) -> Any:
    args, kwargs = call
    return args[index] if len(args) > index else kwargs.get(name, default)


def _activation(name: str, parameter: float | None = None) -> dict[str, Any]:
    return {"activation": activations.make(name, parameter)}


def _elu(*call: Any) -> Meaning:
    scale, input_scale = _argument(call, 2, "scale", 1), _argument(call, 3, "input_scale", 1)
    if scale != 1 or input_scale != 1:
        return unsupported("an elu with a scale (selu) is not one of our activations")
    return "activation", (call[0][0],), _activation("elu", float(_argument(call, 1, "alpha", 1.0)))


def _softplus(*call: Any) -> Meaning:
    beta, threshold = float(_argument(call, 1, "beta", 1)), float(_argument(call, 2, "threshold", 20))
    if not is_softplus(beta, threshold):
        return unsupported(
            f"softplus with beta {beta} and threshold {threshold} differs from log(1 + exp(beta z)) / beta by more than 1e-5"
        )
    return "activation", (call[0][0],), _activation("softplus", beta)


def _gelu(*call: Any) -> Meaning:
    approximate = _argument(call, 1, "approximate", "none")
    return "activation", (call[0][0],), _activation("gelu_tanh" if approximate == "tanh" else "gelu")


def _clamp(*call: Any) -> Meaning:
    low, high = _argument(call, 1, "min", None), _argument(call, 2, "max", None)
    if low != 0 or high is not None:
        return torch_layers.clamp(*call)
    return "activation", (call[0][0],), _activation("relu")


def _plain(name: str) -> Callable[..., Meaning]:
    return lambda *call: ("activation", (call[0][0],), _activation(name))


def _leaky_relu(*call: Any) -> Meaning:
    slope = float(_argument(call, 1, "negative_slope", 0.01))
    return "activation", (call[0][0],), _activation("leaky_relu", slope)


def _map(name: str) -> Callable[..., Meaning]:
    return lambda *call: ("map", (call[0][0],), {"map": name, "axis": int(_argument(call, 1, "dim", -1))})


def _linear(*call: Any) -> Meaning:
    bias = _argument(call, 2, "bias", None)
    return "linear", (call[0][0], call[0][1]) + (() if bias is None else (bias,)), {}


def _addmm(*call: Any) -> Meaning:
    bias, x, weight = call[0][:3]
    alpha, beta = call[1].get("alpha", 1), call[1].get("beta", 1)
    # The weight of addmm is (in, out): the reader transposes constants marked here.
    return "linear", (x, weight, bias), {"alpha": alpha, "beta": beta, "transpose": True}


def _binary(kind: str) -> Callable[..., Meaning]:
    return lambda *call: (kind, tuple(call[0][:2]), {"alpha": _argument(call, 2, "alpha", 1)})


def _product(kind: str) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        if call[1].get("rounding_mode") is not None:
            return unsupported("rounds its result")
        return kind, tuple(call[0][:2]), {}

    return meaning


def _rsub(*call: Any) -> Meaning:
    if _argument(call, 2, "alpha", 1) != 1:
        return unsupported("rsub with a factor")
    return "sub", (call[0][1], call[0][0]), {}


def _fill(value: float | None) -> Callable[..., Meaning]:
    """One number everywhere; None: the number is the second argument."""

    def meaning(*call: Any) -> Meaning:
        number = _argument(call, 1, "fill_value", None) if value is None else value
        if not isinstance(number, int | float):
            return unsupported("fills with a number that is computed")
        return "fill", (), {"value": float(number)}

    return meaning


TABLE: dict[str, Callable[..., Meaning]] = {
    **{f"aten.{name}": _fill(0.0) for name in ("zeros", "zeros_like", "new_zeros")},
    **{f"aten.{name}": _fill(1.0) for name in ("ones", "ones_like", "new_ones")},
    **{f"aten.{name}": _fill(None) for name in ("full", "full_like", "new_full")},
    "aten.linear": _linear,
    "aten.embedding": lambda *call: unsupported(LOOKS_UP),
    "aten.addmm": _addmm,
    "aten.mm": lambda *call: ("matmul", tuple(call[0][:2]), {}),
    "aten.matmul": lambda *call: ("matmul", tuple(call[0][:2]), {}),
    "aten.add": _binary("add"),
    "aten.sub": _binary("sub"),
    "aten.rsub": _rsub,
    "aten.mul": _product("mul"),
    "aten.div": _product("div"),
    "aten.neg": lambda *call: ("neg", (call[0][0],), {}),
    "aten.pow": lambda *call: ("pow", tuple(call[0][:2]), {}),
    "aten.erf": lambda *call: ("erf", (call[0][0],), {}),
    "aten.relu": _plain("relu"),
    "aten.tanh": _plain("tanh"),
    "aten.sigmoid": _plain("sigmoid"),
    "aten.silu": _plain("silu"),
    "aten.leaky_relu": _leaky_relu,
    "aten.elu": _elu,
    "aten.gelu": _gelu,
    "aten.softplus": _softplus,
    "aten.clamp": _clamp,
    "aten.clamp_min": _clamp,
    "aten.clamp_max": lambda *call: torch_layers.clamp((call[0][0], None, call[0][1]), {}),
    **torch_layers.TABLE,
    "aten.softmax": _map("softmax"),
    "aten._softmax": _map("softmax"),
    "aten.log_softmax": _map("log_softmax"),
    "aten._log_softmax": _map("log_softmax"),
}


def meaning(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Meaning:
    """What ``operator`` (as ``aten.linear``) does with these arguments."""
    if operator in PASSED:
        if operator.endswith("dropout") and _argument((args, kwargs), 2, "train", False):
            return unsupported("dropout in training mode")
        return "pass", (args[0],), {}
    if operator in TABLE:
        return TABLE[operator](args, kwargs)
    return unsupported()
