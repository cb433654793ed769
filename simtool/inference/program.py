"""The arrays that the kernels read, in one floating type, and what is multiplied densely."""

from __future__ import annotations

import numpy as np

from simtool.errors import OptionError
from simtool.inference import kernels, lanes
from simtool.inference.schedule import Schedule, Step

# Nanoseconds an entry, measured on one core with AVX-512 (Zen 4) at 3.2 GHz in float32, bias and activation left out: one
# sample, a narrow tile, a wide tile; stored entries against those of a dense matrix, which _LARGE comes from memory. In a
# wide tile that is 27e9 products a second (a vector from the second cache for each) against 57e9 (BLAS: 45e9, so it is not
# called). The rules that follow from them are where one becomes faster than the other.
_ONE, _ONE_DENSE, _ONE_DENSE_LARGE = 0.31, 0.056, 0.125
_LINE, _LINE_DENSE = 0.5, 0.25
DENSE_ONE, DENSE_ONE_LARGE, DENSE_MANY = _ONE_DENSE / _ONE, _ONE_DENSE_LARGE / _ONE, _LINE_DENSE / _LINE
_CACHED_BYTES = 2**22
# So many narrow tiles take no longer than a wide one, which takes 3 to 3.9 times as long as one of them.
LINES = 3


class Program:
    """``schedule`` in ``dtype``, ready for the kernels.

    ``dense_one`` and ``dense_many`` (steps,) say which steps are dense products, for one sample and for many; up to
    ``few`` samples are faster one by one. Raises OptionError where a weight is too large for ``dtype``.
    """

    def __init__(self, schedule: Schedule, dtype: np.dtype, output_map: str | None) -> None:
        self.schedule, self.dtype = schedule, dtype
        self.inputs, self.states = schedule.inputs, len(schedule.states)
        self.lanes, self.line = (size // dtype.itemsize for size in (lanes.LANE_BYTES, lanes.LINE_BYTES))
        self._map = kernels.MAPS[output_map]
        matrix = schedule.matrix
        with np.errstate(over="ignore"):
            data, bias = matrix.data.astype(dtype), schedule.bias.astype(dtype)
        if not (np.isfinite(data).all() and np.isfinite(bias).all()):
            largest = max(np.abs(matrix.data).max(initial=0.0), np.abs(schedule.bias).max(initial=0.0))
            raise OptionError(
                f"a weight of the model is as large as {largest:.3g}, more than {dtype} holds. Use dtype=np.float64."
            )
        # Half the index bytes where the columns allow it; unsigned, see lanes.
        indices = matrix.indices.astype(np.uint16 if matrix.shape[1] <= 2**16 else np.uint32)
        parameter = schedule.parameter.astype(dtype)
        self._matrix = (data, indices, matrix.indptr.astype(np.int64), bias, schedule.code, parameter)
        steps = schedule.steps
        self.dense_one = tuple(_dense_for_one(step, dtype.itemsize) for step in steps)
        self.dense_many = tuple(step.density > DENSE_MANY for step in steps)
        self.few = self._few()
        self._place_dense()
        # Kept between calls, by width; append and pop are atomic.
        self._tiles: dict[int, list[np.ndarray]] = {self.lanes: [], self.line: []}

    def _few(self) -> int:
        """So many samples are faster one by one than in a narrow tile."""
        one = line = 0.0
        for step, alone, together in zip(self.schedule.steps, self.dense_one, self.dense_many, strict=True):
            one += _ONE_DENSE * step.entries if alone else _ONE * step.nnz
            line += _LINE_DENSE * step.entries if together else _LINE * step.nnz
        return int(line / one) if one else 1

    def _place_dense(self) -> None:
        """The steps' table of :func:`kernels.many`, and dense copies of what is multiplied densely."""
        parts: list[np.ndarray] = [np.zeros(0, self.dtype)]
        table = np.full((len(self.schedule.steps), 7), -1, dtype=np.int64)
        at = 0
        for line, step, one, many in zip(
            table, self.schedule.steps, self.dense_one, self.dense_many, strict=True
        ):
            stride = -(-(step.high - step.low) // self.lanes) * self.lanes
            line[:5] = step.first, step.last, step.low, step.high, stride
            if one or many:
                rows = np.zeros((step.last - step.first, stride), self.dtype)
                stored = self.schedule.matrix[step.first : step.last, step.low : step.high]
                rows[:, : step.high - step.low] = stored.toarray()
                parts.append(rows.ravel())
                line[5:] = at if one else -1, at if many else -1
                at += rows.size
        self._table, self._weights = table, np.concatenate(parts)

    @property
    def nbytes(self) -> int:
        """All arrays, dense copies included."""
        return sum(array.nbytes for array in (*self._matrix, self._table, self._weights))

    def many(self, samples: np.ndarray, begin: int, end: int, out: np.ndarray) -> int:
        """Samples ``begin`` to ``end`` in tiles; FINITE, or what :func:`kernels.many` finds not finite."""
        whole = end - (end - begin) % self.lanes
        if end - whole > LINES * self.line:
            whole = end
        row = self._run(samples, begin, whole, self.lanes, out)
        return self._run(samples, whole, end, self.line, out) if row == kernels.FINITE else row

    def _run(self, samples: np.ndarray, begin: int, end: int, width: int, out: np.ndarray) -> int:
        if begin == end:
            return kernels.FINITE
        kept = self._tiles[width]
        tile = kept.pop() if kept else self._new_tile(width)
        try:
            return int(
                kernels.many(
                    *(samples, begin, end, self._matrix, self._table, self._weights),
                    *(self.states, self._map, tile, out),
                )
            )
        finally:
            kept.append(tile)

    def singles(self, samples: np.ndarray, begin: int, end: int, out: np.ndarray) -> int:
        """Samples ``begin`` to ``end`` one after the other."""
        vector = np.zeros(self.inputs + len(self.schedule.bias) + self.lanes, self.dtype)
        row = kernels.FINITE
        for sample in range(begin, end):
            row = kernels.one(
                *(samples, sample, self._matrix, self._table, self._weights),
                *(self.states, self._map, vector, out),
            )
            if row != kernels.FINITE:
                break
        return int(row)

    def _new_tile(self, width: int) -> np.ndarray:
        """Room for a tile; vectors begin on lines of the cache."""
        rows = self.inputs + len(self.schedule.bias)
        size = rows * width * self.dtype.itemsize
        room = np.empty(size + 64, np.uint8)
        start = -room.ctypes.data % 64
        return room[start : start + size].view(self.dtype).reshape(rows, width)


def _dense_for_one(step: Step, itemsize: int) -> bool:
    cached = step.entries * itemsize <= _CACHED_BYTES
    return step.density > (DENSE_ONE if cached else DENSE_ONE_LARGE)
