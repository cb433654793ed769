"""What ATen's convolutions, norms, pooling and shape operators mean: the second half of the PyTorch reader's translation table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# (kind, operands of the call, attributes); an operand is a node of the program, or a number
Meaning = tuple[str, tuple[Any, ...], dict[str, Any]]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def unsupported(why: str | None = None) -> Meaning:
    """The meaning of an operator that is refused."""
    return "unsupported", (), {"why": why} if why else {}


def argument(call: Call, index: int, name: str, default: Any) -> Any:
    """An argument of a call, given by position or by name; an explicit None is the default."""
    args, kwargs = call
    value = args[index] if len(args) > index else kwargs.get(name)
    return default if value is None else value


def _pairs(value: Any) -> Any:
    """Padding as (before, after) for each axis; one number stands for every axis."""
    values = [value] if isinstance(value, int) else list(value)
    return [(v, v) for v in values]


def _convolution(axes: int, transposed: bool = False) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        x, weight = call[0][:2]
        bias = argument(call, 2, "bias", None)
        padding = argument(call, 4, "padding", 0)
        later = ("groups", "dilation") if transposed else ("dilation", "groups")
        # conv_transpose2d(..., padding, output_padding, groups, dilation); the shape of the result tells output_padding
        found = {name: argument(call, 5 + transposed + at, name, 1) for at, name in enumerate(later)}
        if isinstance(padding, str):
            pads: Any = "upper" if padding == "same" else None
        else:
            pads = _spread(_pairs(padding), axes)
        attributes = {
            "stride": argument(call, 3, "stride", 1),
            "pads": pads,
            "transposed": transposed,
            **found,
        }
        return "convolution", (x, weight, *(() if bias is None else (bias,))), attributes

    return meaning


def _spread(values: list[Any], axes: int) -> list[Any]:
    return values * axes if len(values) == 1 else values


def _general_convolution(*call: Any) -> Meaning:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call[0][:9]
    attributes = {
        "stride": stride,
        "pads": _spread(_pairs(padding), len(stride)),
        "dilation": dilation,
        "groups": groups,
        "transposed": bool(transposed),
    }
    return "convolution", (x, weight, *(() if bias is None else (bias,))), attributes


def _batch_norm(x: Any, tensors: Sequence[Any], eps: float) -> Meaning:
    names = ("weight", "bias", "mean", "var")
    given = [(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None]
    parts = tuple(name for name, _ in given)
    if not {"mean", "var"} <= set(parts):
        return unsupported("it keeps no running statistics, so that its result depends on the batch")
    return "batch_norm", (x, *(tensor for _, tensor in given)), {"parts": parts, "eps": eps}


def _plain_batch_norm(*call: Any) -> Meaning:
    x, weight, bias, mean, var, training, _, eps = call[0][:8]
    if training:
        return unsupported("it is in training mode")
    return _batch_norm(x, (weight, bias, mean, var), eps)


def _window(call: Call, axes: int) -> dict[str, Any]:
    kernel = argument(call, 1, "kernel_size", None)
    kernel = _spread([kernel] if isinstance(kernel, int) else list(kernel), axes)
    pads = _spread(_pairs(argument(call, 3, "padding", 0)), axes)
    return {
        "kernel": kernel,
        "stride": argument(call, 2, "stride", None) or kernel,
        "pads": pads,
        "axes": axes,
    }


def _max_pool(axes: int) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        dilation = argument(call, 4, "dilation", 1)
        return "max_pool", (call[0][0],), {**_window(call, axes), "dilation": dilation}

    return meaning


def _average_pool(axes: int) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        include, divisor = (
            argument(call, 5, "count_include_pad", True),
            argument(call, 6, "divisor_override", None),
        )
        attributes = {**_window(call, axes), "include_pad": include, "divisor": divisor}
        return "average_pool", (call[0][0],), attributes

    return meaning


def _reduced(kind: str) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        axes = argument(call, 1, "dim", ())
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if argument(call, 3, "dtype", None) is not None:
            return unsupported("changes the element type")
        return kind, (call[0][0],), {"axes": axes}

    return meaning


def _pad(*call: Any) -> Meaning:
    x, pads = call[0][:2]
    if argument(call, 2, "mode", "constant") != "constant":
        return unsupported(f"pads by {call[0][2]}; only zeros are taken")
    return _zeros(x, pads, argument(call, 3, "value", 0))


def _zeros(x: Any, pads: Sequence[int], value: float) -> Meaning:
    if value != 0:
        return unsupported(f"pads with {value}; only zeros are taken")
    axes = x.meta["val"].dim()
    pairs = [(0, 0)] * axes
    for at in range(len(pads) // 2):  # from the last axis backwards
        pairs[axes - 1 - at] = (pads[2 * at], pads[2 * at + 1])
    return "pad", (x,), {"pads": pairs}


def _slice(*call: Any) -> Meaning:
    dim, step = argument(call, 1, "dim", 0), argument(call, 4, "step", 1)
    start, stop = argument(call, 2, "start", None), argument(call, 3, "end", None)
    if not all(part is None or isinstance(part, int) for part in (start, stop, step)):
        return unsupported("its bounds depend on the number of samples")
    return "slice", (call[0][0],), {"keys": ((dim, slice(start, stop, step)),)}


def _narrow(*call: Any) -> Meaning:
    x, dim, start, length = call[0][:4]
    return "slice", (x,), {"keys": ((dim, slice(start, start + length)),)}


def _select(*call: Any) -> Meaning:
    return "slice", (call[0][0],), {"keys": ((call[0][1], int(call[0][2])),)}


def _index(*call: Any) -> Meaning:
    x, indices = call[0][:2]
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return unsupported("indexes several axes at once")
    return "take", (x, given[0][1]), {"axis": given[0][0]}


def _joined(stack: bool) -> Callable[..., Meaning]:
    return lambda *call: (
        "concatenate",
        tuple(call[0][0]),
        {"axis": argument(call, 1, "dim", 0), "stack": stack},
    )


def _bound(low: float, high: float) -> Callable[..., Meaning]:
    def meaning(*call: Any) -> Meaning:
        return (
            "clamp",
            (call[0][0],),
            _bounds(argument(call, 1, "min_val", low), argument(call, 2, "max_val", high)),
        )

    return meaning


def _bounds(low: float | None, high: float | None) -> dict[str, Any]:
    return {"low": None if low is None else float(low), "high": None if high is None else float(high)}


def clamp(*call: Any) -> Meaning:
    """A clamp to other bounds than [0, oo)."""
    low, high = argument(call, 1, "min", None), argument(call, 2, "max", None)
    if any(not (bound is None or isinstance(bound, int | float)) for bound in (low, high)):
        return unsupported("its bounds are tensors")
    if low is not None and high is not None and low > high:
        return unsupported(f"clamps to [{low}, {high}]")
    return "clamp", (call[0][0],), _bounds(low, high)


_HARDSIGMOID = {"low": 0.0, "high": 1.0, "slope": 1.0 / 6.0, "offset": 0.5}


def _first(kind: str, **attributes: Any) -> Callable[..., Meaning]:
    return lambda *call: (kind, (call[0][0],), dict(attributes))


def _axes_of(kind: str, name: str, start: int = 1) -> Callable[..., Meaning]:
    return lambda *call: (kind, (call[0][0],), {name: tuple(argument(call, start, "dims", ()))})


TABLE: dict[str, Callable[..., Meaning]] = {
    **{f"aten.conv{n}d": _convolution(n) for n in (1, 2, 3)},
    "aten.conv_transpose1d": _convolution(1, transposed=True),
    "aten.conv_transpose2d": _convolution(2, transposed=True),
    "aten.conv_transpose3d": _convolution(3, transposed=True),
    "aten.convolution": _general_convolution,
    "aten.batch_norm": _plain_batch_norm,
    **{f"aten.max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d": _average_pool(n) for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _first("adaptive_average", axes=n) for n in (1, 2, 3)},
    **{f"aten._adaptive_avg_pool{n}d": _first("adaptive_average", axes=n) for n in (2, 3)},
    **{f"aten.upsample_nearest{n}d": _first("nearest") for n in (1, 2, 3)},
    "aten.mean": _reduced("mean"),
    "aten.sum": _reduced("sum"),
    "aten.amax": _reduced("max_over"),
    "aten.permute": _axes_of("permute", "order"),
    "aten.transpose": lambda *call: ("swap", (call[0][0],), {"axes": tuple(call[0][1:3])}),
    "aten.flip": _axes_of("flip", "axes"),
    "aten.slice": _slice,
    "aten.narrow": _narrow,
    "aten.select": _select,
    "aten.index_select": lambda *call: ("take", (call[0][0], call[0][2]), {"axis": call[0][1]}),
    "aten.index": _index,
    "aten.cat": _joined(stack=False),
    "aten.stack": _joined(stack=True),
    "aten.pad": _pad,
    "aten.constant_pad_nd": lambda *call: _zeros(call[0][0], call[0][1], argument(call, 2, "value", 0)),
    "aten.expand": _first("expand"),
    "aten.repeat": lambda *call: ("tile", (call[0][0],), {"repeats": tuple(call[0][1])}),
    "aten.hardtanh": _bound(-1.0, 1.0),
    "aten.relu6": _bound(0.0, 6.0),
    "aten.hardswish": _first("hardswish"),
    "aten.hardsigmoid": _first("clamp", **_HARDSIGMOID),
    "aten.maximum": lambda *call: ("maximum", tuple(call[0][:2]), {}),
    "aten.minimum": lambda *call: ("minimum", tuple(call[0][:2]), {}),
}


def part(operator: str, call: Call, results: Sequence[Any], index: int) -> Meaning:
    """What result number ``index`` of an operator with several ``results`` (their traced values) is."""
    args = call[0]
    if operator in (
        "aten.split",
        "aten.split_with_sizes",
        "aten.chunk",
        "aten.tensor_split",
        "aten.unsafe_split",
    ):
        axis = argument(call, 2, "dim", 0)
        widths = [result.shape[axis] for result in results]
        if not all(isinstance(width, int) for width in widths):
            return unsupported("splits the batch")
        start = sum(widths[:index])
        return "slice", (args[0],), {"keys": ((axis, slice(start, start + widths[index])),)}
    if operator == "aten.unbind":
        return "slice", (args[0],), {"keys": ((argument(call, 1, "dim", 0), index),)}
    if index != 0:
        return unsupported("a further result of it is used")
    if operator == "aten._native_batch_norm_legit_no_training":
        return _batch_norm(args[0], args[1:5], args[6])
    if operator in ("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices"):
        return _max_pool(2 if "2d" in operator else 3)(*call)
    if operator.startswith("aten.adaptive_max_pool"):
        return "max_pool", (args[0],), {"adaptive": True, "axes": int(operator[-2])}
    if operator == "aten.max" and len(args) > 1 and isinstance(args[1], int):
        return "max_over", (args[0],), {"axes": (args[1],)}
    return unsupported()
