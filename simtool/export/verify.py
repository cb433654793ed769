"""Whether an exported file says what the model says: on random inputs, and on the corners of the inputs' range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simtool.errors import InputError
from simtool.model import ImplicitModel

TOLERANCE = 1e-5  # of |y - y'| / max(1, |y|), see difference()
_RANDOM, _CORNERS = 48, 12


def probes(model: ImplicitModel, seed: int = 0) -> np.ndarray:
    """Float32 inputs (k, *input_shape) within the range that the model was made on, or [-1, 1] where it is not known.

    Random ones, random corners of the range, and its two ends, its middle and zero everywhere.
    """
    low, high = -1.0, 1.0
    known = model.header_extra.get("input_range")
    if isinstance(known, list | tuple) and len(known) == 2:
        ends = [float(end) if isinstance(end, int | float) else np.nan for end in known]
        if np.isfinite(ends).all() and ends[0] < ends[1]:
            low, high = ends
    rng = np.random.default_rng(seed)
    size = model.p - int(model.has_bias)
    constant = np.array([low, high, 0.5 * (low + high), 0.0])[:, None]
    flat = np.concatenate(
        [
            rng.uniform(low, high, (_RANDOM, size)),
            np.where(rng.random((_CORNERS, size)) < 0.5, low, high),
            np.repeat(constant, size, axis=1),
        ]
    )
    return flat.astype(np.float32).reshape(-1, *model.input_shape)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """max |y - y'| / max(1, |y|) with |y| the largest output of the sample: rounding grows with the terms of a sum, not with
    what they happen to cancel to. Infinite where shapes (k, q) differ or a value, of either, is not finite."""
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    scale = np.abs(expected).max(axis=1, keepdims=True, initial=1.0)
    return float((np.abs(expected - found) / scale).max(initial=0.0))


def verify(
    name: str, model: ImplicitModel, inputs: np.ndarray, run: Callable[[np.ndarray], np.ndarray]
) -> float:
    """The largest difference between ``run``, which executes the file ``name``, and ``model.predict`` on ``inputs``.

    The samples are run together, and the first one alone: an export may not depend on the size of a batch. Raises
    InputError where they differ by more than TOLERANCE, or where the model's own outputs are not finite.
    """
    expected = model.predict(inputs)
    if not np.isfinite(expected).all():
        bad = int((~np.isfinite(expected)).any(axis=1).sum())
        raise InputError(
            f"the model's own outputs are not finite on {bad} of the {len(inputs)} samples that {name} is checked on, so nothing "
            "tells whether the file is right; it is not kept. Check the scale of the model's weights and its input range."
        )
    worst = difference(expected, np.asarray(run(inputs), dtype=np.float64))
    if len(inputs) > 1:
        worst = max(worst, difference(expected[:1], np.asarray(run(inputs[:1]), dtype=np.float64)))
    if not worst <= TOLERANCE:
        raise InputError(
            f"{name} does not compute what the model computes: outputs differ by {worst:.3g} relative to max(1, |y|), "
            f"allowed are {TOLERANCE:g}. The file is not kept. Rounding to float32 can be the cause: export with --dtype "
            "float64, and check the scale of the weights."
        )
    return worst
