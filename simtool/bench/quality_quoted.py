"""What papers report of other methods on other networks and data: quoted, never measured here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Quoted:
    """``drop`` and ``sparsity`` in percent (SIM Table 1), or ``accuracy`` beside ``dense`` and ``sparsity`` (thesis Table 3.2)."""

    source: str
    data: str
    method: str
    setting: str
    sparsity: float
    accuracy: float | None = None
    dense: float | None = None
    drop: float | None = None

    @property
    def points(self) -> float:
        """Accuracy lost, in percent points."""
        if self.drop is not None:
            return self.drop
        assert self.accuracy is not None
        assert self.dense is not None
        return self.dense - self.accuracy

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "points_lost": round(self.points, 6)}


def _sim(method: str, setting: str, drop: float, sparsity: float) -> Quoted:
    return Quoted("SIM, Table 1", "CIFAR-100", method, setting, sparsity, drop=drop)


def _thesis(method: str, cifar: tuple[float, float], news: tuple[float, float]) -> tuple[Quoted, ...]:
    return (
        Quoted("thesis, Table 3.2", "CIFAR-100", method, "", cifar[1], accuracy=cifar[0], dense=92.1),
        Quoted("thesis, Table 3.2", "20NewsGroup", method, "", news[1], accuracy=news[0], dense=92.8),
    )


QUOTED = (
    _sim("SSS", "P1, Fig. 3(c)", 3.7, 44.4),
    _sim("SSS", "P2, Fig. 3(c)", 1.3, 14.8),
    _sim("SPR", "lambda 1.0, alpha 0.1", 2.3, 45.9),
    _sim("SPR", "lambda 1.3, alpha 0.3", 0.2, 31.5),
    _sim("MLA", "ResNet-18", 3.0, 50.0),
    _sim("MLA", "ResNet-18", 2.5, 30.0),
    _sim("SIM", "perspective", 1.0, 48.1),
    _sim("SIM", "perspective", 0.2, 29.7),
    *_thesis("SSS", (88.4, 44.4), (89.5, 48.7)),
    *_thesis("SPR", (89.8, 45.9), (90.6, 50.5)),
    *_thesis("MLA", (89.1, 50.0), (90.3, 51.8)),
    *_thesis("thesis", (91.0, 90.1), (90.6, 87.4)),
)
