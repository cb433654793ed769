"""Compiled functions of the inference kernels: without the GIL, cached on disk where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

_log = logging.getLogger("simtool")


def compiled(function: Callable[..., Any]) -> Any:
    """``function`` compiled on its first call. Divisions follow IEEE rules, NaN and Inf are honoured.

    Products and sums may be fused (``contract``), which only rounds less. A cache folder that cannot be written costs
    the time to compile, never the prediction.
    """
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return njit(**options)(function)
    cache = getattr(dispatcher, "_cache", None)
    if cache is None:  # numba is told not to compile at all; InferencePlan refuses that
        return dispatcher
    save = cache.save_overload

    def save_if_possible(signature: Any, overload: Any) -> None:
        try:
            save(signature, overload)
        except OSError as error:
            _log.warning(
                "the compiled inference kernels cannot be cached in %s (%s): every process compiles them again",
                cache.cache_path,
                error.strerror or error,
            )

    cache.save_overload = save_if_possible
    return dispatcher


def announce(dispatcher: Any) -> None:
    """Say that the next call of ``dispatcher`` compiles, where nothing of it is cached."""
    if dispatcher.signatures:
        return
    folder = dispatcher.stats.cache_path
    if folder is None or not any(Path(folder).glob(f"kernels.{dispatcher.__name__}*.nbi")):
        where = (
            "in every process: no cache folder can be written" if folder is None else "once on this machine"
        )
        _log.info("compiling the inference kernels, %s (some seconds)", where)
