"""What became of a row, in words: the value of each status is what to do about it.

A status says why a row is or is not certified; it never replaces the certificate. The mathematics sets it, model files
store it as a small number (its place in ``STATUSES``), ``simtool inspect`` prints it.
"""

from __future__ import annotations

from enum import Enum


class RowStatus(Enum):
    """One member per outcome; ``label`` is its short name, ``value`` the remedy."""

    CERTIFIED = "Nothing to do: the row is proven optimal to --tol."
    GAP = (
        "The row may be right, but its gap is larger than --tol. Try another --solver, a larger --tol, or rescale the "
        "states (simtool extract --rescale)."
    )
    INFEASIBLE = (
        "No row meets all constraints; the one of least residual is stored where there is one, else zeros. With more samples than features a target is "
        "matched exactly only if it is a linear function of them: use --match relaxed, a larger --kappa, fewer samples "
        "or --structure dag. With an objective of your own, loosen its constraints."
    )
    CONSTRAINT = (
        "The stored row exceeds kappa, the box or its mask: a fault in simtool. Report it with the row dumped by simtool "
        "inspect RUN --row i --dump row.npz."
    )
    GAVE_UP = (
        "The solver ended without a solution. Try another --solver, or rescale the states (simtool extract "
        "--rescale); an objective of your own must be bounded below. Dump the row to look at it alone."
    )

    @property
    def label(self) -> str:
        """The status in a word or two."""
        return _LABELS[self]

    @property
    def code(self) -> int:
        """The number that files hold."""
        return STATUSES.index(self)


_LABELS = {
    RowStatus.CERTIFIED: "certified",
    RowStatus.GAP: "gap too large",
    RowStatus.INFEASIBLE: "infeasible",
    RowStatus.CONSTRAINT: "constraint violated",
    RowStatus.GAVE_UP: "solver gave up",
}

# Files hold the place in this tuple: append only.
STATUSES = (
    RowStatus.CERTIFIED,
    RowStatus.GAP,
    RowStatus.INFEASIBLE,
    RowStatus.CONSTRAINT,
    RowStatus.GAVE_UP,
)
