"""The models whose inference is measured: a network's exact implicit form with most of its weights taken out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from simtool.bench.networks import NETWORK
from simtool.errors import InputError
from simtool.model import ImplicitModel, load_model, model_path
from simtool.networks import NetworkSpec
from simtool.networks.loading import load_network
from simtool.stages.convert import implicit_form

PATTERNS = ("magnitude", "random")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to run, without an output map; ``sparsity`` of its weights, biases not counted."""

    title: str
    model: ImplicitModel
    sparsity: float


def of_network(
    network: NetworkSpec | None, sizes: str, sparsities: tuple[float, ...], pattern: str, seed: int
) -> list[Subject]:
    """The network (or one of ``sizes`` with random weights) at each of ``sparsities``, layer by layer."""
    spec = network or NetworkSpec(NETWORK, (f"sizes={sizes}", f"seed={seed}"), input_shape=_shape(sizes))
    dense = implicit_form(load_network(spec).graph)
    title = sizes if network is None else Path(network.network).name
    return [subject(f"{title}, {pattern} {s:.0%}", pruned(dense, s, pattern, seed)) for s in sparsities]


def of_model(path: Path) -> Subject:
    """The model stored at ``path``. Raises InputError where its states depend on each other in cycles."""
    model = load_model(path)
    if any(component.cyclic for component in model.components):
        raise InputError(
            f"the states of {model_path(path)} depend on each other in cycles: each prediction is a fixed-point iteration, "
            "which dense layers cannot run beside ours. Benchmark a layered or dag model."
        )
    return subject(path.name, model)


def subject(title: str, model: ImplicitModel) -> Subject:
    """``model`` without its output map, which every contender would run alike."""
    return Subject(title, replace(model, output_map=None, certificates=None), _sparsity(model))


def pruned(model: ImplicitModel, sparsity: float, pattern: str, seed: int = 0) -> ImplicitModel:
    """``model`` with the fraction ``sparsity`` of each block's and of the outputs' weights set to 0; biases stay.

    ``magnitude`` takes the smallest, ``random`` any.
    """
    rng = np.random.default_rng(seed)
    inputs = model.p - int(model.has_bias)
    owner = np.repeat(np.arange(len(model.blocks)), [block.size for block in model.blocks])
    found = {}
    for left, right, group in (("A", "B", owner), ("C", "D", np.zeros(model.q, dtype=np.int64))):
        whole = sparse.coo_array(sparse.hstack([getattr(model, left), getattr(model, right)]))
        bias = whole.col >= model.n + inputs
        score = np.abs(whole.data) if pattern == "magnitude" else rng.random(whole.nnz)
        keep = bias.copy()
        for name in np.unique(group):
            mine = np.flatnonzero(~bias & (group[whole.row] == name))
            count = round((1.0 - sparsity) * mine.size)
            keep[mine[np.argsort(-score[mine], kind="stable")[:count]]] = True
        kept = sparse.csr_array((whole.data[keep], (whole.row[keep], whole.col[keep])), shape=whole.shape)
        found[left], found[right] = kept[:, : model.n], kept[:, model.n :]
    return replace(model, **found, scale=None)


def _sparsity(model: ImplicitModel) -> float:
    """1 - weights / weights of dense layers over the same blocks, biases not counted."""
    from simtool.inference.schedule import schedule

    made = schedule(model)
    entries = sum(step.entries for step in made.steps)
    return 1.0 - made.matrix.nnz / entries if entries else 0.0


def _shape(sizes: str) -> tuple[int, ...]:
    try:
        return (int(sizes.split("-")[0]),)
    except ValueError:
        raise InputError(f"--sizes must be widths such as 784-256-128-10, got {sizes!r}.") from None
