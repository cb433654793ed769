"""Random implicit models of the kinds the tests need."""

from __future__ import annotations

import numpy as np

from simtool import activations
from simtool.blocks import Block
from simtool.model import CertificateTable, ImplicitModel


def free_model(
    n: int = 20,
    p: int = 5,
    q: int = 3,
    activation: str = "relu",
    norm: float = 0.9,
    diagonal: float | None = None,
    density: float = 0.4,
    seed: int = 0,
) -> ImplicitModel:
    """One block whose rows all have the l1 norm ``norm``; ``diagonal`` then replaces the diagonal."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) * (rng.random((n, n)) < density)
    a[np.arange(n), (np.arange(n) + 1) % n] += 0.1  # irreducible
    np.fill_diagonal(a, 0.0)
    a *= norm / np.abs(a).sum(axis=1, keepdims=True)
    if diagonal is not None:
        np.fill_diagonal(a, diagonal)
    return ImplicitModel(
        A=a,
        B=rng.normal(size=(n, p)),
        C=rng.normal(size=(q, n)),
        D=rng.normal(size=(q, p)),
        blocks=(Block("h", activations.parse(activation), 0, n, (n,), ("input", "bias")),),
        output_parents=("h", "input", "bias"),
        structure="free",
        baseline_nnz=n * (n + p) + q * (n + p),
        baseline_bytes=4 * (n * (n + p) + q * (n + p)),
    )


def layered_model(
    inputs: int = 6,
    hidden: tuple[int, ...] = (7, 5, 4),
    q: int = 3,
    activation: str = "relu",
    weight: float = 1.0,
    seed: int = 0,
    output_map: str | None = None,
    certified: bool = True,
) -> ImplicitModel:
    """A layered model; ``hidden`` in execution order, blocks named h1, h2, ... and stacked last first."""
    rng = np.random.default_rng(seed)
    n, p = sum(hidden), inputs + 1
    a, b = np.zeros((n, n)), np.zeros((n, p))
    blocks: list[Block] = []
    offset = 0
    previous = {}
    for index in range(len(hidden), 0, -1):
        size = hidden[index - 1]
        parent = f"h{index - 1}" if index > 1 else "input"
        blocks.append(
            Block(f"h{index}", activations.parse(activation), offset, size, (size,), (parent, "bias"))
        )
        previous[index] = slice(offset, offset + size)
        offset += size
    for index, size in enumerate(hidden, start=1):
        if index == 1:
            b[previous[1], :inputs] = weight * rng.normal(size=(size, inputs)) / np.sqrt(inputs)
        else:
            fan_in = hidden[index - 2]
            a[previous[index], previous[index - 1]] = (
                weight * rng.normal(size=(size, fan_in)) / np.sqrt(fan_in)
            )
    b[:, -1] = 0.1 * rng.normal(size=n)
    c, d = np.zeros((q, n)), np.zeros((q, p))
    c[:, previous[len(hidden)]] = rng.normal(size=(q, hidden[-1]))
    d[:, -1] = 0.1 * rng.normal(size=q)
    rows = n + q
    gap = 10.0 ** rng.uniform(-12, -7, rows)
    gap[0] = 0.0
    table = CertificateTable(
        certified=np.ones(rows, dtype=bool),
        kind=np.arange(rows) % 2,
        primal=np.ones(rows),
        dual=1.0 - gap,
        relative_gap=gap,
        kappa_slack=np.full(rows, np.inf),
        multiplier=np.zeros(rows),
        projection_error=np.zeros(rows),
    )
    return ImplicitModel(
        A=a,
        B=b,
        C=c,
        D=d,
        blocks=tuple(blocks),
        output_parents=(f"h{len(hidden)}", "bias"),
        output_map=output_map,
        structure="layered",
        certificates=table if certified else None,
        fingerprints={"network": "ab" * 32},
        baseline_nnz=1000,
        baseline_bytes=4000,
        header_extra={"options": {"objective": "lasso", "tol": 1e-6}, "input_range": [0.0, 1.0]},
    )


def random_inputs(model: ImplicitModel, m: int, seed: int = 0) -> np.ndarray:
    """U (p, m) with the bias row."""
    rng = np.random.default_rng(seed)
    return model.states_inputs(rng.normal(size=(m, *model.input_shape)))
