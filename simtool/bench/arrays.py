"""States in memory, and the convex problems that sparsify would pose on them.

Groups, sets S, masks and objectives come from the stage's own plan, so a benchmark cannot solve another problem than
the product does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np

from simtool.bench.networks import NETWORK
from simtool.blocks import Block, lipschitz, to_json
from simtool.data import open_data
from simtool.design import SAMPLE_TILE, Design
from simtool.errors import InputError
from simtool.networks import NetworkSpec
from simtool.problem import RowSet
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions, objective_of, resolve
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.structure import FULL, RowGroup
from simtool.states import open_states

_log = logging.getLogger("simtool")
DATA = "fashion-mnist"
_FALLBACK_DATA, _FALLBACK_PIXELS = "digits", 64


@dataclass(frozen=True)
class Arrays:
    """What a states file holds, in memory and float32.

    ``design`` (n + p, m) is [X; U], ``targets`` (n + q, m) is [Z; Y]; ``origin`` says in words where they are from.
    """

    design: np.ndarray
    targets: np.ndarray
    blocks: tuple[Block, ...]
    output_parents: tuple[str, ...]
    has_bias: bool
    n: int
    origin: str

    @property
    def m(self) -> int:
        return self.design.shape[1]

    def first(self, samples: int) -> Arrays:
        """The first ``samples`` columns, contiguous."""
        if samples >= self.m:
            return self
        design, targets = (np.ascontiguousarray(a[:, :samples]) for a in (self.design, self.targets))
        return replace(self, design=design, targets=targets)


def read(path: Path, origin: str | None = None, samples: int | None = None) -> Arrays:
    """The states file at ``path``, or its first ``samples`` columns. Raises InputError or FormatError."""
    with open_states(path) as source:
        columns = slice(0, samples)
        return Arrays(
            design=np.concatenate([source.X[:, columns], source.U[:, columns]]),
            targets=np.concatenate([source.Z[:, columns], source.Y[:, columns]]),
            blocks=source.blocks,
            output_parents=tuple(source.header.output_parents),
            has_bias=source.header.has_bias,
            n=source.n,
            origin=origin or f"states of {path.name}",
        )


@dataclass(frozen=True)
class Source:
    """Where the states of a case come from: a states file, a network, or a random network of the case's sizes."""

    states: Path | None = None
    network: NetworkSpec | None = None
    data: str = DATA

    def extract_to(self, path: Path, sizes: str, samples: int, rescale: str = "none") -> str:
        """Write states of ``samples`` samples to ``path``; returns where they are from, in words."""
        data = self.available()
        available = open_data(data, "train").count
        count = min(samples, available)
        origin = f"{count} samples of {data}"
        if count < samples:
            origin += f" (all it has; the case asks for {samples})"
        if self.network is not None:
            network, origin = self.network, f"{Path(self.network.network).name} on {origin}"
        else:
            if data == _FALLBACK_DATA:
                sizes = "-".join([str(_FALLBACK_PIXELS), *sizes.split("-")[1:]])
            network = NetworkSpec(NETWORK, (f"sizes={sizes}",))
            origin = f"a {sizes} ReLU network with random He weights on {origin}"
        extract(network, data, samples=count, output=path, rescale=rescale)
        return origin

    def available(self) -> str:
        """The data to use: what was asked for, or digits where FashionMNIST is not here (said in the log)."""
        try:
            open_data(self.data, "train")
        except InputError as error:
            if self.data != DATA:
                raise
            _log.warning("%s is not here (%s); the digits of scikit-learn take its place", DATA, error)
            return _FALLBACK_DATA
        return self.data


@dataclass(frozen=True)
class Product:
    """Two products of the reference: G = W W^T where ``gram``, and B = W T^T; ``w`` (d, m), ``targets`` (r, m)."""

    w: np.ndarray
    targets: np.ndarray
    gram: bool


@dataclass(frozen=True)
class Task:
    """Rows to solve, and whether the stage would form the Gram matrix of their design first."""

    rows: RowSet
    forms_gram: bool


@dataclass(frozen=True)
class Workload:
    """Row problems in memory. ``fresh()`` builds them with nothing computed yet, so that every repetition pays for its
    own Gram matrix; ``products`` are the matrix products that the reference G + B consists of, empty
    where no Gram matrix is to be formed."""

    fresh: Callable[[], list[Task]]
    products: tuple[Product, ...]
    origin: str
    rows: int
    d: int
    m: int


def workload(arrays: Arrays, options: SparsifyOptions) -> Workload:
    """The rows that ``simtool sparsify`` would solve on ``arrays`` with ``options``."""
    plan = plan_of(arrays, options)
    groups = [group for group in plan.groups if group.features.size]
    products = [
        Product(
            _rows_of(arrays.design, g.features),
            arrays.targets[slice(*g.rows)],
            g.gram in plan.grams and g.gram != FULL,
        )
        for g in groups
    ]
    if FULL in plan.grams:
        shared = [g for g in groups if g.gram == FULL]
        whole = all(g.features.size == arrays.design.shape[0] for g in shared)
        if whole:  # one pass over W serves G and every B
            targets = arrays.targets[min(g.rows[0] for g in shared) : max(g.rows[1] for g in shared)]
            products = [Product(arrays.design, targets, True)]
        else:
            products.append(Product(arrays.design, arrays.targets[:0], True))
    return Workload(
        fresh=lambda: tasks(arrays, plan),
        products=tuple(products),
        origin=arrays.origin,
        rows=sum(g.rows[1] - g.rows[0] for g in groups),
        d=max(g.features.size for g in groups),
        m=arrays.m,
    )


def plan_of(arrays: Arrays, options: SparsifyOptions) -> Plan:
    """The stage's plan for these states, without a run folder."""
    largest = float(lipschitz(arrays.blocks).max(initial=1e-12))
    n = arrays.n
    return Plan(
        {
            "options": asdict(resolve(options, largest)),
            "sizes": {
                "n": n,
                "p": arrays.design.shape[0] - n,
                "q": arrays.targets.shape[0] - n,
                "m": arrays.m,
            },
            "blocks": to_json(arrays.blocks),
            "output_parents": list(arrays.output_parents),
            "has_bias": arrays.has_bias,
        }
    )


def tasks(arrays: Arrays, plan: Plan) -> list[Task]:
    """One per group of the plan; groups over all features share one design, and so one Gram matrix."""
    full = Design(arrays.design)
    return [
        Task(_row_set(arrays, plan, group, full), group.gram in plan.grams)
        for group in plan.groups
        if group.features.size
    ]


def _row_set(arrays: Arrays, plan: Plan, group: RowGroup, full: Design) -> RowSet:
    features, rows = group.features, np.arange(*group.rows)
    if features.size == full.d:
        design = full
    else:
        shared = group.gram == FULL and FULL in plan.grams
        design = Design(
            _rows_of(arrays.design, features), full.gram[np.ix_(features, features)] if shared else None
        )
    return RowSet(
        design=design,
        targets=arrays.targets[slice(*group.rows)],
        objective=objective_of(plan.options, group.is_output, plan.m),
        constrained=plan.bounded(group),
        allowed=plan.allowed(group, rows),
    )


def _rows_of(array: np.ndarray, features: np.ndarray) -> np.ndarray:
    """``array[features]``, as a view where the features are neighbours."""
    if features[-1] - features[0] + 1 == features.size:
        return array[features[0] : features[-1] + 1]
    return array[features]


def reference(products: tuple[Product, ...]) -> float:
    """CPU seconds of G + B by BLAS-3 in float64, in tiles of samples, conversions of float32 states included."""
    started = process_time()
    for product in products:
        d, m = product.w.shape
        gram, right = np.zeros((d, d)) if product.gram else None, np.zeros((d, product.targets.shape[0]))
        for start in range(0, m, SAMPLE_TILE):
            samples = slice(start, start + SAMPLE_TILE)
            tile = np.ascontiguousarray(product.w[:, samples], dtype=np.float64)
            if gram is not None:
                gram += tile @ tile.T
            right += tile @ np.ascontiguousarray(product.targets[:, samples], dtype=np.float64).T
    return process_time() - started
