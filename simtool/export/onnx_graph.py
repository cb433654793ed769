"""Writing an ONNX graph node by node: names, constants, and the activations as operators that ONNX Runtime has.

ONNX Runtime has no float64 LeakyRelu, Elu, Softplus or Erf; in float64 the first three are written out. The error
function of gelu is then taken in float32, which is right to about 1e-7. A loop multiplies such an error by up to
1 / (1 - f), f its contraction, so a writer from :meth:`GraphWriter.in_double` writes the error function out too: 60 nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from simtool.activations import Activation
from simtool.errors import UnsupportedOperator

OPSET, IR_VERSION = 17, 8  # what ONNX Runtime has understood since 1.12

# erf(z) = z p(z^2) / q(z^2) for |z| < 0.46875, and sign(z) (1 - exp(-z^2) p(|z|) / q(|z|)) above; W. J. Cody, "Rational
# Chebyshev approximations for the error function", Math. Comp. 23 (1969). Highest powers first; right to 4e-16 (his
# third formula, from |z| = 4, only keeps 1 - erf exact).
_ERF_SPLIT, _ERF_ONE = 0.46875, 6.0
_ERF_NEAR = (
    (
        0.185777706184603153,
        3.16112374387056560,
        113.864154151050156,
        377.485237685302021,
        3209.37758913846947,
    ),
    (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062),
)
_ERF_FAR = (
    (
        *(2.15311535474403846e-8, 0.564188496988670089, 8.88314979438837594, 66.1191906371416295),
        *(
            298.635138197400131,
            881.952221241769090,
            1712.04761263407058,
            2051.07837782607147,
            1230.33935479799725,
        ),
    ),
    (
        *(1.0, 15.7449261107098347, 117.693950891312499, 537.181101862009858, 1621.38957456669019),
        *(3290.79923573345963, 4362.61909014324716, 3439.36767414372164, 1230.33935480374942),
    ),
)


class GraphWriter:
    """Nodes and initialisers of one graph; ``parent`` is the graph that a loop's body may read from.

    Constants always live in the outermost graph. Every name is used once. ``exact`` writers, and those of the bodies in
    them, have the error function in float64.
    """

    def __init__(self, dtype: np.dtype, parent: GraphWriter | None = None) -> None:
        self.dtype = dtype
        self.type = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
        self.root: GraphWriter = self if parent is None else parent.root
        self.exact: bool = parent is not None and parent.exact
        self.nodes: list[NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: set[str] = set()

    def in_double(self) -> GraphWriter:
        """A writer of float64 nodes into this same graph, ``exact``."""
        wide = GraphWriter(np.dtype(np.float64), self)
        wide.nodes, wide.exact = self.nodes, True
        return wide

    def name(self, wanted: str) -> str:
        """``wanted``, or with a number behind it where that is taken."""
        names, found, number = self.root._names, wanted, 1
        while found in names:
            number += 1
            found = f"{wanted}.{number}"
        names.add(found)
        return found

    def weight(self, name: str, array: np.ndarray) -> str:
        """An initialiser of the graph's floating type."""
        found = self.name(name)
        self.root.initialisers.append(numpy_helper.from_array(np.asarray(array, dtype=self.dtype), found))
        return found

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A small initialiser, shared by all who ask for the same one."""
        array = np.asarray(value, dtype=self.dtype if dtype is None else dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        known = self.root._constants
        if key not in known:
            known[key] = self.name("constant")
            self.root.initialisers.append(numpy_helper.from_array(array, known[key]))
        return known[key]

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        output = self.name(name or operator.lower())
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def graph(self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> GraphProto:
        """The finished graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=self.initialisers)

    # --- activations -----------------------------------------------------------------------------------------------

    def activate(self, activation: Activation, z: str) -> str:
        """phi(z)."""
        name, parameter = activation.name, activation.parameter
        if parameter is None:
            if name == "identity":
                return z
            if name in ("relu", "tanh", "sigmoid"):
                return self.add({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[name], z)
            if name == "silu":
                return self.add("Mul", z, self.add("Sigmoid", z))
            if name == "gelu":
                inner = self._erf(self.add("Mul", z, self.constant(np.sqrt(0.5))))
                return self._gate(z, inner)
            if name == "gelu_tanh":
                cube = self.add("Mul", z, self.add("Mul", z, z))
                inner = self.add("Add", z, self.add("Mul", cube, self.constant(0.044715)))
                inner = self.add("Tanh", self.add("Mul", inner, self.constant(np.sqrt(2.0 / np.pi))))
                return self._gate(z, inner)
        else:
            if name == "leaky_relu":
                return self._leaky(z, parameter)
            if name == "elu":
                return self._elu(z, parameter)
            if name == "softplus":
                return self._softplus(z, parameter)
            if name == "clip":
                return self.add("Clip", z, self.constant(-parameter), self.constant(parameter))
            if name == "square":
                cut = self.add("Clip", z, self.constant(-parameter), self.constant(parameter))
                return self.add("Mul", cut, cut)
        raise UnsupportedOperator(
            f"the activation {activation.spec!r} cannot be written as ONNX operators. Export .safetensors instead.",
            (activation.spec,),
        )

    @property
    def _double(self) -> bool:
        return bool(self.dtype == np.float64)

    def _gate(self, z: str, inner: str) -> str:
        """z (1 + inner) / 2."""
        half = self.add("Mul", z, self.constant(0.5))
        return self.add("Mul", half, self.add("Add", inner, self.constant(1.0)))

    def _erf(self, z: str) -> str:
        if not self._double:
            return self.add("Erf", z)
        if self.exact:
            return self._exact_erf(z)
        narrow = self.add("Erf", self.add("Cast", z, to=TensorProto.FLOAT))
        return self.add("Cast", narrow, to=TensorProto.DOUBLE)

    def _exact_erf(self, z: str) -> str:
        one = self.constant(1.0)
        inner = self.add("Clip", z, self.constant(-_ERF_SPLIT), self.constant(_ERF_SPLIT))
        near = self.add("Mul", inner, self._ratio(_ERF_NEAR, self.add("Mul", inner, inner)))
        size = self.add("Abs", z)
        outer = self.add("Min", size, self.constant(_ERF_ONE))
        tail = self.add("Exp", self.add("Neg", self.add("Mul", outer, outer)))
        tail = self.add("Mul", tail, self._ratio(_ERF_FAR, outer))
        far = self.add("Mul", self.add("Sign", z), self.add("Sub", one, tail))
        return self.add("Where", self.add("Less", size, self.constant(_ERF_SPLIT)), near, far)

    def _ratio(self, coefficients: tuple[tuple[float, ...], tuple[float, ...]], at: str) -> str:
        """p(at) / q(at), by Horner's rule."""
        found: list[str] = []
        for row in coefficients:
            value = self.constant(row[0])
            for coefficient in row[1:]:
                value = self.add("Add", self.add("Mul", value, at), self.constant(coefficient))
            found.append(value)
        return self.add("Div", *found)

    def _where_positive(self, z: str, negative: str) -> str:
        return self.add("Where", self.add("Greater", z, self.constant(0.0)), z, negative)

    def _leaky(self, z: str, slope: float) -> str:
        if not self._double:
            return self.add("LeakyRelu", z, alpha=slope)
        return self._where_positive(z, self.add("Mul", z, self.constant(slope)))

    def _elu(self, z: str, alpha: float) -> str:
        if not self._double:
            return self.add("Elu", z, alpha=alpha)
        grown = self.add("Exp", self.add("Min", z, self.constant(0.0)))
        shifted = self.add("Sub", grown, self.constant(1.0))
        return self._where_positive(z, self.add("Mul", shifted, self.constant(alpha)))

    def _softplus(self, z: str, beta: float) -> str:
        scaled = z if beta == 1.0 else self.add("Mul", z, self.constant(beta))
        if self._double:  # max(z, 0) + log(1 + exp(-|z|))
            tail = self.add("Exp", self.add("Neg", self.add("Abs", scaled)))
            tail = self.add("Log", self.add("Add", tail, self.constant(1.0)))
            value = self.add("Add", self.add("Relu", scaled), tail)
        else:
            value = self.add("Softplus", scaled)
        return value if beta == 1.0 else self.add("Mul", value, self.constant(1.0 / beta))
