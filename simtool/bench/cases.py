"""What is measured: every line of the speed table is a promise of one of these cases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simtool.stages.sparsify.options import SparsifyOptions

CASE_F = "784-64-32-16-10"
MLP_1024 = "784-1024-1024-10"
CASE_F_QUICK, _QUICK_1024 = "64-12-8-10", "64-24-24-10"
_QUICK_SAMPLES = 200

LASSO = SparsifyOptions(objective="lasso", structure="free", kappa=0.99, kappa_outputs=0.99)
L1 = SparsifyOptions(objective="l1", structure="dag")
DENSE = SparsifyOptions(objective="perspective", structure="free", alpha=1e-2, kappa=0.99)

# What a promise is about.
RATIO, ROW, FASTER = "x (G+B)", "ms a row", "x faster"


@dataclass(frozen=True)
class Promise:
    """``unit`` RATIO or ROW; with ``peer`` the factor by which ours is faster, at the gap ``tolerance`` (of the run, where
    it is None); ``against`` names the peer in the table."""

    unit: str
    least: float
    aim: float | None = None
    peer: str | None = None
    against: str = ""
    tolerance: float | None = None


@dataclass(frozen=True)
class ModelCase:
    """All rows of a model: states of ``samples`` samples of a network of ``sizes``, what is asked, what is promised.

    ``nonzeros``: the l1 weight is chosen so that the median row has about so many. ``peers`` are names of
    :mod:`simtool.bench.peers`.
    """

    name: str
    title: str
    sizes: str
    samples: int
    options: SparsifyOptions
    promises: tuple[Promise, ...]
    peers: tuple[str, ...] = ()
    nonzeros: int | None = None

    def quick(self) -> ModelCase:
        """The same case small enough for a test."""
        sizes = _QUICK_1024 if self.sizes == MLP_1024 else CASE_F_QUICK
        nonzeros = None if self.nonzeros is None else 10
        return replace(self, sizes=sizes, samples=_QUICK_SAMPLES, nonzeros=nonzeros)


@dataclass(frozen=True)
class ConvCase:
    """Post-ReLU positions of a convolution as features: d far above m, no Gram matrix; ``nonzeros`` as above, or the
    lasso with kappa .99. ``rows`` are those of a shard of the product at these sizes."""

    name: str
    title: str
    samples: int
    channels: int
    rows: int
    promises: tuple[Promise, ...]
    nonzeros: int | None = None
    peers: tuple[str, ...] = ("CELER", "SKGLM")

    def quick(self) -> ConvCase:
        nonzeros = None if self.nonzeros is None else 10
        return replace(self, samples=60, channels=8, rows=8, nonzeros=nonzeros)


_LASSOS = ("THESIS", "SKLEARN_GRAM", "SKLEARN", "CELER", "SKGLM", "CLARABEL", "SCS")
_CONV_PROMISES = (
    Promise(ROW, 15.0, 5.0),
    Promise(FASTER, 30.0, None, "CELER", "celer"),
)

CASES: tuple[ModelCase | ConvCase, ...] = (
    ModelCase(
        "case-f",
        "case F, m = 2000, lasso kappa .99",
        CASE_F,
        2000,
        LASSO,
        (
            Promise(RATIO, 4.0, 2.0),
            Promise(FASTER, 50.0, None, "SKLEARN_BISECTION", "scikit-learn bisection at 1e-2", 1e-2),
            Promise(FASTER, 1000.0, None, "CLARABEL", "CVXPY + Clarabel"),
        ),
        (*_LASSOS, "SKLEARN_GRAM_BISECTION", "SKLEARN_BISECTION"),
    ),
    ModelCase(
        "case-f-60000",
        "case F, m = 60 000, lasso kappa .99",
        CASE_F,
        60_000,
        LASSO,
        (Promise(RATIO, 1.6, 1.35),),
    ),
    ModelCase(
        "sparse-l1",
        "case F, sparse l1, ~50 non-zeros a row",
        CASE_F,
        2000,
        L1,
        (Promise(ROW, 1.0), Promise(RATIO, 5.0, 3.0)),
        _LASSOS,
        nonzeros=50,
    ),
    ModelCase(
        "dense",
        "case F, dense rows (perspective)",
        CASE_F,
        2000,
        DENSE,
        (
            Promise(ROW, 50.0, 50.0),
            Promise(FASTER, 20.0, None, "CLARABEL", "CVXPY + Clarabel"),
        ),
        ("THESIS", "SKLEARN", "CELER", "SKGLM", "CLARABEL", "SCS"),
    ),
    ModelCase(
        "mlp-1024",
        "MLP 1024, free, m = 10 000, kappa .99",
        MLP_1024,
        10_000,
        LASSO,
        (Promise(RATIO, 4.0, 2.5),),
        ("SKLEARN_GRAM", "CELER", "SKGLM"),
    ),
    ModelCase(
        "mlp-1024-layered",
        "MLP 1024, layered, m = 10 000, kappa .99",
        MLP_1024,
        10_000,
        replace(LASSO, structure="layered"),
        (Promise(RATIO, 4.0, 2.5),),
    ),
    ConvCase("conv-l1", "conv states, d = 26 000, l1", 2000, 45, 128, _CONV_PROMISES, 50),
    ConvCase("conv-kappa", "conv states, d = 26 000, kappa .99", 2000, 45, 128, _CONV_PROMISES),
)

# Cases that are no single model: how they run is in rows.py.
PATH, MEMORY, IMPORT = "path", "memory", "import"
NAMES = (*(case.name for case in CASES), PATH, MEMORY, IMPORT)


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the cases that ``names`` ask for, in the order of the table; ``conv`` is both of its cases."""
    if not names or "all" in names:
        return NAMES
    return tuple(name for name in NAMES if name in names or ("conv" in names and name.startswith("conv-")))
