"""Values as strict JSON allows them."""

from __future__ import annotations

import math
import os
from typing import Any


def finite(value: Any) -> Any:
    """``value`` ready for strict JSON: numpy scalars as Python's, paths as text, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    # A numpy scalar is known by its method: importing numpy for --help would cost more than all the rest.
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
