"""Sparse rows back into the network they came from: its own tensors, of the same names, shapes and types, with zeros in them.

Rows of layers are put back as they are. Rows of an implicit model are put back where a block of it is one linear operator of the network
with nothing between: ``layered`` rows of dense layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import sparse

from simtool.blocks import INPUT
from simtool.errors import InputError
from simtool.model import ImplicitModel, SparseLayers, load_layers, load_model
from simtool.networks import Network
from simtool.networks.graph import AffineForm
from simtool.networks.layers import Layer


def load_sparse(model: str | Path) -> SparseLayers | ImplicitModel:
    """What ``model`` holds to be put back: its layers, or its rows. Raises what loading does."""
    layers = load_layers(model)
    return load_model(model) if layers is None else layers


def tensors_with(model: SparseLayers | ImplicitModel, network: Network) -> dict[str, np.ndarray]:
    """The tensors of ``network`` that ``model`` replaces. Raises InputError where it is no model of that network."""
    if isinstance(model, SparseLayers):
        return model.tensors(network.weights())
    if model.layers is not None:
        return model.layers.tensors(network.weights())
    if model.structure != "layered":
        raise InputError(
            f"the rows of a model of structure {model.structure} use states that the network's layers do not read, so they have no place in "
            "it. Make the model with --structure layered, or export it without --network."
        )
    return _from_rows(model, network)


def _from_rows(model: ImplicitModel, network: Network) -> dict[str, np.ndarray]:
    graph = network.graph
    blocks = {block.name: block for block in model.blocks}
    names = [node.name for node in graph.nodes]
    if set(blocks) != set(names) or model.q != graph.output_size or model.p != graph.input_size + 1:
        raise InputError(
            f"the network given has the blocks {', '.join(names)} and the model {', '.join(blocks)}: it is no model of this network. Pass the "
            "network that the states were extracted from."
        )
    other = [node.name for node in graph.nodes if node.size != blocks[node.name].size]
    if other:
        raise InputError(
            f"the blocks {', '.join(other)} of the model have other sizes than the network's: it is no model of this network, or states were "
            "removed from it (simtool compact). Pass the model as it was before, or export it without --network."
        )
    scaling = np.ones(model.n) if model.scaling is None else model.scaling
    by_result = {layer.uses[0].result: layer for layer in network.outline.layers}
    changed: dict[str, np.ndarray] = {}
    own = network.weights()
    places = [(node.z_tensor, node.form, blocks[node.name].rows) for node in graph.nodes]
    for tensor, form, rows in [*places, (graph.output_tensor, graph.output, None)]:
        layer = by_result.get(_computed(network, tensor, by_result))
        if layer is None:
            _require_nothing_fitted(form, tensor)
            continue
        matrix = _weights(model, layer, form, rows, scaling)
        bias = None if layer.spec.bias is None else changed.get(layer.spec.bias, own[layer.spec.bias])
        changed |= layer.spec.tensors(matrix, changed.get(layer.spec.weight, own[layer.spec.weight]), bias)
    return changed


def _computed(network: Network, tensor: str, known: Mapping[str, Layer]) -> str:
    """``tensor``, or the one before it that only changes its shape."""
    producers = {op.output: op for op in network.outline.program.ops}
    while tensor not in known and tensor in producers and producers[tensor].kind == "pass":
        tensor = producers[tensor].inputs[0]
    return tensor


def _weights(
    model: ImplicitModel, layer: Layer, form: AffineForm, rows: slice | None, scaling: np.ndarray
) -> np.ndarray:
    """The layer's rows (rows, features) in the network's units, read from the block's rows of the model."""
    spec = layer.spec
    whole = len(form.terms) == 1 and len(layer.uses) == 1 and spec.kind == "linear"
    source, operator = form.terms[0]
    if not whole or not np.array_equal(operator.matrix().toarray(), layer.matrix[:, : spec.fan_in]):
        raise InputError(
            f"the rows of the layer {spec.name} are those of an expanded, merged or reordered operator, which has no place in the network's "
            "own weights. Extract the states again: layers whose weights are shared get rows of their own."
        )
    states, inputs = (model.A, model.B) if rows is not None else (model.C, model.D)
    span = rows if rows is not None else slice(0, model.q)
    if source == INPUT:
        table = inputs[span, : spec.fan_in].toarray()
    else:
        block = next(block for block in model.blocks if block.name == source)
        table = states[span, block.rows].toarray() * scaling[block.rows]
    used = sparse.hstack([states[span], inputs[span]]).count_nonzero()
    shift = inputs[span].toarray()[:, -1] if model.has_bias else np.zeros(spec.rows)
    if used != np.count_nonzero(table) + np.count_nonzero(shift) or (shift.any() and not spec.has_bias):
        raise InputError(
            f"rows of the layer {spec.name} use values that the layer does not read in the network. Make the model with --structure layered "
            "on states of this network."
        )
    own = np.ones(spec.rows) if rows is None else scaling[rows]
    found = np.hstack([table, shift[:, None]]) if spec.has_bias else table
    return np.asarray(found / own[:, None])


def _require_nothing_fitted(form: AffineForm, tensor: str) -> None:
    raise InputError(
        f"{tensor or 'a block'} is no linear layer of the network by itself ({len(form.terms)} operators meet there), so its fitted rows have "
        "no place in the network's weights. Networks with shared weights, skips or batch norms keep rows of layers: extract their states again."
    )


def sparse_network(
    model: str | Path, network: Network
) -> tuple[SparseLayers | ImplicitModel, Network, str | None]:
    """What ``model`` holds, ``network`` with it in the place of its own weights, and a warning if that may be another network."""
    found = load_sparse(model)
    return found, network.with_weights(tensors_with(found, network)), require_same(found, network)


def require_same(model: SparseLayers | ImplicitModel, network: Network) -> str | None:
    """Raise InputError where ``network`` cannot be the one that ``model`` came from; a warning where that cannot be told.

    What has no rows (batch norms, embeddings) is taken from ``network``, so another one's would be mixed in. The same weights have
    other fingerprints in other formats.
    """
    known, kind = model.fingerprints.get("network"), model.header_extra.get("network_format")
    if not known or known == network.sha256:
        return None
    name, own = network.description["network"], network.description["format"]
    if kind == own:
        raise InputError(
            f"{name} is not the network that the model came from: its weights or operators differ (fingerprint {network.sha256[:12]}, the "
            f"model's network had {known[:12]}). Pass that network, with its --weights."
        )
    return (
        f"{name} has another fingerprint than the network that the model came from, as the same weights in another format do; what has no "
        "rows in the model (batch norms, embeddings) is taken from it. Pass the network given to extract to be sure."
    )
