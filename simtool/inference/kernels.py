"""The compiled loops: activations, many samples as tiles of lanes, one sample as a vector.

A tile is (inputs + n + q, width) with the samples along its fast axis, so that one weight meets a vector of samples;
its rows are LANE_BYTES or, for few samples, LINE_BYTES long.
The first row with a number that is not finite ends everything and is returned, FINITE where there is none, BAD_INPUT
where the sample itself is not finite.
"""

from __future__ import annotations

import math

import numpy as np

from simtool.inference.compiling import compiled
from simtool.inference.lanes import (
    DENSE_ROWS,
    LINE_BYTES,
    dense_row_of_one,
    dense_rows_over_lanes,
    dense_rows_over_line,
    exp_of_negative,
    log1p_of_fraction,
    row_of_one,
    row_over_lanes,
    row_over_line,
    transpose_block,
)

# What is done to Y, by number.
MAPS = {None: 0, "softmax": 1, "log_softmax": 2, "sigmoid": 3}
FINITE, BAD_INPUT = -1, -2
_ROOT_HALF = math.sqrt(0.5)
_ERF = (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_GELU_SCALE, _GELU_CUBIC = math.sqrt(2.0 / math.pi), 0.044715


@compiled
def _sigmoid(z):
    e = exp_of_negative(-abs(z))
    return 1.0 / (1.0 + e) if z >= 0 else e / (1.0 + e)


@compiled
def _tanh(z):
    e = exp_of_negative(-2 * abs(z))
    value = (1.0 - e) / (1.0 + e)
    return value if z >= 0 else -value


@compiled
def phi(z, code, parameter):
    """The activation ``code`` (see schedule.CODES) of one number."""
    if code == 1:
        return z * 0 if z < 0 else z
    if code == 2:
        return parameter * z if z < 0 else z
    if code == 3:
        return _tanh(z)
    if code == 4:
        return _sigmoid(z)
    if code == 5:
        return z if z >= 0 else parameter * math.expm1(z)
    if code == 6:
        return z * _sigmoid(z)
    if code == 7:
        return 0.5 * z * (1.0 + math.erf(z * _ROOT_HALF))
    if code == 8:
        return 0.5 * z * (1.0 + _tanh(_GELU_SCALE * (z + _GELU_CUBIC * z * z * z)))
    if code == 9:
        b = parameter * z
        return ((b if b > 0 else b * 0) + math.log1p(math.exp(-abs(b)))) / parameter
    if code == 10:
        return parameter if z > parameter else (-parameter if z < -parameter else z)
    if code == 11:
        a = abs(z)
        return parameter * parameter if a > parameter else a * a
    return z


@compiled
def _finite(tile, row):
    """Whether tile[row] is finite everywhere."""
    largest = np.finfo(tile.dtype).max
    wrong = 0
    for t in range(tile.shape[1]):
        wrong += 0 if abs(tile[row, t]) <= largest else 1
    return wrong == 0


@compiled
def _exponentials(tile, row, code, parameter):
    """phi of tile[row] for tanh, sigmoid, elu, silu and the tanh form of gelu, as loops that become vectors."""
    kind = tile.dtype.type
    one, two, zero = kind(1), kind(2), kind(0)
    scale, cubic = kind(2 * _GELU_SCALE), kind(_GELU_CUBIC)
    if code == 3:
        for t in range(tile.shape[1]):
            z = tile[row, t]
            e = exp_of_negative(-two * abs(z))
            value = (one - e) / (one + e)
            tile[row, t] = value if z >= zero else -value
    elif code == 5:
        for t in range(tile.shape[1]):
            z = tile[row, t]
            tile[row, t] = z if z >= zero else parameter * (exp_of_negative(-abs(z)) - one)
    else:
        # z sigmoid(s): gelu's tanh form is z sigmoid(2 (...)), since 1 + tanh(s) = 2 sigmoid(2 s)
        for t in range(tile.shape[1]):
            z = tile[row, t]
            s = scale * (z + cubic * z * z * z) if code == 8 else z
            e = exp_of_negative(-abs(s))
            value = (one if s >= zero else e) / (one + e)
            tile[row, t] = value if code == 4 else z * value


@compiled
def _softplus(tile, row, beta):
    """The same for (max(b, 0) + log(1 + exp(-|b|))) / beta with b = beta z."""
    zero = tile.dtype.type(0)
    for t in range(tile.shape[1]):
        b = beta * tile[row, t]
        tail = log1p_of_fraction(exp_of_negative(-abs(b)))
        tile[row, t] = ((b if b > zero else zero) + tail) / beta


@compiled
def _gelu(tile, row):
    """The same for gelu in float32: erf of Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7."""
    kind = tile.dtype.type
    one, half, root = kind(1), kind(0.5), kind(_ROOT_HALF)
    p, a1, a2, a3, a4, a5 = (
        kind(_ERF[0]),
        kind(_ERF[1]),
        kind(_ERF[2]),
        kind(_ERF[3]),
        kind(_ERF[4]),
        kind(_ERF[5]),
    )
    for t in range(tile.shape[1]):
        z = tile[row, t]
        x = abs(z) * root
        s = one / (one + p * x)
        tail = s * (a1 + s * (a2 + s * (a3 + s * (a4 + s * a5)))) * exp_of_negative(-x * x)
        # Phi(z): 1 - tail / 2 above 0, tail / 2 below
        below = half * tail
        tile[row, t] = z * (one - below if z >= kind(0) else below)


@compiled
def activate(tile, row, code, parameter):
    """phi of tile[row] in place; False where z or phi(z) is not finite: a closed relu would hide the former."""
    zero = tile.dtype.type(0)
    if not _finite(tile, row):
        return False
    if code == 1:
        for t in range(tile.shape[1]):
            z = tile[row, t]
            tile[row, t] = zero if z < zero else z
    elif code in (3, 4, 5, 6, 8):
        _exponentials(tile, row, code, parameter)
    elif code == 9:
        _softplus(tile, row, parameter)
    elif code == 7 and tile.itemsize == 4:
        _gelu(tile, row)
    elif code:
        for t in range(tile.shape[1]):
            tile[row, t] = phi(tile[row, t], code, parameter)
        return _finite(tile, row)
    return True


@compiled
def load(samples, first, count, tile, inputs):
    """Samples first to first + count as columns of ``tile``; the other columns are 0. Whether all are finite."""
    zero = tile.dtype.type(0)
    line = LINE_BYTES // tile.itemsize
    wrong = zero
    for start in range(0, tile.shape[1], line):
        whole = inputs - inputs % line if start + line <= count else 0
        for column in range(0, whole, line):
            wrong += transpose_block(samples, first + start, column, tile, start)
        for column in range(whole, inputs):
            tile[column, start : start + line] = zero
        for t in range(start, min(start + line, count)):
            for column in range(whole, inputs):
                value = samples[first + t, column]
                tile[column, t] = value
                wrong += value - value  # of Inf and NaN it is NaN
    return wrong == zero


@compiled
def _rows_of_tile(matrix, inputs, first, last, tile):
    """Compute rows ``first`` to ``last`` from their entries on every lane; the first that is not finite, or FINITE."""
    data, indices, indptr, bias, code, parameter = matrix
    line = tile.shape[1] * tile.itemsize == LINE_BYTES
    for row in range(first, last):
        begin, end = indptr[row], indptr[row + 1]
        if line:
            row_over_line(data, indices, begin, end, bias[row], tile, inputs + row)
        else:
            row_over_lanes(data, indices, begin, end, bias[row], tile, inputs + row)
        if not activate(tile, inputs + row, code[row], parameter[row]):
            return row
    return FINITE


@compiled
def _dense_rows_of_tile(matrix, weights, begin, stride, inputs, first, last, low, count, tile):
    """The same from dense rows of ``count`` weights, ``stride`` apart from ``begin`` on; their number is a multiple of
    DENSE_ROWS."""
    bias, code, parameter = matrix[3:]
    line = tile.shape[1] * tile.itemsize == LINE_BYTES
    for row in range(first, last, DENSE_ROWS):
        four = (bias[row], bias[row + 1], bias[row + 2], bias[row + 3])
        if line:
            dense_rows_over_line(weights, begin, stride, low, count, four, tile, inputs + row)
        else:
            dense_rows_over_lanes(weights, begin, stride, low, count, four, tile, inputs + row)
        begin += DENSE_ROWS * stride
        for r in range(row, row + DENSE_ROWS):
            if not activate(tile, inputs + r, code[r], parameter[r]):
                return r
    return FINITE


@compiled
def _mapped(y, kind):
    """The output map of one sample's ``y`` (q,), in place."""
    if kind == 3:
        for i in range(len(y)):
            y[i] = _sigmoid(y[i])
    elif kind:
        top = y[0]
        for value in y:
            top = max(top, value)
        total = 0.0
        for value in y:
            total += math.exp(value - top)
        shift = math.log(total)
        for i in range(len(y)):
            y[i] = math.exp(y[i] - top) / total if kind == 1 else y[i] - top - shift


@compiled
def store(tile, at, kind, out, first, count):
    """Rows of ``tile`` from ``at`` on as rows first to first + count of ``out`` (m, q), mapped."""
    for i in range(out.shape[1]):
        for t in range(count):
            out[first + t, i] = tile[at + i, t]
    if kind:
        for t in range(count):
            _mapped(out[first + t], kind)


@compiled
def many(samples, begin, end, matrix, steps, weights, states, kind, tile, out):
    """Samples ``begin`` to ``end``, tile after tile; the row that is not finite, BAD_INPUT or FINITE.

    ``steps`` (s, 7) holds first, last, low, high, and of the step's dense rows in ``weights``: how far apart they are, and
    where they begin for one sample and for many, -1 where the step is computed from its entries.
    """
    inputs = samples.shape[1]
    for start in range(begin, end, tile.shape[1]):
        count = min(tile.shape[1], end - start)
        if not load(samples, start, count, tile, inputs):
            return BAD_INPUT
        for s in range(len(steps)):
            first, last, low, high, stride, _, dense = steps[s]
            if dense >= 0:
                whole = last - (last - first) % DENSE_ROWS
                wrong = _dense_rows_of_tile(
                    matrix, weights, dense, stride, inputs, first, whole, low, high - low, tile
                )
                if wrong != FINITE:
                    return wrong
                first = whole
            wrong = _rows_of_tile(matrix, inputs, first, last, tile)
            if wrong != FINITE:
                return wrong
        store(tile, inputs + states, kind, out, start, count)
    return FINITE


@compiled
def one(samples, sample, matrix, steps, weights, states, kind, vector, out):
    """One sample, as :func:`many`; ``vector`` (inputs + n + q + lanes,) is room to work in, finite on entry: what a dense row reads
    beyond its columns meets weights of 0."""
    data, indices, indptr, bias, code, parameter = matrix
    inputs, largest = samples.shape[1], np.finfo(vector.dtype).max
    wrong = 0
    for j in range(inputs):
        value = samples[sample, j]
        vector[j] = value
        wrong += 0 if abs(value) <= largest else 1
    if wrong:
        return BAD_INPUT
    for s in range(len(steps)):
        first, last, low, _, stride, at, _ = steps[s]
        for row in range(first, last):
            if at < 0:
                total = row_of_one(data, indices, indptr[row], indptr[row + 1], vector)
            else:
                total = dense_row_of_one(weights, at + (row - first) * stride, stride, vector, low)
            z = total + bias[row]
            x = phi(z, code[row], parameter[row])
            vector[inputs + row] = x
            if not (abs(z) <= largest and abs(x) <= largest):
                return row
    for i in range(out.shape[1]):
        out[sample, i] = vector[inputs + states + i]
    if kind:
        _mapped(out[sample], kind)
    return FINITE
