"""Data from Python code: ``package.module:f`` with ``f(split) -> (inputs, labels or None)``."""

from __future__ import annotations

import numpy as np

from simtool.data.source import ArraySource, DataSource
from simtool.errors import InputError
from simtool.importing import call, resolve


def open_function(reference: str, split: str | None) -> DataSource:
    """Call the function with ``split`` (default train) and check what it gives."""
    function = resolve(reference)
    chosen = split or "train"
    if not callable(function):
        raise InputError(
            f"{reference} is a {type(function).__name__}, a function f(split) -> (inputs, labels) is needed."
        )
    result = call(function, f"{reference}({chosen!r})", chosen)
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(
            f"{reference}({chosen!r}) returned a {type(result).__name__}; a pair (inputs, labels or None) is needed."
        )
    inputs, labels = (None if value is None else np.asarray(value) for value in result)
    if inputs is None:
        raise InputError(f"{reference}({chosen!r}) returned no inputs.")
    return ArraySource(reference, chosen, inputs, labels)
