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


# glibc gives blocks of some megabytes back to the system at every free, and the next one is faulted in and zeroed anew:
# a seventh of a worker's time, as tiles are of such sizes.
WORKER_VARIABLES = {
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30)),
}


def worker_environment() -> dict[str, str]:
    """The environment for a worker; it must be in place before the worker imports numpy."""
    return {**os.environ, **WORKER_VARIABLES}
