"""The peers by name, and what each of them may be tuned by on the validation samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtool.bench.pruners.admm import admm
from simtool.bench.pruners.obc import OBC
from simtool.bench.pruners.scores import magnitude, wanda
from simtool.bench.pruners.sparsegpt import sparsegpt

# How the non-zeros are shared out over layers: in proportion to their weights, by one threshold for all, or as our model has them.
UNIFORM, GLOBAL, OURS = "uniform", "global", "ours"
BUDGETS = (UNIFORM, GLOBAL, OURS)
# A peer that changes weights may be given the dense network's outputs as its target instead of its own layer's on the
# pruned inputs, and may let the bias follow (centred features); the first of each is what its paper does.
_UPDATES: dict[str, tuple[Any, ...]] = {"target": ("layer", "network"), "bias": ("kept", "updated")}


@dataclass(frozen=True)
class Peer:
    """``make()`` a function (layer, keep, **settings) -> weights; ``tuned`` maps settings to what they may be, the paper's first."""

    name: str
    label: str
    make: Callable[[], Callable[..., np.ndarray]]
    budgets: tuple[str, ...]
    tuned: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: values[0] for name, values in self.tuned.items()}


PEERS = (
    Peer("magnitude", "magnitude", lambda: magnitude, BUDGETS),
    Peer("wanda", "Wanda", lambda: wanda, (UNIFORM, OURS), {"group": ("row", "layer")}),
    Peer(
        "sparsegpt",
        "SparseGPT",
        lambda: sparsegpt,
        (UNIFORM, OURS),
        {**_UPDATES, "damping": (1e-2, 1e-3, 1e-1), "block": (128, 32, 0)},
    ),
    Peer(
        "alps",
        "ALPS-like",
        lambda: admm,
        (UNIFORM, OURS),
        {**_UPDATES, "damping": (1e-2, 1e-3, 1e-4), "rho": (0.1, 0.01, 0.001)},
    ),
    Peer("obc", "OBC", OBC, (UNIFORM, OURS), {**_UPDATES, "damping": (1e-2, 1e-3, 1e-4)}),
)


def by_name(name: str) -> Peer:
    """One of PEERS."""
    return next(peer for peer in PEERS if peer.name == name)
