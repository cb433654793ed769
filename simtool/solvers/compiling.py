"""Compiled functions, cached on disk where that is possible; where it is not, they are compiled again in every process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit

_log = logging.getLogger("simtool")


def compiled(function: Callable[..., Any]) -> Any:
    """``function`` compiled on its first call. Divisions follow IEEE rules instead of raising.

    A cache folder that cannot be written (a read-only installation, a full disk) costs time, never the run.
    """
    try:
        dispatcher = njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder that it may write to
        return njit(error_model="numpy")(function)
    cache = getattr(dispatcher, "_cache", None)
    if cache is None:  # numba is told not to compile at all
        return dispatcher
    save = cache.save_overload

    def save_if_possible(signature: Any, overload: Any) -> None:
        try:
            save(signature, overload)
        except OSError as error:
            _log.warning(
                "the compiled row kernel cannot be cached in %s (%s): every process compiles it again",
                cache.cache_path,
                error.strerror or error,
            )

    cache.save_overload = save_if_possible
    return dispatcher


def cache_path(dispatcher: Any) -> str | None:
    """Where ``dispatcher``'s compiled code is kept, None if nowhere."""
    path = dispatcher.stats.cache_path
    return None if path is None else str(path)
