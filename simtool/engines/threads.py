"""One BLAS thread per worker: two processes of two threads each are many times slower than two of one, and the
bytes of a product may depend on the thread count."""

from __future__ import annotations

import os

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def single_threaded_environment() -> dict[str, str]:
    """The environment for a worker; it must be in place before the worker imports numpy."""
    environment = dict(os.environ)
    environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    return environment
