"""The certificates a model file carries: one line for every row of M, as measured on the row as stored."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from simtool.errors import FormatError
from simtool.row_status import STATUSES, RowStatus

KINDS = ("duality-gap", "normal-equations", "fixed-support", "equality", "solver-gap")


@dataclass(frozen=True, eq=False)
class CertificateTable:
    """Arrays of length n + q, rows of Z first, then rows of Y.

    Attributes
    ----------
    certified : bool, the relative gap is within tolerance and kappa holds
    kind : uint8, index into KINDS
    primal, dual : objective of the stored row, and a proven lower bound of the optimum
    relative_gap : (primal - dual) over the contract's denominator
    kappa_slack : kappa - ||w_S||_1 (inf where no kappa applies)
    multiplier : the multiplier of the kappa constraint
    projection_error : how far the projected dual point is from feasible, where one was projected; for exact matching
        ||W^T w - z|| / ||z||
    status : uint8, index into STATUSES: what became of the row. Derived from the other columns where it is not given,
        as in files written before it was stored
    """

    certified: np.ndarray
    kind: np.ndarray
    primal: np.ndarray
    dual: np.ndarray
    relative_gap: np.ndarray
    kappa_slack: np.ndarray
    multiplier: np.ndarray
    projection_error: np.ndarray
    status: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.status is None:
            failed = np.where(np.asarray(self.kappa_slack) < 0, RowStatus.CONSTRAINT.code, RowStatus.GAP.code)
            derived = np.where(np.asarray(self.certified, dtype=bool), RowStatus.CERTIFIED.code, failed)
            object.__setattr__(self, "status", derived)
        for spec in fields(self):
            dtype = {"certified": np.bool_, "kind": np.uint8, "status": np.uint8}.get(spec.name, np.float64)
            array: np.ndarray = np.ascontiguousarray(getattr(self, spec.name), dtype=dtype)
            if array.ndim != 1:
                raise FormatError(f"certificate column {spec.name!r} must have one axis, got {array.ndim}.")
            object.__setattr__(self, spec.name, array)
        lengths = {len(getattr(self, spec.name)) for spec in fields(self)}
        if len(lengths) != 1:
            raise FormatError(f"the columns of the certificate table differ in length: {sorted(lengths)}.")
        if self.kind.size and int(self.kind.max()) >= len(KINDS):
            raise FormatError(
                f"certificate kind {int(self.kind.max())} is unknown; known are 0..{len(KINDS) - 1} = {KINDS}."
            )

        assert self.status is not None
        if self.status.size and int(self.status.max()) >= len(STATUSES):
            raise FormatError(
                f"row status {int(self.status.max())} is unknown; known are 0..{len(STATUSES) - 1} = "
                f"{[status.label for status in STATUSES]}."
            )

    def status_of(self, row: int) -> RowStatus:
        """What became of ``row``."""
        assert self.status is not None
        return STATUSES[int(self.status[row])]

    def count_by_status(self) -> dict[str, int]:
        """How many rows have each status, by its label, without those that no row has."""
        assert self.status is not None
        counts = np.bincount(self.status, minlength=len(STATUSES))
        return {status.label: int(n) for status, n in zip(STATUSES, counts, strict=True) if n}

    def __len__(self) -> int:
        return len(self.certified)

    @staticmethod
    def columns() -> tuple[str, ...]:
        """The names of the columns, in the order in which files hold them."""
        return tuple(spec.name for spec in fields(CertificateTable))

    @property
    def max_relative_gap(self) -> float:
        """The worst relative gap; 0 for an empty table."""
        return float(self.relative_gap.max()) if len(self) else 0.0
