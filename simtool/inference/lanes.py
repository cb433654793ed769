"""Sums of a row's products, written as vector instructions that LLVM fits to the processor.

Loops over arrays do not become what is wanted here. Over samples, LLVM keeps no accumulators in registers across the
entries of a row; over the entries of one sample it emits gather instructions, or checks of every index, and takes two to
four cycles an entry where one is enough.
"""

from __future__ import annotations

from math import factorial, log
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

# A row of a tile. 256 bytes of samples are four vectors of 512 bits or eight of 256: as many sums as hide the latency
# of an addition, and a weight's load counts little. For few samples it is a line of the cache.
LANE_BYTES, LINE_BYTES = 256, 64
DENSE_ROWS = 4
_UNROLL = 4
_INDEX = ir.IntType(64)
_intrinsic: Any = extending.intrinsic
_FUSED = ("contract",)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _splat(builder: Any, vector: Any, value: Any) -> Any:
    undefined, int32 = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    one = builder.insert_element(undefined, value, ir.Constant(int32, 0))
    mask = ir.Constant(ir.VectorType(int32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, undefined, mask)


def _entry(builder: Any, data: Any, indices: Any, k: Any) -> tuple[Any, Any]:
    """The weight and the column of entry ``k``; unsigned, so that no index counts from the end."""
    weight = builder.load(builder.gep(data, [k], inbounds=True))
    column = builder.load(builder.gep(indices, [k], inbounds=True))
    return weight, column if column.type == _INDEX else builder.zext(column, _INDEX)


def _vector_at(builder: Any, data: Any, row: Any, width: Any, lane: Any, vector: Any) -> Any:
    """A pointer to the vector that begins at [row, lane]."""
    at = builder.add(builder.mul(row, width), lane)
    return builder.bitcast(builder.gep(data, [at], inbounds=True), vector.as_pointer())


def _add_product(builder: Any, total: Any, left: Any, right: Any) -> None:
    product = builder.fmul(left, right, flags=_FUSED)
    builder.store(builder.fadd(product, builder.load(total), flags=_FUSED), total)


def _total(builder: Any, vector: Any, count: int) -> Any:
    """The sum of the ``count`` numbers of ``vector``: the upper half onto the lower, again and again."""
    while count > 1:
        count //= 2
        kind = ir.VectorType(ir.IntType(32), count)
        lower, upper = (
            builder.shuffle_vector(vector, vector, ir.Constant(kind, list(which)))
            for which in (range(count), range(count, 2 * count))
        )
        vector = builder.fadd(lower, upper)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _over_entries(builder: Any, begin: Any, end: Any, totals: list[Any], add: Any) -> Any:
    """add(k, total) for begin <= k < end, the totals taking turns; their sum."""
    step = ir.Constant(_INDEX, len(totals))
    whole = builder.and_(builder.sub(end, begin), ir.Constant(_INDEX, -len(totals)))
    middle = builder.add(begin, whole)
    with cgutils.for_range_slice(builder, begin, middle, step, _INDEX) as (k, _):
        for offset, total in enumerate(totals):
            add(builder.add(k, ir.Constant(_INDEX, offset)), total)
    with cgutils.for_range_slice(builder, middle, end, ir.Constant(_INDEX, 1), _INDEX) as (k, _):
        add(k, totals[0])
    parts = [builder.load(total) for total in totals]
    while len(parts) > 1:
        parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _row_over(lane_bytes: int, sums: int) -> Any:
    """tile[row] = bias + sum over begin <= k < end of data[k] * tile[indices[k]] for tiles of ``lane_bytes`` a row.

    ``sums`` a power of two: one vector of few lanes would wait for its own last addition. ``tile`` is C-contiguous,
    ``begin``, ``end``, ``row`` are int64; nothing is checked.
    """

    @_intrinsic
    def row_over(
        typing: Any, data: Any, indices: Any, begin: Any, end: Any, bias: Any, tile: Any, row: Any
    ) -> Any:
        signature = types.void(data, indices, begin, end, bias, tile, row)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            scalar = context.get_value_type(sig.args[0].dtype)
            size = sig.args[0].dtype.bitwidth // 8
            vector = ir.VectorType(scalar, lane_bytes // size)
            weights, columns, rows = (_pointer(context, builder, sig.args[i], args[i]) for i in (0, 1, 5))
            width, zero = ir.Constant(_INDEX, vector.count), ir.Constant(_INDEX, 0)
            empty = ir.Constant(vector, [0.0] * vector.count)
            starts = [_splat(builder, vector, args[4])] + [empty] * (sums - 1)
            totals = [cgutils.alloca_once_value(builder, start) for start in starts]

            def add(k: Any, total: Any) -> None:
                weight, column = _entry(builder, weights, columns, k)
                value = builder.load(_vector_at(builder, rows, column, width, zero, vector), align=size)
                _add_product(builder, total, _splat(builder, vector, weight), value)

            result = _over_entries(builder, args[2], args[3], totals, add)
            builder.store(result, _vector_at(builder, rows, args[6], width, zero, vector), align=size)
            return context.get_dummy_value()

        return signature, codegen

    return row_over


row_over_lanes, row_over_line = _row_over(LANE_BYTES, 1), _row_over(LINE_BYTES, 4)


def _dense_rows_over(lane_bytes: int, parts: int) -> Any:
    """tile[row + r] = bias[r] + sum over j < count of weights[first + r * stride + j] * tile[low + j], r < DENSE_ROWS.

    One vector of samples, loaded once, meets a weight of each of these rows. ``bias`` is a tuple. The lanes are done in
    ``parts``, so that all sums stay in registers.
    """

    @_intrinsic
    def dense_rows_over(
        typing: Any,
        weights: Any,
        first: Any,
        stride: Any,
        low: Any,
        count: Any,
        bias: Any,
        tile: Any,
        row: Any,
    ) -> Any:
        signature = types.void(weights, first, stride, low, count, bias, tile, row)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            scalar = context.get_value_type(sig.args[0].dtype)
            size = sig.args[0].dtype.bitwidth // 8
            lanes = lane_bytes // size
            vector = ir.VectorType(scalar, lanes // parts)
            weights, rows = (_pointer(context, builder, sig.args[i], args[i]) for i in (0, 6))
            zero, one, width = (ir.Constant(_INDEX, number) for number in (0, 1, lanes))
            for part in range(parts):
                lane = ir.Constant(_INDEX, part * vector.count)
                starts = [builder.extract_value(args[5], r) for r in range(DENSE_ROWS)]
                totals = [cgutils.alloca_once_value(builder, _splat(builder, vector, b)) for b in starts]
                with cgutils.for_range_slice(builder, zero, args[4], one, _INDEX) as (j, _):
                    place = _vector_at(builder, rows, builder.add(args[3], j), width, lane, vector)
                    value, entry = builder.load(place, align=size), builder.add(args[1], j)
                    for total in totals:
                        weight = builder.load(builder.gep(weights, [entry], inbounds=True))
                        _add_product(builder, total, _splat(builder, vector, weight), value)
                        entry = builder.add(entry, args[2])
                for r, total in enumerate(totals):
                    row = builder.add(args[7], ir.Constant(_INDEX, r))
                    place = _vector_at(builder, rows, row, width, lane, vector)
                    builder.store(builder.load(total), place, align=size)
            return context.get_dummy_value()

        return signature, codegen

    return dense_rows_over


dense_rows_over_lanes, dense_rows_over_line = _dense_rows_over(LANE_BYTES, 2), _dense_rows_over(LINE_BYTES, 1)


@_intrinsic
def dense_row_of_one(typing: Any, weights: Any, first: Any, stride: Any, vector: Any, low: Any) -> Any:
    """sum over j < stride of weights[first + j] * vector[low + j]; ``stride`` is a multiple of the lanes."""
    signature = weights.dtype(weights, first, stride, vector, low)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        size = sig.args[0].dtype.bitwidth // 8
        count = LANE_BYTES // size
        vector = ir.VectorType(scalar, count)
        weights, values = (_pointer(context, builder, sig.args[i], args[i]) for i in (0, 3))
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * count))
        zero, step = ir.Constant(_INDEX, 0), ir.Constant(_INDEX, count)
        with cgutils.for_range_slice(builder, zero, args[2], step, _INDEX) as (j, _):
            parts = []
            for pointer, start in ((weights, args[1]), (values, args[4])):
                place = builder.gep(pointer, [builder.add(start, j)], inbounds=True)
                parts.append(builder.load(builder.bitcast(place, vector.as_pointer()), align=size))
            _add_product(builder, total, *parts)
        return _total(builder, builder.load(total), count)

    return signature, codegen


@_intrinsic
def transpose_block(typing: Any, samples: Any, sample: Any, column: Any, tile: Any, lane: Any) -> Any:
    """tile[column + j, lane + t] = samples[sample + t, column + j] for t, j < LINE_BYTES / itemsize, both C-contiguous.

    Returns 0 where all of them are finite, else NaN. By interleaving pairs of vectors, a first of the lower half with one of the upper, as often as the
    size has bits.
    """
    signature = samples.dtype(samples, sample, column, tile, lane)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        size = sig.args[0].dtype.bitwidth // 8
        count = LINE_BYTES // size
        vector = ir.VectorType(scalar, count)
        arrays = [context.make_array(sig.args[i])(context, builder, args[i]) for i in (0, 3)]
        source, target = ((a.data, builder.extract_value(a.shape, 1)) for a in arrays)

        def place(array: tuple[Any, Any], row: Any, offset: int, lane: Any) -> Any:
            row = builder.add(row, ir.Constant(_INDEX, offset))
            return _vector_at(builder, array[0], row, array[1], lane, vector)

        rows = [builder.load(place(source, args[1], t, args[2]), align=size) for t in range(count)]
        wrong = ir.Constant(vector, [0.0] * count)
        for row in rows:
            wrong = builder.fadd(wrong, builder.fsub(row, row))  # of Inf and NaN it is NaN
        pairs = [[i + half + k for i in range(count // 2) for k in (0, count)] for half in (0, count // 2)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), count), pair) for pair in pairs]
        for _ in range(count.bit_length() - 1):
            halves = zip(rows[: count // 2], rows[count // 2 :], strict=True)
            rows = [builder.shuffle_vector(a, b, mask) for a, b in halves for mask in masks]
        for j, row in enumerate(rows):
            builder.store(row, place(target, args[2], j, args[4]), align=size)
        return _total(builder, wrong, count)

    return signature, codegen


@_intrinsic
def row_of_one(typing: Any, data: Any, indices: Any, begin: Any, end: Any, vector: Any) -> Any:
    """sum over begin <= k < end of data[k] * vector[indices[k]], in four sums; nothing is checked."""
    signature = data.dtype(data, indices, begin, end, vector)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        weights, columns, values = (_pointer(context, builder, sig.args[i], args[i]) for i in (0, 1, 4))
        sums = [cgutils.alloca_once_value(builder, ir.Constant(scalar, 0.0)) for _ in range(_UNROLL)]

        def add(k: Any, total: Any) -> None:
            weight, column = _entry(builder, weights, columns, k)
            _add_product(builder, total, weight, builder.load(builder.gep(values, [column], inbounds=True)))

        return _over_entries(builder, args[2], args[3], sums, add)

    return signature, codegen


def _polynomial(builder: Any, x: Any, coefficients: list[float]) -> Any:
    value = ir.Constant(x.type, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        product = builder.fmul(value, x, flags=_FUSED)
        value = builder.fadd(product, ir.Constant(x.type, coefficient), flags=_FUSED)
    return value


@_intrinsic
def exp_of_negative(typing: Any, x: Any) -> Any:
    """exp(x) for x <= 0 to a rounding or two, without a call, so that a loop of it becomes vectors; NaN stays NaN.

    2^n exp(r) with n the nearest whole number to x / ln 2 and |r| <= ln(2) / 2, by Taylor's polynomial. 0 below what is
    denormal.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(sig.args[0])
        double = sig.args[0] == types.float64
        bits, mantissa, bias, terms, least = (64, 52, 1023, 13, -708.0) if double else (32, 23, 127, 8, -87.0)
        # ln 2 in two parts; n times the first is exact
        high, low = (0.6931471803691238, 1.9082149292705877e-10) if double else (0.693359375, -2.12194440e-4)

        def number(value: float) -> Any:
            return ir.Constant(kind, value)

        (x,) = args
        below = builder.fcmp_ordered("<", x, number(least))
        inside = builder.select(below, number(least), x)
        floor = builder.module.declare_intrinsic("llvm.floor", [kind])
        scaled = builder.fmul(inside, number(1.0 / log(2.0)))
        n = builder.call(floor, [builder.fadd(scaled, number(0.5))])
        r = builder.fsub(builder.fsub(inside, builder.fmul(n, number(high))), builder.fmul(n, number(low)))
        value = _polynomial(builder, r, [1.0 / factorial(power) for power in range(terms)])
        integer = ir.IntType(bits)
        whole = builder.fptosi(builder.select(builder.fcmp_ordered("ord", n, n), n, number(0.0)), integer)
        exponent = builder.shl(builder.add(whole, ir.Constant(integer, bias)), ir.Constant(integer, mantissa))
        value = builder.fmul(value, builder.bitcast(exponent, kind))
        return builder.select(below, number(0.0), value)

    return x(x), codegen


@_intrinsic
def log1p_of_fraction(typing: Any, x: Any) -> Any:
    """log(1 + x) for 0 <= x <= 1, as 2 artanh(s) = 2 (s + s^3 / 3 + ...) with s = x / (2 + x) <= 1 / 3."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(sig.args[0])
        terms = 17 if sig.args[0] == types.float64 else 8
        s = builder.fdiv(args[0], builder.fadd(args[0], ir.Constant(kind, 2.0)))
        series = _polynomial(builder, builder.fmul(s, s), [2.0 / (2 * k + 1) for k in range(terms)])
        return builder.fmul(s, series)

    return x(x), codegen
