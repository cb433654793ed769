"""What ONNX's convolutions, norms, pooling and shape operators mean: the second half of the ONNX reader's translation table.

Since newer opsets pass as inputs what older ones have as attributes, a rule gets both: the attributes, and the value of each input that
is a constant (None for one that is computed, an empty array for one that is left out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simtool import activations

Attributes = dict[str, Any]
Inputs = Sequence[np.ndarray | None]
# (kind, indices of the node's inputs that are operands, attributes)
Meaning = tuple[str, tuple[int, ...], Attributes]
Rule = Callable[[Attributes, Inputs], Meaning]


def unsupported(why: str | None = None) -> Meaning:
    """The meaning of an operator that is refused."""
    return "unsupported", (), {"why": why} if why else {}


def _given(attributes: Attributes, inputs: Inputs, name: str, index: int) -> list[int] | None:
    """Integers that are an attribute or a constant input, None where there are none."""
    if name in attributes:
        value = attributes[name]
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    if len(inputs) > index and inputs[index] is not None:
        return [int(v) for v in np.asarray(inputs[index]).reshape(-1)]
    return None


def _pads(attributes: Attributes) -> Any:
    automatic = attributes.get("auto_pad", b"NOTSET")
    name = automatic.decode() if isinstance(automatic, bytes) else str(automatic)
    if name in ("SAME_UPPER", "SAME_LOWER"):
        return name[5:].lower()
    pads = [int(pad) for pad in attributes.get("pads", [])] if name == "NOTSET" else []
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True)) or None


def _window(attributes: Attributes) -> Attributes:
    return {
        "kernel": attributes.get("kernel_shape", []),
        "stride": attributes.get("strides"),
        "dilation": attributes.get("dilations"),
        "pads": _pads(attributes),
    }


def _convolution(transposed: bool) -> Rule:
    def meaning(attributes: Attributes, inputs: Inputs) -> Meaning:
        found = {**_window(attributes), "groups": attributes.get("group", 1), "transposed": transposed}
        if transposed and (isinstance(found["pads"], str) or "output_shape" in attributes):
            return unsupported("its padding follows from the shape of its output; pads are needed")
        return "convolution", (0, 1, 2), found

    return meaning


def _batch_norm(attributes: Attributes, inputs: Inputs) -> Meaning:
    if attributes.get("training_mode", 0) or len(inputs) != 5:
        return unsupported("it is in training mode")
    parts = ("weight", "bias", "mean", "var")
    return "batch_norm", (0, 1, 2, 3, 4), {"parts": parts, "eps": attributes.get("epsilon", 1e-5)}


def _average_pool(attributes: Attributes, inputs: Inputs) -> Meaning:
    include = bool(attributes.get("count_include_pad", 0))
    return "average_pool", (0,), {**_window(attributes), "include_pad": include}


def _max_pool(attributes: Attributes, inputs: Inputs) -> Meaning:
    return "max_pool", (0,), _window(attributes)


def _reduced(kind: str) -> Rule:
    def meaning(attributes: Attributes, inputs: Inputs) -> Meaning:
        axes = _given(attributes, inputs, "axes", 1)
        return kind, (0,), {"axes": tuple(axes or ())}

    return meaning


def _slice(attributes: Attributes, inputs: Inputs) -> Meaning:
    starts, ends = (_given(attributes, inputs, name, at) for name, at in (("starts", 1), ("ends", 2)))
    if starts is None or ends is None or any(len(inputs) > at and inputs[at] is None for at in (3, 4)):
        return unsupported("its bounds are computed from the input")
    axes = _given(attributes, inputs, "axes", 3) or list(range(len(starts)))
    steps = _given(attributes, inputs, "steps", 4) or [1] * len(starts)
    keys = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # An end before the first value, as a backward slice needs it, is a very negative number here and None in Python.
        last = None if step < 0 and end < -(2**30) else end
        keys.append((axis, slice(start, last, step)))
    return "slice", (0,), {"keys": tuple(keys)}


def _pad(attributes: Attributes, inputs: Inputs) -> Meaning:
    mode = attributes.get("mode", b"constant")
    if mode not in (b"constant", "constant"):
        return unsupported(f"pads by {mode!r}; only zeros are taken")
    pads = _given(attributes, inputs, "pads", 1)
    value = inputs[2] if len(inputs) > 2 else np.asarray(attributes.get("value", 0.0))
    if pads is None or value is None or np.any(value) or len(inputs) > 3:
        return unsupported("only a fixed padding of all axes with zeros is taken")
    half = len(pads) // 2
    return "pad", (0,), {"pads": list(zip(pads[:half], pads[half:], strict=True))}


def _take(attributes: Attributes, inputs: Inputs) -> Meaning:
    return "take", (0, 1), {"axis": attributes.get("axis", 0)}


def _tile(attributes: Attributes, inputs: Inputs) -> Meaning:
    repeats = _given(attributes, inputs, "repeats", 1)
    return unsupported() if repeats is None else ("tile", (0,), {"repeats": tuple(repeats)})


def _concatenate(attributes: Attributes, inputs: Inputs) -> Meaning:
    return "concatenate", tuple(range(len(inputs))), {"axis": attributes.get("axis", 1)}


def _resize(attributes: Attributes, inputs: Inputs) -> Meaning:
    """By whole factors, every way of rounding repeats the values where positions are asymmetric and rounded down."""
    mode, coordinates = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode")
    rounding = attributes.get("nearest_mode", b"round_prefer_floor")
    floor = (coordinates, rounding) == (b"asymmetric", b"floor")
    half = coordinates in (None, b"half_pixel") and rounding in (b"round_prefer_floor", b"round_prefer_ceil")
    if mode != b"nearest" or not (floor or half):
        return unsupported(f"resizes by {mode!r}, {coordinates!r}, {rounding!r}; only repetition is taken")
    return "nearest", (0,), {}


def _upsample(attributes: Attributes, inputs: Inputs) -> Meaning:
    return ("nearest", (0,), {}) if attributes.get("mode", b"nearest") == b"nearest" else unsupported()


def _clip(attributes: Attributes, inputs: Inputs) -> Meaning:
    """Clip from 0 upwards is relu; its bounds are inputs since opset 11, attributes before."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        given: Any = attributes.get(name)
        if name not in attributes and len(inputs) > index:
            given = inputs[index]
            if given is None or given.size > 1:
                return unsupported("its bounds are computed from the input")
        value = None if given is None or np.size(given) == 0 else float(np.asarray(given).reshape(()))
        if value is not None and not abs(value) < float(np.finfo(np.float32).max):
            if value != value or (value > 0) != (name == "max"):
                return unsupported(f"its bound {name} is {value}")
            value = None
        bounds.append(value)
    low, high = bounds
    if low == 0.0 and high is None:
        return "activation", (0,), {"activation": activations.make("relu")}
    if low is not None and high is not None and low > high:
        return unsupported(f"clips to [{low}, {high}]")
    return "clamp", (0,), {"low": low, "high": high}


def _extreme(kind: str) -> Rule:
    def meaning(attributes: Attributes, inputs: Inputs) -> Meaning:
        """Of two values, or of one and a number; Max(x, 0) is relu."""
        if len(inputs) != 2:
            return unsupported("exactly two operands are taken")
        fixed = [index for index, value in enumerate(inputs) if value is not None]
        if not fixed:
            return kind, (0, 1), {}
        number = inputs[fixed[0]]
        if len(fixed) != 1 or number is None or number.size != 1 or not np.isfinite(number).all():
            return unsupported("of the two operands only one may be fixed, and must be a number")
        bound, other = float(number.reshape(())), (1 - fixed[0],)
        if kind == "maximum" and bound == 0.0:
            return "activation", other, {"activation": activations.make("relu")}
        low, high = (bound, None) if kind == "maximum" else (None, bound)
        return "clamp", other, {"low": low, "high": high}

    return meaning


def _hard_sigmoid(attributes: Attributes, inputs: Inputs) -> Meaning:
    slope, offset = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    return "clamp", (0,), {"low": 0.0, "high": 1.0, "slope": slope, "offset": offset}


def _simple(kind: str, **found: Any) -> Rule:
    return lambda attributes, inputs: (kind, (0,), dict(found))


TABLE: dict[str, Rule] = {
    "Conv": _convolution(transposed=False),
    "ConvTranspose": _convolution(transposed=True),
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _simple("adaptive_average"),
    "GlobalMaxPool": _simple("max_pool", adaptive=True),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "ReduceMax": _reduced("max_over"),
    "Transpose": lambda attributes, inputs: ("permute", (0,), {"order": attributes.get("perm")}),
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _take,
    "Expand": _simple("expand"),
    "Tile": _tile,
    "Concat": _concatenate,
    "Resize": _resize,
    "Upsample": _upsample,
    "Clip": _clip,
    "Max": _extreme("maximum"),
    "Min": _extreme("minimum"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _simple("hardswish"),
}


def part(attributes: Attributes, inputs: Inputs, outputs: int, index: int) -> Meaning:
    """Result number ``index`` of a Split into ``outputs`` parts."""
    axis = int(attributes.get("axis", 0))
    widths = _given(attributes, inputs, "split", 1)
    if widths is None:
        return "slice", (0,), {"part": (axis, index, outputs), "keys": ()}
    start = sum(widths[:index])
    return "slice", (0,), {"keys": ((axis, slice(start, start + widths[index])),)}
