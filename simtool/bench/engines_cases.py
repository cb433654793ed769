"""On what engines are compared, and what is promised of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simtool.bench.cases import CASE_F, CASE_F_QUICK, LASSO, MLP_1024
from simtool.stages.sparsify.options import SparsifyOptions

_QUICK_1024, _QUICK_SAMPLES = "64-24-24-10", 200
LAYERED = replace(LASSO, structure="layered", kappa_outputs=None)


@dataclass(frozen=True)
class EngineCase:
    """States of ``samples`` samples of a network of ``sizes``, and what is asked of every row."""

    name: str
    title: str
    sizes: str
    samples: int
    options: SparsifyOptions

    def quick(self) -> EngineCase:
        """The same case small enough for a test."""
        sizes = _QUICK_1024 if self.sizes == MLP_1024 else CASE_F_QUICK
        return replace(self, sizes=sizes, samples=_QUICK_SAMPLES)


CASES = (
    EngineCase("case-f", "case F, free, m = 6000, lasso kappa .99", CASE_F, 6000, LASSO),
    EngineCase("mlp-1024", "MLP 1024, layered, m = 10 000, lasso kappa .99", MLP_1024, 10_000, LAYERED),
)
NAMES = tuple(case.name for case in CASES)
# The case whose engines are held to the targets; the other one is over before they matter.
JUDGED = "mlp-1024"


def chosen(names: tuple[str, ...]) -> tuple[EngineCase, ...]:
    """The cases of these names, all for none, in the order of the table."""
    return tuple(case for case in CASES if not names or "all" in names or case.name in names)


def of_states(name: str) -> EngineCase:
    """A states file of the user's own, with the defaults of sparsify."""
    return EngineCase("states", f"{name}, layered, lasso kappa .99", "", 0, LAYERED)
