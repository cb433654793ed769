"""An implicit model compiled once, to be run many times."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np

from simtool.errors import ConvergenceError, InputError, OptionError
from simtool.inference import kernels
from simtool.inference.compiling import announce
from simtool.inference.program import Program
from simtool.inference.schedule import obstacle, schedule
from simtool.model import ImplicitModel

_log = logging.getLogger("simtool")
DTYPES = ("float32", "float64")


class InferencePlan:
    """Predictions of ``model`` in ``dtype``: compiled, in an order in which every row uses only earlier ones.

    float32 (the default) agrees with ``model.predict`` to about 1e-5 of max(1, |y|), as far as the model's own values
    are of moderate size; float64 to 1e-10. Several threads may use one plan at once.

    Parameters
    ----------
    dtype : float32 or float64
    threads : how many threads share the samples of a large batch; one sample is never divided

    Attributes
    ----------
    method : ``compiled``; or ``fixed-point`` where states depend on each other in cycles: then ``predict`` is
        ``model.predict``, in float64, with its proven stopping rule, and no faster. ``reason`` says why.
    program : the schedule and what of it is dense, None for a fixed point

    Raises OptionError for a dtype or a number of threads that is not allowed, weights that float32 cannot hold, or
    where numba may not compile.
    """

    def __init__(self, model: ImplicitModel, dtype: Any = np.float32, threads: int = 1) -> None:
        self.dtype = _checked_dtype(dtype)
        if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
            raise OptionError(f"threads must be a whole number from 1 on, got {threads!r}.")
        if not hasattr(kernels.many, "signatures"):
            raise OptionError("InferencePlan needs numba's compiler, but NUMBA_DISABLE_JIT is set. Unset it.")
        self.model, self.threads = model, int(threads)
        self.reason = obstacle(model)
        self.method = "compiled" if self.reason is None else "fixed-point"
        self.program: Program | None = None
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 and self.reason is None else None
        if self.reason is None:
            self.program = Program(schedule(model), self.dtype, model.output_map)
            announce(kernels.many)
        else:
            _log.info("inference runs ImplicitModel.predict: %s", self.reason)

    @property
    def nbytes(self) -> int:
        """The arrays that a prediction reads; of a fixed point, the matrices of the model."""
        if self.program is not None:
            return self.program.nbytes
        matrices = (self.model.A, self.model.B, self.model.C, self.model.D)
        return sum(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes for m in matrices)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (k, q) of the plan's dtype, after the output map, for ``inputs`` (k, *input_shape).

        Raises InputError for a wrong shape or type, NaN or Inf (also where a number is too large for float32);
        ConvergenceError where a value overflows, before or after its activation, or a fixed point is not reached.
        """
        array = np.asarray(inputs)
        if array.dtype.kind not in "biuf":
            raise InputError(f"inputs must be real numbers, got an array of {array.dtype}. Pass float32.")
        if self.program is None:
            return self.model.predict(array).astype(self.dtype)
        size = self.program.inputs
        if array.ndim == 0 or prod(array.shape[1:]) != size:
            raise InputError(
                f"a sample has shape {array.shape[1:]}, the model takes {self.model.input_shape} ({size} numbers). "
                "Pass data of that size."
            )
        count = array.shape[0]
        samples = array.reshape(count, size)
        if samples.dtype != self.dtype:
            with np.errstate(over="ignore"):
                samples = samples.astype(self.dtype)
        samples = np.ascontiguousarray(samples)
        out = np.empty((count, self.model.q), self.dtype)
        # What would leave most of a tile empty goes one by one.
        rest = count % self.program.line
        tiled = count - rest if rest <= self.program.few else count
        if tiled:
            self._tiles(self.program, samples, tiled, out)
        if tiled < count:
            self._check(self.program.singles(samples, tiled, count, out), samples)
        return out

    def _tiles(self, program: Program, samples: np.ndarray, end: int, out: np.ndarray) -> None:
        tiles = -(-end // program.lanes)
        if self._pool is None or tiles == 1:
            self._check(program.many(samples, 0, end, out), samples)
            return
        cuts = [program.lanes * (tiles * i // self.threads) for i in range(self.threads)]
        parts = [(a, b) for a, b in zip(cuts, [*cuts[1:], end], strict=True) if b > a]
        running = [self._pool.submit(program.many, samples, a, b, out) for a, b in parts]
        for row in [future.result() for future in running]:
            self._check(row, samples)

    def _check(self, row: int, samples: np.ndarray) -> None:
        """Raise where a kernel found something that is not finite."""
        if row == kernels.FINITE:
            return
        wide = self.dtype == np.float64
        if row == kernels.BAD_INPUT:
            bad = int(np.argmax(~np.isfinite(samples).all(axis=1)))
            raise InputError(
                f"sample {bad} holds NaN or Inf{'' if wide else ', or a number too large for float32'}. "
                "Remove or repair it."
            )
        assert self.program is not None
        what = "the outputs overflow"
        if row < self.model.n:
            state = int(self.program.schedule.states[row])
            block = next(b.name for b in self.model.blocks if b.offset <= state < b.offset + b.size)
            what = f"the states of block {block!r} overflow"
        remedy = "Check the inputs' range, or make the model with a smaller kappa."
        precision = "double precision" if wide else "single precision"
        raise ConvergenceError(f"{what} {precision}. {'' if wide else 'Use dtype=np.float64, or: '}{remedy}")


def _checked_dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES or not found.isnative:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return found
