"""Which features a row may use, and how rows are gathered into groups and shards.

Features are the rows of [X; U]: state i is feature i, input j is feature n + j, the bias the last. Everything
here is a function of the blocks and of n, p, q, never of the machine: the shards of a run are the same anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simtool.blocks import BIAS, INPUT, Block
from simtool.layers import LayerSpec

# Rows of a shard, by the numbers in its design matrix: a shard reads and converts W a few times, which a row's own
# work must outweigh, and many shards balance the workers best.
SHARD_ROWS = ((4_000_000, 32), (16_000_000, 64), (64_000_000, 128))
SHARD_ROWS_MOST = 256
GRAM_TILE = 512
FULL = "full"


@dataclass(frozen=True)
class Bank:
    """A design matrix and its targets, arrays in the run folder: features and rows as they count in the run, and samples."""

    design: str
    targets: str
    features: tuple[int, int]
    rows: tuple[int, int]
    samples: int


@dataclass(frozen=True)
class RowGroup:
    """Rows that share a design: ``rows`` count into [Z; Y], ``features`` (sorted) into [X; U].

    ``gram`` names the Gram matrix the group reads: its own, or the one over all features (FULL). ``bank`` counts into the
    run's banks; there is one, of [X; U] and [Z; Y], unless rows are those of layers.
    """

    name: str
    rows: tuple[int, int]
    features: np.ndarray
    is_output: bool
    excludes_itself: bool
    gram: str
    bank: int = 0


@dataclass(frozen=True)
class Shard:
    """Rows ``start : stop`` of [Z; Y], all of one group."""

    group: int
    start: int
    stop: int


def row_groups(
    structure: str, blocks: Sequence[Block], output_parents: Sequence[str], p: int, q: int, has_bias: bool
) -> tuple[RowGroup, ...]:
    """The groups of a model with these blocks, in the order of their rows."""
    n = sum(block.size for block in blocks)
    everything = np.arange(n + p)
    if structure == "free":
        groups = [RowGroup("states", (0, n), everything, False, True, FULL)] if n else []
        return (*groups, RowGroup("outputs", (n, n + q), everything, True, False, FULL))
    if structure == "dag":
        # Later layers are stacked first, so the earlier ones are what follows the block.
        groups = [
            RowGroup(
                b.name,
                (b.offset, b.offset + b.size),
                np.arange(b.offset + b.size, n + p),
                False,
                False,
                FULL,
            )
            for b in blocks
        ]
        return (*groups, RowGroup("outputs", (n, n + q), everything, True, False, FULL))
    places = {b.name: np.arange(b.offset, b.offset + b.size) for b in blocks}
    places[INPUT] = np.arange(n, n + p - (1 if has_bias else 0))
    places[BIAS] = np.arange(n + p - 1, n + p) if has_bias else np.arange(0)

    def features(parents: Sequence[str]) -> np.ndarray:
        return np.unique(np.concatenate([np.arange(0), *(places[name] for name in parents)]))

    groups = []
    for b in blocks:
        allowed = features(b.parents)
        if b.name not in b.parents:
            groups.append(RowGroup(b.name, (b.offset, b.offset + b.size), allowed, False, False, b.name))
            continue
        # The block of a cyclic teacher feeds itself, but no state may be copied from itself: each row has a design
        # of its own, without it.
        groups += [
            RowGroup(f"{b.name}[{i - b.offset}]", (i, i + 1), allowed[allowed != i], False, False, FULL)
            for i in range(b.offset, b.offset + b.size)
        ]
    return (*groups, RowGroup("outputs", (n, n + q), features(output_parents), True, False, "outputs"))


def layer_groups(
    layers: Sequence[LayerSpec], anchored: bool
) -> tuple[tuple[RowGroup, ...], tuple[Bank, ...]]:
    """The groups and banks of rows whose weights are shared over positions: one bank a layer, one group a group of channels.

    ``anchored`` designs have one more sample for each coefficient of a row.
    """
    groups, banks = [], []
    row = feature = 0
    for index, layer in enumerate(layers):
        ends = feature + layer.features, row + layer.rows
        banks.append(
            Bank(
                f"design-{index}",
                f"targets-{index}",
                (feature, ends[0]),
                (row, ends[1]),
                layer.columns + anchored * layer.features,
            )
        )
        for group in range(layer.groups):
            start = row + group * layer.group_rows
            name = layer.name if layer.groups == 1 else f"{layer.name}[{group}]"
            features = feature + layer.group_features(group)
            rows = (start, start + layer.group_rows)
            groups.append(RowGroup(name, rows, features, layer.is_output, False, name, index))
        feature, row = ends
    return tuple(groups), tuple(banks)


def shard_rows(features: int, samples: int) -> int:
    """How many rows a shard holds whose design is ``features`` x ``samples``."""
    numbers = features * samples
    return next((rows for limit, rows in SHARD_ROWS if numbers <= limit), SHARD_ROWS_MOST)


def shards(groups: Sequence[RowGroup], samples: Sequence[int]) -> tuple[Shard, ...]:
    """Every row once, in pieces of :func:`shard_rows`; ``samples`` are those of each bank."""
    pieces = []
    for index, group in enumerate(groups):
        size = shard_rows(group.features.size, samples[group.bank])
        pieces += [
            Shard(index, start, min(start + size, group.rows[1])) for start in range(*group.rows, size)
        ]
    return tuple(pieces)


def gram_features(groups: Sequence[RowGroup], n_features: int) -> dict[str, np.ndarray]:
    """The features of every Gram matrix that the groups name."""
    return {group.gram: np.arange(n_features) if group.gram == FULL else group.features for group in groups}


def gram_tiles(sizes: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    """The tiles (name, row start, column start) of the upper triangles of Gram matrices of these sizes."""
    return tuple(
        (name, i, j)
        for name in sorted(sizes)
        for i in range(0, sizes[name], GRAM_TILE)
        for j in range(i, sizes[name], GRAM_TILE)
    )
