"""Which way the native solver takes, as a function of sizes alone: the same on every machine.

The thresholds are measurements (one core, float64 BLAS): a Gram matrix costs d^2 m once; without it a row costs a few
readings of W in the precision of the states, and a Gram matrix of its own working set.
"""

from __future__ import annotations

# Beyond this many features G does not fit: 2 GiB.
MOST_FEATURES = 16_384
# What a row costs without G, in multiply-adds of the product that makes G: readings of W, products of its working set,
# and a constant. Fitted to d = 897 to 12 000 and m = 60 to 10 000.
_READINGS, _OWN_PRODUCTS, _ALONE = 60.0, 1e5, 1.2e8


def gram_pays(features: int, samples: int, rows: int) -> bool:
    """Whether ``rows`` rows with ``features`` features and ``samples`` samples should share one Gram matrix."""
    if not 0 < features <= MOST_FEATURES:
        return False
    without = rows * (_READINGS * features * samples + _OWN_PRODUCTS * samples + _ALONE)
    return features * features * samples <= without
