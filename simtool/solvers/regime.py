"""Which way the native solver takes, as a function of sizes alone: the same on every machine.

The thresholds are measurements (one core, float64 BLAS): a Gram matrix costs d^2 m once; without it a row costs a few
readings of W in the precision of the states, and a Gram matrix of its own working set.
"""

from __future__ import annotations

# Beyond this many features G does not fit: 2 GiB.
MOST_FEATURES = 16_384
# What a row costs without G, in multiply-adds: so many times d m, and a constant.
_READINGS, _OWN_GRAM = 3.0, 2.5e8


def gram_pays(features: int, samples: int, rows: int) -> bool:
    """Whether ``rows`` rows with ``features`` features and ``samples`` samples should share one Gram matrix."""
    if not 0 < features <= MOST_FEATURES:
        return False
    without = rows * (_READINGS * features * samples + _OWN_GRAM)
    return features * features * samples <= without
