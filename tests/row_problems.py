"""Random row problems over the whole penalty family, shared by the tests of the mathematics."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from simtool.design import Design
from simtool.penalty import Penalty
from simtool.problem import Objective, RowSet

PENALTIES = {
    "none": Penalty(),
    "l1": Penalty(lam1=0.8),
    "perspective": Penalty(lam0=0.4, lam2=0.4),
    "perspective-wide": Penalty(lam0=0.01, lam2=1.0),
    "ridge": Penalty(lam2=0.5),
    "elastic-net": Penalty(lam1=0.3, lam2=0.5),
    "all": Penalty(lam0=0.2, lam1=0.3, lam2=0.6),
}


def make_rows(
    seed: int,
    d: int = 12,
    m: int = 30,
    r: int = 3,
    penalty: Penalty = PENALTIES["none"],
    kappa: float | None = None,
    on_a: bool = False,
    exclude: bool = False,
    scale: float = 1.0,
    oddities: bool = True,
    bounds: str = "none",
    masked: bool = False,
    weighted: bool = False,
) -> RowSet:
    """``r`` rows on a design with a zero column, a duplicate, and a constant; targets sparse plus noise.

    ``bounds`` is none, sign (w >= 0), box (half of the features within [-.3, .2]) or mixed.
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d, m))
    if oddities and d > 4:
        w[1] = 0.0
        w[3] = w[2]
        w[d - 1] = 1.0
        w[4] = np.maximum(w[4], 0.0)
    truth = rng.standard_normal((r, d)) * (rng.random((r, d)) < 0.4)
    z = truth @ w + 0.3 * rng.standard_normal((r, m))
    bounded = np.arange(d) < (d // 2 if on_a else d)
    excludable = exclude and r <= d and (penalty.slope > 0 or (kappa is not None and r <= bounded.sum()))
    allowed = np.arange(d) != np.arange(r)[:, None] if excludable else None
    lower, upper = np.full(d, -np.inf), np.full(d, np.inf)
    if bounds in ("sign", "mixed"):
        lower[:] = 0.0
    if bounds in ("box", "mixed"):
        lower[::2], upper[::2] = np.where(lower[::2] == 0.0, 0.0, -0.3), 0.2
    if masked:
        mask = rng.random((r, d)) < 0.6
        if penalty.slope == 0:  # what only some rows may use must have a reason to be zero
            mask[:, ~bounded | (kappa is None)] = True
        allowed = mask if allowed is None else allowed & mask
    return RowSet(
        Design(
            (scale * w).astype(np.float32),
            sample_weight=rng.integers(0, 3, m).astype(float) if weighted else None,
        ),
        (scale * z).astype(np.float32),
        Objective(0.5, penalty, kappa),
        bounded,
        allowed,
        None if bounds == "none" else lower,
        None if bounds == "none" else upper,
    )


@st.composite
def row_sets(draw: st.DrawFn) -> RowSet:
    """Any member of the family: penalty, kappa (also 0 and slack), S, exclusions, shapes on both sides of m = d."""
    return make_rows(
        seed=draw(st.integers(0, 2**31)),
        d=draw(st.integers(1, 24)),
        m=draw(st.integers(2, 40)),
        r=draw(st.integers(1, 2)),
        penalty=PENALTIES[draw(st.sampled_from(sorted(PENALTIES)))],
        kappa=draw(st.sampled_from([None, 0.0, 0.05, 0.7, 2.0, 1e3])),
        on_a=draw(st.booleans()),
        exclude=draw(st.booleans()),
        scale=draw(st.sampled_from([1e-3, 1.0, 1e3])),
        bounds=draw(st.sampled_from(["none", "none", "sign", "box", "mixed"])),
        masked=draw(st.booleans()),
        weighted=draw(st.booleans()),
    )
