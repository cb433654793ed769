"""Sums of a row's products, written as vector instructions that LLVM fits to the processor.

Loops over arrays do not become what is wanted here. Over samples, LLVM keeps no accumulators in registers across the
entries of a row; over the entries of one sample it emits gather instructions, or checks of every index, and takes two to
four cycles an entry where one is enough.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

# 256 bytes of samples: four vectors of 512 bits or eight of 256, as many sums as hide the latency of an addition.
LANE_BYTES = 256
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


@_intrinsic
def row_over_lanes(
    typing: Any, data: Any, indices: Any, begin: Any, end: Any, bias: Any, tile: Any, row: Any, at: Any
) -> Any:
    """tile[row, at : at + lanes] = bias + sum over begin <= k < end of data[k] * tile[indices[k], at : at + lanes].

    ``tile`` is C-contiguous (rows, width), int64 ``begin``, ``end``, ``row``, ``at``; nothing is checked.
    """
    signature = types.void(data, indices, begin, end, bias, tile, row, at)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        size = sig.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(scalar, LANE_BYTES // size)
        weights, columns = (_pointer(context, builder, sig.args[i], args[i]) for i in (0, 1))
        array = context.make_array(sig.args[5])(context, builder, args[5])
        width = builder.extract_value(array.shape, 1)

        total = cgutils.alloca_once_value(builder, _splat(builder, vector, args[4]))
        with cgutils.for_range_slice(builder, args[2], args[3], ir.Constant(_INDEX, 1), _INDEX) as (k, _):
            weight, column = _entry(builder, weights, columns, k)
            place = _vector_at(builder, array.data, column, width, args[7], vector)
            _add_product(builder, total, _splat(builder, vector, weight), builder.load(place, align=size))
        place = _vector_at(builder, array.data, args[6], width, args[7], vector)
        builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def dense_rows_over_lanes(
    typing: Any,
    weights: Any,
    first: Any,
    stride: Any,
    low: Any,
    count: Any,
    bias: Any,
    tile: Any,
    row: Any,
    at: Any,
) -> Any:
    """tile[row + r, at : at + lanes] = bias[r] + sum over j < count of weights[first + r * stride + j] * tile[low + j, ...].

    For each r < DENSE_ROWS: one vector of samples, loaded once, meets a weight of each of these rows. ``bias`` is a tuple.
    The lanes are done in two halves, so that all sums stay in registers.
    """
    signature = types.void(weights, first, stride, low, count, bias, tile, row, at)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        size = sig.args[0].dtype.bitwidth // 8
        half = LANE_BYTES // size // 2
        vector = ir.VectorType(scalar, half)
        weights = _pointer(context, builder, sig.args[0], args[0])
        array = context.make_array(sig.args[6])(context, builder, args[6])
        width = builder.extract_value(array.shape, 1)
        zero, one = ir.Constant(_INDEX, 0), ir.Constant(_INDEX, 1)
        for part in range(2):
            lane = builder.add(args[8], ir.Constant(_INDEX, part * half))
            sums = [
                cgutils.alloca_once_value(builder, _splat(builder, vector, builder.extract_value(args[5], r)))
                for r in range(DENSE_ROWS)
            ]
            with cgutils.for_range_slice(builder, zero, args[4], one, _INDEX) as (j, _):
                value = builder.load(
                    _vector_at(builder, array.data, builder.add(args[3], j), width, lane, vector), align=size
                )
                entry = builder.add(args[1], j)
                for total in sums:
                    weight = builder.load(builder.gep(weights, [entry], inbounds=True))
                    _add_product(builder, total, _splat(builder, vector, weight), value)
                    entry = builder.add(entry, args[2])
            for r, total in enumerate(sums):
                row = builder.add(args[7], ir.Constant(_INDEX, r))
                place = _vector_at(builder, array.data, row, width, lane, vector)
                builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    return signature, codegen


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
        result = builder.load(total)
        while count > 1:  # the upper half onto the lower
            count //= 2
            lower, upper = (
                builder.shuffle_vector(
                    result, result, ir.Constant(ir.VectorType(ir.IntType(32), count), list(which))
                )
                for which in (range(count), range(count, 2 * count))
            )
            result = builder.fadd(lower, upper)
        return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

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

        step = ir.Constant(_INDEX, _UNROLL)
        whole = builder.and_(builder.sub(args[3], args[2]), ir.Constant(_INDEX, -_UNROLL))
        middle = builder.add(args[2], whole)
        with cgutils.for_range_slice(builder, args[2], middle, step, _INDEX) as (k, _):
            for offset, total in enumerate(sums):
                add(builder.add(k, ir.Constant(_INDEX, offset)), total)
        with cgutils.for_range_slice(builder, middle, args[3], ir.Constant(_INDEX, 1), _INDEX) as (k, _):
            add(k, sums[0])
        parts = [builder.load(total) for total in sums]
        return builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))

    return signature, codegen
