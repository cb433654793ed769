"""How the supports of a row are looked for: by elimination, alone or for a pattern, or by convex paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simtool.budget import convex, elimination
from simtool.errors import OptionError

ELIMINATION = "elimination"
KINDS = (ELIMINATION, *convex.KINDS)


@dataclass(frozen=True)
class Search:
    """What is wanted of the supports of rows that share a Gram matrix.

    Attributes
    ----------
    kind : one of KINDS
    kept : what a row keeps on average; paths from many features begin at a multiple of it
    least : the start holds no fewer features than this, where so many are live
    pattern : N, M: of every M consecutive features at most N stay, in their places in the Gram matrix; None for any
    """

    kind: str = ELIMINATION
    kept: float = np.inf
    pattern: tuple[int, int] | None = None
    least: int = 0

    def start(self, live: int) -> int | None:
        """How many of ``live`` features a path begins with; None for all of them."""
        of = elimination if self.kind == ELIMINATION else convex
        size = of.start_size(live, self.kept)
        return None if size is None or self.least >= live else max(size, self.least)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"paths are one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.pattern is not None and self.kind != ELIMINATION:
            raise OptionError(f"a pattern needs paths by {ELIMINATION}, got {self.kind}.")


def find(
    search: Search,
    gram: np.ndarray,
    correlations: np.ndarray,
    squares: np.ndarray,
    exempt: np.ndarray,
    between: Callable[[int], None] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The order of leaving (k_i,) and the losses (k_i + 1,) at sizes 0 to k_i of every row, for all sizes that it may have.

    Arrays as :func:`simtool.budget.elimination.paths` takes them; ``exempt`` (d,) bool are features that no pattern counts.
    """
    if search.pattern is not None:
        found = elimination.patterned(gram, correlations, squares, *search.pattern, exempt, between)
        return (
            [order[free:] for order, free in zip(found.order, found.free, strict=True)],
            [losses[: losses.size - free] for losses, free in zip(found.losses, found.free, strict=True)],
        )
    live = int(np.count_nonzero(np.diag(gram) > 0.0))
    if search.kind == ELIMINATION:
        found = elimination.paths(gram, correlations, squares, search.start(live), between=between)
    else:
        found = convex.paths(gram, correlations, squares, search.kind, search.start(live), between)
    return list(found.order), list(found.losses)
