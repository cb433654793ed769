"""Where and when a benchmark ran: without it a time says nothing."""

from __future__ import annotations

import datetime
import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from simtool.environment import blas_libraries, package_version

_PACKAGES = (
    "simtool",
    "numpy",
    "scipy",
    "numba",
    "cvxpy",
    "clarabel",
    "scs",
    "scikit-learn",
    "celer",
    "skglm",
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, BLAS, versions and date, all plain values."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "blas": blas_libraries(),
        "blas_threads": 1,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: package_version(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def one_thread() -> AbstractContextManager[Any]:
    """Every BLAS and OpenMP pool that is loaded by now, held to one thread inside the block."""
    import scipy.linalg
    from threadpoolctl import threadpool_limits

    del scipy  # imported so that its BLAS is loaded and held too
    return threadpool_limits(limits=1)


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def one_line(machine: dict[str, Any]) -> str:
    """The machine in one line, for under a table."""
    memory = machine.get("memory_bytes")
    parts = [str(machine["cpu"]), f"{machine['cores']} cores"]
    if memory:
        parts.append(f"{memory / 2**30:.0f} GiB")
    parts.append("; ".join(machine["blas"]))
    return f"{', '.join(parts)}, one thread, {machine['date']}"
