"""This machine and installation: what could change the last bit of a result, and the memory there is."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simtool import __version__

_PACKAGES = ("numpy", "scipy", "numba")
_VECTOR_FLAGS = frozenset(
    [
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "asimd",
        "sve",
        "sve2",
    ]
)


def package_version(name: str) -> str | None:
    """The installed version, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def blas_libraries() -> list[str]:
    """Name, version and kernel of the BLAS that numpy and scipy use, as sorted text."""
    import numpy as np
    import scipy.linalg
    from threadpoolctl import threadpool_info

    del np, scipy  # imported so that their libraries are loaded and seen
    found = [entry for entry in threadpool_info() if entry.get("user_api") == "blas"]
    # Other packages may bring a BLAS of their own; it counts only where numpy has none beside it.
    own = [e for e in found if any(name in str(e.get("filepath")) for name in ("numpy", "scipy"))]
    keys = ("internal_api", "version", "architecture")
    return sorted({" ".join(str(entry.get(key)) for key in keys) for entry in own or found})


def cpu_features() -> list[str]:
    """The vector instructions of this processor that compiled code and BLAS choose by."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return sorted(set(value.split()) & _VECTOR_FLAGS)
    except OSError:
        pass
    return [platform.processor()]


def fingerprint(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Versions and BLAS kernels, as stored in spec.json; ``packages`` are those that the solver needs beside our own.

    A run resumed elsewhere must agree on all of it.
    """
    return {
        "simtool": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "cpu": cpu_features(),
        "blas": blas_libraries(),
        **{name: package_version(name) for name in (*_PACKAGES, *packages)},
    }


def free_memory() -> int | None:
    """Bytes that this process may still take: what the machine has left, less where its container has a limit; None if unknown."""
    found = [value for value in (_machine(), _container()) if value is not None]
    return min(found) if found else None


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):  # no limit ("max"), or no control groups
        return None
