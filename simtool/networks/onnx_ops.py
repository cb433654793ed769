"""What each ONNX operator means: the translation table of the ONNX reader."""

from __future__ import annotations

from collections.abc import Callable

from onnx import numpy_helper

from simtool import activations
from simtool.networks import onnx_layers
from simtool.networks.onnx_layers import Attributes, Inputs, Meaning, unsupported


def _activation(
    name: str, attribute: str | None = None, default: float = 0.0
) -> Callable[[Attributes], Meaning]:
    def meaning(attributes: Attributes) -> Meaning:
        parameter = float(attributes.get(attribute, default)) if attribute else None
        return "activation", (0,), {"activation": activations.make(name, parameter)}

    return meaning


def _gelu(attributes: Attributes) -> Meaning:
    approximate = attributes.get("approximate", b"none")
    tanh = approximate in (b"tanh", "tanh")
    return "activation", (0,), {"activation": activations.make("gelu_tanh" if tanh else "gelu")}


def _swish(attributes: Attributes) -> Meaning:
    if float(attributes.get("alpha", 1.0)) != 1.0:
        return unsupported(f"Swish with alpha {attributes['alpha']} is not silu")
    return "activation", (0,), {"activation": activations.make("silu")}


def _gemm(attributes: Attributes) -> Meaning:
    if attributes.get("transA", 0):
        return unsupported("transA = 1 puts the batch on the second axis")
    return (
        "linear",
        (0, 1, 2),
        {
            "alpha": attributes.get("alpha", 1.0),
            "beta": attributes.get("beta", 1.0),
            "transpose": not attributes.get("transB", 0),
        },
    )


def _map(name: str) -> Callable[[Attributes], Meaning]:
    return lambda attributes: ("map", (0,), {"map": name, "axis": attributes.get("axis")})


def _simple(kind: str, operands: int) -> Callable[[Attributes], Meaning]:
    return lambda attributes: (kind, tuple(range(operands)), {})


def _fill(attributes: Attributes) -> Meaning:
    value = attributes.get("value")
    return "fill", (), {"value": 0.0 if value is None else float(numpy_helper.to_array(value).reshape(()))}


_PASSED = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Cast")

TABLE: dict[str, Callable[[Attributes], Meaning]] = {
    "ConstantOfShape": _fill,
    "Gemm": _gemm,
    "MatMul": _simple("matmul", 2),
    "Add": _simple("add", 2),
    "Sub": _simple("sub", 2),
    "Mul": _simple("mul", 2),
    "Div": _simple("div", 2),
    "Pow": _simple("pow", 2),
    "Neg": _simple("neg", 1),
    "Erf": _simple("erf", 1),
    "Greater": _simple("greater", 2),
    "Where": _simple("where", 3),
    "Relu": _activation("relu"),
    "Tanh": _activation("tanh"),
    "Sigmoid": _activation("sigmoid"),
    "LeakyRelu": _activation("leaky_relu", "alpha", 0.01),
    "Elu": _activation("elu", "alpha", 1.0),
    "Softplus": _activation("softplus"),
    "Gelu": _gelu,
    "Swish": _swish,
    "Softmax": _map("softmax"),
    "LogSoftmax": _map("log_softmax"),
    **{name: _simple("pass", 1) for name in _PASSED},
}


def meaning(domain: str, operator: str, attributes: Attributes, inputs: Inputs) -> Meaning:
    """What a node of this type does; ``inputs`` holds the value of each input that is a constant, None for the others."""
    if domain not in ("", "ai.onnx"):
        return unsupported()
    if operator in onnx_layers.TABLE:
        return onnx_layers.TABLE[operator](attributes, inputs)
    return TABLE[operator](attributes) if operator in TABLE else unsupported()
