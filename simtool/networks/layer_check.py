"""The safety net under the search for layers: their rows are changed, and the network must compute what the changed rows say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from simtool.errors import InputError
from simtool.layers import LayerSpec
from simtool.networks.layers import Found, Layer
from simtool.networks.layouts import Layout

log = logging.getLogger("simtool")
DIFFERS = "changed weights do not give what its rows say"
_TOLERANCE = 1e-4  # of the sum of the sizes of what is summed, which rounding grows with
_HALF_TOLERANCE = 2e-2  # for what the network computes with 16 bits
_POSITIONS = 16  # of a sample
# Random rows may make a network overflow that its own rows do not.
_AMOUNTS = (1.0, 0.1, 0.01)


class Changeable(Protocol):
    """Runs a reader's program, also with other weights."""

    def batch(self) -> np.ndarray: ...

    def changed(self, tensors: Mapping[str, np.ndarray]) -> Changeable: ...

    def run(self, batch: np.ndarray, names: list[str]) -> Mapping[str, np.ndarray]: ...


def confirmed(
    found: Found, layouts: Mapping[str, Layout | None], tensors: Mapping[str, np.ndarray], probe: Changeable
) -> Found:
    """``found`` without the layers whose rows, changed at random in all layers at once, are not what the network then computes.

    One forward pass of a few samples, more only where it overflows. A layer that no changed rows keep finite is taken as it was found.
    """
    fits: dict[int, bool] = {}
    for amount in _AMOUNTS:
        if len(fits) == len(found.layers):
            break
        own, rows = _moved(found.layers, tensors, amount)
        try:
            values = probe.changed(own).run(probe.batch(), list(found.tensors))
        except InputError as error:
            log.debug("with changed weights: %s", error)
            continue
        first = {name: _first(layouts[name], value) for name, value in values.items()}
        finite = {name for name, value in first.items() if np.isfinite(value).all()}
        for at, layer in enumerate(found.layers):
            used = {name for use in layer.uses for name in (use.source, use.result)}
            if at not in fits and used <= finite:
                fits[at] = _agrees(layer, rows[at], first)
    wrong = [layer for at, layer in enumerate(found.layers) if not fits.get(at, True)]
    taken = tuple(layer for at, layer in enumerate(found.layers) if fits.get(at, True))
    left = tuple((use.op, DIFFERS) for layer in wrong for use in layer.uses)
    return Found(taken, (*found.left, *left))


def _moved(
    layers: tuple[Layer, ...], tensors: Mapping[str, np.ndarray], amount: float
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The network's tensors with rows that differ by ``amount`` of their size, and these rows."""
    rng = np.random.default_rng(0)
    changed: dict[str, np.ndarray] = {}
    rows: list[np.ndarray] = []
    for layer in layers:
        spec = layer.spec
        old = layer.table
        # Weights that are not finite are refused where the network is used; here their layer is taken as it was found.
        with np.errstate(all="ignore"):
            scale = float(np.sqrt(np.mean(old**2))) or spec.fan_in**-0.5
            noise = rng.standard_normal(old.shape, dtype=np.float32)
            table = (old + amount * scale * noise) / np.sqrt(1.0 + amount**2)
        rows.append(table)
        changed |= spec.tensors(table, *_latest(spec, changed, tensors))
    return changed, rows


def _latest(
    spec: LayerSpec, changed: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The weight and the bias of a layer, with the rows of others that lie in the same tensors changed already."""
    weight = changed.get(spec.weight, tensors[spec.weight])
    return weight, None if spec.bias is None else changed.get(spec.bias, tensors[spec.bias])


def _first(layout: Layout | None, value: np.ndarray) -> np.ndarray:
    return value if layout is None else layout.first(value)


def _agrees(layer: Layer, table: np.ndarray, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the rows ``table`` times the layer's design are its recorded results, at some positions of every use."""
    starts = np.cumsum([0] + [layer.places(use) * use.factor for use in layer.uses])
    spread = np.linspace(0, starts[-1] - 1, _POSITIONS).astype(np.int64)
    chosen = np.unique(np.concatenate([starts[:-1], spread]))
    use = layer.uses[0]
    samples = len(tensors[use.source]) // use.factor
    design, targets = layer.columns(tensors, np.tile(chosen, (samples, 1)))
    short = min(tensors[name].dtype.itemsize for name in (use.source, use.result)) < 4
    allowed = _HALF_TOLERANCE if short else _TOLERANCE
    with np.errstate(all="ignore"):
        size = float(layer.spec.outputs(np.abs(table), np.abs(design)).max(initial=0.0))
        found = layer.spec.outputs(table, design)
        return bool(np.abs(found - targets).max(initial=0.0) <= allowed * size) or not np.isfinite(size)
