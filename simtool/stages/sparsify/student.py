"""The states that the sparse part of a network computes, for ``--sequential``: from rows that are finished, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy import sparse

from simtool.design import SAMPLE_TILE
from simtool.errors import InputError, OptionError
from simtool.stages.extract.layers import recorded_again, tensors_of
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.skips import skip_of

if TYPE_CHECKING:
    from simtool.networks import Network
    from simtool.stages.sparsify.plan import Plan
    from simtool.stages.sparsify.structure import RowGroup
    from simtool.states import States

_BATCH = 256


@dataclass(frozen=True)
class Fitted:
    """What the rows of a group are fitted on: ``design`` (d, m) float32, and their ``targets`` (r, m); None for the network's own."""

    design: np.ndarray
    targets: np.ndarray | None = None


class Student(Protocol):
    """What gives the designs of the groups of one depth after the other."""

    def designs(self, depth: int) -> dict[int, Fitted]:
        """What every group of ``depth`` is fitted on: the states of the finished rows of smaller depths."""
        ...


def require_network(source: States, network: Network | None) -> None:
    """Raise OptionError where the network is missing that layers are to be run in, InputError if it is another."""
    if network is None:
        raise OptionError(
            "--sequential needs the network itself to compute what its layers see behind sparse ones. Run the simtool sparsify command with "
            "--network NETWORK (and its --weights)."
        )
    if network.sha256 != source.header.network_sha256:
        raise InputError(
            f"the network given is not the one the states came from (fingerprint {network.sha256[:12]}, the states' network had "
            f"{source.header.network_sha256[:12]}). Pass that one, with its --weights."
        )


def student_of(folder: RunFolder, plan: Plan, source: States, network: Network | None) -> Student:
    """The student of a run with --sequential; ``network`` has passed :func:`require_network` where there are layers."""
    if not plan.layers:
        return BlockStudent(folder, plan, folder.map_array("design"))
    assert network is not None
    return LayerStudent(folder, plan, source, network)


def group_rows(folder: RunFolder, plan: Plan, group: int) -> sparse.csr_array:
    """The finished rows of ``group`` on its own features, (r, d)."""
    own = plan.groups[group]
    parts = [
        folder.load(folder.shard(index)) for index, shard in enumerate(plan.shards) if shard.group == group
    ]
    counts = np.concatenate([np.diff(part["indptr"]) for part in parts])
    columns = np.searchsorted(own.features, np.concatenate([part["indices"] for part in parts]))
    data = np.concatenate([part["data"] for part in parts])
    shape = (own.rows[1] - own.rows[0], own.features.size)
    return sparse.csr_array((data, columns, np.concatenate([[0], np.cumsum(counts)])), shape=shape)


class BlockStudent:
    """Rows of single states: x = phi(row of [X; U]), block by block; ``design`` is [X; U] of the network itself."""

    def __init__(self, folder: RunFolder, plan: Plan, design: np.ndarray) -> None:
        self._folder, self._plan = folder, plan
        self._design = np.array(design, dtype=np.float32)
        self._known = -1  # rows up to this depth have given their states

    def designs(self, depth: int) -> dict[int, Fitted]:
        """See :class:`Student`."""
        for before in range(self._known + 1, depth):
            for index in self._plan.at_depth(before):
                self._run(index)
            self._known = before
        return {
            index: Fitted(self._design[self._plan.groups[index].features])
            for index in self._plan.at_depth(depth)
        }

    def _run(self, index: int) -> None:
        group = self._plan.groups[index]
        if group.is_output:
            return
        rows = group_rows(self._folder, self._plan, index)
        states = slice(*group.rows)
        # Not on the samples of --anchor behind these: they are the same for every network.
        for start in range(0, self._plan.m, SAMPLE_TILE):
            samples = slice(start, min(start + SAMPLE_TILE, self._plan.m))
            z = rows @ self._design[group.features, samples].astype(np.float64)
            self._design[states, samples] = _activated(self._plan, group, z)


def _activated(plan: Plan, group: RowGroup, z: np.ndarray) -> np.ndarray:
    """phi(z) of the rows of ``group``, which are those of one block."""
    block = next(b for b in plan.blocks if b.offset <= group.rows[0] < b.offset + b.size)
    return np.asarray(block.activation(z))


class LayerStudent:
    """Rows of layers: the network itself runs, with the finished rows in the place of its own weights."""

    def __init__(self, folder: RunFolder, plan: Plan, source: States, network: Network) -> None:
        self._folder, self._plan, self._network = folder, plan, network
        inputs = np.asarray(source.U[: plan.p - int(plan.has_bias)], dtype=np.float32).T
        self._inputs = np.ascontiguousarray(inputs).reshape(plan.m, *network.input_shape)
        self._layers = recorded_again(network, self._inputs[:1], plan.layers, plan.m, source.header.seed)

    def designs(self, depth: int) -> dict[int, Fitted]:
        """See :class:`Student`."""
        plan = self._plan
        own = self._network.weights()
        changed: dict[str, np.ndarray] = {}
        for number, spec in enumerate(plan.layers):
            groups = [index for index, group in enumerate(plan.groups) if group.bank == number]
            if plan.depths[groups[0]] >= depth:
                continue
            table = np.vstack([group_rows(self._folder, plan, index).toarray() for index in groups])
            weight = changed.get(spec.weight, own[spec.weight])
            bias = None if spec.bias is None else changed.get(spec.bias, own[spec.bias])
            changed |= spec.tensors(table, weight, bias)
        numbers = sorted({plan.groups[index].bank for index in plan.at_depth(depth)})
        seen = dict(zip(numbers, self._columns(self._network.with_weights(changed), numbers), strict=True))
        return {
            index: self._fitted(plan.groups[index], *seen[plan.groups[index].bank])
            for index in plan.at_depth(depth)
        }

    def _fitted(self, group: RowGroup, design: np.ndarray, targets: np.ndarray | None) -> Fitted:
        """The part of a layer's columns that belongs to ``group``; behind them come the samples of --anchor, which hold for every network."""
        bank = self._plan.banks[group.bank]
        features, rows = group.features - bank.features[0], slice(*(row - bank.rows[0] for row in group.rows))
        columns = design.shape[1]
        own = np.hstack([design[features], self._folder.map_array(bank.design)[features, columns:]])
        if targets is None:
            return Fitted(own)
        return Fitted(own, np.hstack([targets[rows], self._folder.map_array(bank.targets)[rows, columns:]]))

    def _columns(
        self, student: Network, numbers: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The designs (features, columns) of the layers ``numbers`` in ``student``, and their targets where they differ."""
        layers = [self._layers[number] for number in numbers]
        skips = [skip_of(self._network.outline.program, entry.layer) for entry in layers]
        names = (*tensors_of([entry.layer for entry in layers]), *(skip.other for skip in skips if skip))
        own_names = [name for skip in skips if skip for name in skip.names]
        factors: list[np.ndarray | None] = [None] * len(layers)
        designs: list[list[np.ndarray]] = [[] for _ in layers]
        targets: list[list[np.ndarray]] = [[] for _ in layers]
        for start in range(0, len(self._inputs), _BATCH):
            batch = self._inputs[start : start + _BATCH]
            tensors = student.tensors(batch, dict.fromkeys(names))
            own = self._network.tensors(batch, dict.fromkeys(own_names)) if own_names else {}
            samples = np.arange(start, start + len(batch))
            for i, (entry, skip) in enumerate(zip(layers, skips, strict=True)):
                if skip is not None and start == 0:
                    factors[i] = skip.factors(own)
                found, known = dict(tensors), factors[i]
                if skip is not None and known is not None:
                    found[skip.result] = skip.corrected(own, tensors, known)
                design, target = entry.columns(found, samples)
                designs[i].append(design.astype(np.float32))
                targets[i].append(target.astype(np.float32))
        return [
            (np.concatenate(design, axis=1), None if known is None else np.concatenate(target, axis=1))
            for design, target, known in zip(designs, targets, factors, strict=True)
        ]
