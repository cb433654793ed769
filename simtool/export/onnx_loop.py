"""A cyclic component as an ONNX Loop.

The iteration is the tool's own (:mod:`simtool.model.forward`): x <- phi(A x + b), its average with x, or the same with the
self loops absorbed. Its stopping rule is simpler, but enough. With v > 0 and f < 1 such that one iteration shrinks the
error max_i |e_i| / v_i by f, a change d of the iterate in that norm leaves an error of at most d f / (1 - f). A sample is
finished when

    d <= tolerance (1 - f) / f * max_i |x_i| / v_i,    or    d <= 8 eps max_i |x_i| / v_i and d is no new minimum,

the second because nothing is left but rounding; the loop ends when all samples are finished, and in any case after K
iterations with f^K <= tolerance, by when the error is small by the same theorem. Where no theorem holds (or K is above
a million), the loop ends after ``max_iterations``, and the outputs of a sample that is not finished are NaN:
a graph has no other way to say so.

The second rule leaves an error of up to 8 eps f / (1 - f), and a rounding of b grows to eps / (1 - f): at f = 0.999 more
than 1e-5 in float32. So a loop, and the b that it starts from, is float64 in a float32 file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper
from scipy import sparse

from simtool.activations import Activation
from simtool.blocks import Block, lipschitz
from simtool.export.onnx_graph import GraphWriter
from simtool.model import ComponentVerdict, FixedPoint
from simtool.model.forward import averaging_step, choose_method
from simtool.model.levels import Component
from simtool.model.wellposed import absorbed, collatz_wielandt, local_blocks, row_norm

_UNPROVEN = 0.99  # the rate that the stopping rule assumes where none is proven
_MOST_PROVEN = 1_000_000  # the loop ends long before, unless the contraction is as slow as the proof allows
_SMALLEST = 1e-30  # of an entry of the vector: 1 / v must be a float32


@dataclass(frozen=True, eq=False)
class Iteration:
    """x <- x + step (phi(A x + b / divisor) - x), which shrinks errors by ``factor`` in the norm max_i |e_i| / v_i.

    ``factor`` is None where nothing is proven; ``vector`` is then all ones.
    """

    matrix: sparse.csr_array
    divisor: np.ndarray | None
    step: float
    factor: float | None
    vector: np.ndarray

    def bound(self, tolerance: float, most: int) -> tuple[int, bool]:
        """How many iterations are enough, and whether that is proven; ``most`` where it is not."""
        enough = self.enough(tolerance)
        return (enough, True) if 0 < enough <= max(most, _MOST_PROVEN) else (most, False)

    def enough(self, tolerance: float) -> int:
        """How many iterations are proven to be enough; 0 where no number is."""
        if self.factor is None:
            return 0
        return 1 if self.factor <= tolerance else ceil(log(tolerance) / log(self.factor)) + 1


def iteration(
    component: Component, verdict: ComponentVerdict, blocks: tuple[Block, ...], asked: str
) -> Iteration:
    """The iteration that the tool itself would take, and what is proven of it."""
    method = choose_method(component, verdict, blocks, asked)
    matrix, divisor, step = component.inner, None, 1.0
    ones = np.ones(len(component.rows))
    if method == "averaged":
        step = averaging_step(matrix)
        proven = verdict.mu is not None and verdict.mu < 1.0
        # |1 - s + s phi' a_ii| + s phi' sum |a_ij| <= 1 - s + s max(mu, 0)
        factor = 1.0 - step * (1.0 - max(verdict.mu or 0.0, 0.0)) if proven else None
        return Iteration(matrix, divisor, step, factor, ones)
    if method == "absorption":
        divisor = 1.0 - matrix.diagonal()
        matrix = absorbed(matrix)
    constants = lipschitz(local_blocks(component.rows, blocks))
    weighted = sparse.csr_array(sparse.diags_array(constants) @ abs(matrix))
    rate, vector = row_norm(weighted), ones
    if rate >= 1.0:
        rate, vector = collatz_wielandt(weighted)
    vector = vector / vector.max()
    if rate >= 1.0 or vector.min() < _SMALLEST:
        return Iteration(matrix, divisor, step, None, ones)
    return Iteration(matrix, divisor, step, rate, vector)


def apply_pieces(writer: GraphWriter, pieces: tuple[tuple[Activation, int], ...], z: str) -> str:
    """phi(z), piece by piece."""
    if len(pieces) == 1:
        return writer.activate(pieces[0][0], z)
    ends = np.cumsum([size for _, size in pieces])
    parts = []
    for (activation, size), end in zip(pieces, ends, strict=True):
        first, last, axis = (writer.constant([value], np.int64) for value in (end - size, end, 1))
        parts.append(writer.activate(activation, writer.add("Slice", z, first, last, axis)))
    return writer.add("Concat", *parts, axis=1)


def loop(
    writer: GraphWriter,
    name: str,
    outside: str,
    pieces: tuple[tuple[Activation, int], ...],
    found: Iteration,
    options: FixedPoint,
) -> str:
    """x of the component, (batch, k), for ``outside`` = b of the same shape; all of the type of ``writer``."""
    k = found.matrix.shape[0]
    if found.divisor is not None:
        outside = writer.add("Div", outside, writer.constant(found.divisor[None, :]))
    weight = writer.weight(f"{name}.A", found.matrix.toarray())
    factor = _UNPROVEN if found.factor is None else max(found.factor, 1e-3)
    count, proven = found.bound(options.tolerance, options.max_iterations)
    small = options.tolerance * (1.0 - factor) / factor
    rounding = 8.0 * float(np.finfo(writer.dtype).eps)
    inverse = writer.constant(1.0 / found.vector[None, :])

    start = apply_pieces(writer, pieces, outside)  # one iteration from 0
    if found.step != 1.0:
        start = writer.add("Mul", start, writer.constant(found.step))
    batch = writer.add(
        "Concat", writer.add("Shape", outside, start=0, end=1), writer.constant([1], np.int64), axis=0
    )
    largest = writer.add("Expand", writer.constant([[np.finfo(writer.dtype).max]]), batch)
    unfinished = writer.add("Expand", writer.constant([[1.0]]), batch)

    body = GraphWriter(writer.dtype, writer)
    counter, go, x, best, last = (body.name(f"{name}.{part}") for part in ("i", "go", "x", "best", "last"))
    z = body.add("Gemm", x, weight, outside, transB=1)
    image = apply_pieces(body, pieces, z)
    move = body.add("Sub", image, x)
    if found.step != 1.0:
        move = body.add("Mul", move, writer.constant(found.step))
    # phi may be the identity on z: a body's output must be a value of its own
    following = body.add("Add", x, move) if found.step != 1.0 else body.add("Identity", image)
    change, size = (
        body.add("ReduceMax", body.add("Mul", body.add("Abs", value), inverse), axes=[1], keepdims=1)
        for value in (move, image)
    )
    coarse = body.add("Greater", change, body.add("Mul", size, writer.constant(rounding)))
    falling = body.add("Less", change, best)
    open_ = body.add("Greater", change, body.add("Mul", size, writer.constant(small)))
    going = body.add("And", open_, body.add("Or", coarse, falling))
    flag = body.add("Cast", body.add("And", open_, coarse), to=writer.type)
    least = body.add("Min", best, change)
    any_ = body.add("ReduceMax", body.add("Cast", going, to=writer.type), keepdims=0)
    again = body.add("Greater", any_, writer.constant(0.5))

    def info(value: str, kind: int, shape: list[int | str]) -> ValueInfoProto:
        return helper.make_tensor_value_info(value, kind, shape)

    inputs = [
        info(counter, TensorProto.INT64, []),
        info(go, TensorProto.BOOL, []),
        info(x, writer.type, ["batch", k]),
        info(best, writer.type, ["batch", 1]),
        info(last, writer.type, ["batch", 1]),
    ]
    outputs = [
        info(again, TensorProto.BOOL, []),
        info(following, writer.type, ["batch", k]),
        info(least, writer.type, ["batch", 1]),
        info(flag, writer.type, ["batch", 1]),
    ]
    graph = body.graph(f"{name}.body", inputs, outputs)
    results = [writer.name(f"{name}.{part}") for part in ("solved", "least", "open")]
    operands = [
        writer.constant(count - 1 or 1, np.int64),
        writer.constant(True, np.bool_),
        start,
        largest,
        unfinished,
    ]
    writer.nodes.append(
        helper.make_node("Loop", operands, results, name=writer.name(f"{name}.loop"), body=graph)
    )
    if proven:
        return results[0]
    failed = writer.add("Cast", results[2], to=TensorProto.BOOL)
    return writer.add("Where", failed, writer.constant(np.nan), results[0])
