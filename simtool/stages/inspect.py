"""What a network, a states file, a run or a model holds, as plain dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simtool import hdf5
from simtool.blocks import Block
from simtool.errors import InputError, NoImplicitForm, OptionError
from simtool.model import ImplicitModel, load_layers, load_model
from simtool.networks import NetworkSpec, load_network
from simtool.networks.layers import Layer
from simtool.networks.outline import Outline
from simtool.stages import replay as replaying
from simtool.stages.inspect_layers import certificate, layer_facts, layer_row, layer_table
from simtool.stages.sparsify import elimination
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan
from simtool.states import open_states


def inspect(
    path: str | Path,
    *,
    row: int | None = None,
    network: NetworkSpec | None = None,
    dump: str | Path | None = None,
    states: str | Path | None = None,
    solver: str | None = None,
) -> dict[str, Any]:
    """What is in ``path``: ``kind`` (network, states, run, model or row-dump) and its facts.

    ``row`` asks for one row of a run or model: its coefficients and its certificate; ``dump`` writes that row's problem to
    a file, from the ``states`` file the run was made from. Such a file is solved again, with ``solver`` or the run's own,
    and judged. ``network`` says how to load ``path`` where it is a network.

    Raises InputError, FormatError, OptionError, OutputError or SolverError.
    """
    place = Path(path)
    _check_dump_options(place, row, dump, states)
    if place.is_file() and replaying.is_dump(place):
        return replaying.replay(place, solver)
    if solver is not None:
        raise OptionError(f"--solver solves a row dumped by inspect --dump again; {path} is no such file.")
    if place.is_dir():
        found = _run(RunFolder(place), row)
        if dump is not None and row is not None and states is not None:
            found["dumped"] = str(replaying.dump_row(place, row, dump, states=states))
        return found
    kind = hdf5.kind_of(place) if place.is_file() else None
    if kind == "model":
        return {"kind": "model", **_model_file(place)} if row is None else _row_of(place, row)
    if row is not None:
        raise OptionError(f"--row needs a run folder or a model, {path} is neither.")
    if kind == "states":
        return _states(place)
    return _network(network or NetworkSpec(str(path)))


def _check_dump_options(
    place: Path, row: int | None, dump: str | Path | None, states: str | Path | None
) -> None:
    if dump is None:
        if states is not None:
            raise OptionError(f"--states {states} belongs to --dump row.npz. Add it, or leave --states out.")
        return
    if not place.is_dir():
        raise OptionError(f"--dump writes a row of a run folder; {place} is not a folder.")
    if row is None:
        raise OptionError(f"--dump {dump} needs --row i, the row to write.")
    if states is None:
        raise OptionError(
            f"--dump {dump} needs --states FILE, the states file the run was made from: a finished run keeps no copy."
        )


def _blocks(blocks: tuple[Block, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": block.name,
            "activation": block.activation.spec,
            "lipschitz": block.activation.lipschitz,
            "size": block.size,
            "shape": list(block.shape),
            "parents": list(block.parents),
        }
        for block in blocks
    ]


def _network(spec: NetworkSpec) -> dict[str, Any]:
    network = load_network(spec)
    found = network.outline
    graph = found.whole
    return {
        "kind": "network",
        "input_shape": list(network.input_shape),
        "graph": graph is not None,
        "graph_reason": None if found.reason is None else str(found.reason),
        "states": None if graph is None else graph.states,
        "outputs": found.output_size,
        "output_map": found.output_map,
        "parameters": found.baseline_parameters,
        "parameters_in_layers": sum(
            layer.weight_entries + (layer.spec.rows if layer.spec.has_bias else 0) for layer in found.layers
        ),
        "baseline_nnz": found.baseline_nnz,
        "blocks": [] if graph is None else _blocks(graph.blocks),
        "output_parents": [] if graph is None else list(graph.output_parents),
        "layers": [_layer(layer) for layer in found.layers],
        "operators": _operators(found),
        "refused": [] if found.reason is None else list(found.reason.refused),
        "sha256": network.sha256,
    }


def _layer(layer: Layer) -> dict[str, Any]:
    spec = layer.spec
    return {
        "name": spec.name,
        "kind": spec.kind,
        "weight": spec.weight,
        "bias": spec.bias,
        "rows": spec.rows,
        "fan_in": spec.fan_in,
        "groups": spec.groups,
        "positions": layer.positions(),
        "uses": len(layer.uses),
    }


def _operators(found: Outline) -> list[dict[str, Any]]:
    """Every operator with its role and, where it is or belongs to a layer, what of it becomes rows; else why not."""
    layers = {id(use.op): (layer, use) for layer in found.layers for use in layer.uses}
    left = {id(op): why for op, why in found.found.left}
    ops = {(op.operator, op.name): op for op in found.program.ops}
    table = []
    for entry in found.operators:
        op = ops.get((entry.operator, entry.node))
        role, detail = entry.role, ""
        if op is not None and id(op) in layers:
            layer, use = layers[id(op)]
            places = layer.places(use) * use.factor
            detail = f"{layer.spec.rows} rows x {layer.spec.fan_in} features at {places} position(s): {layer.spec.name}"
        elif op is not None and id(op) in left:
            role, detail = ("left" if found.whole is None else role), left[id(op)]
        elif op is not None and found.whole is None:
            detail = str(op.attributes.get("why", ""))
        table.append({"operator": entry.operator, "node": entry.node, "role": role, "detail": detail})
    return table


def _states(path: Path) -> dict[str, Any]:
    with open_states(path) as states:
        header = states.header
        return {
            "kind": "states",
            "samples": header.samples,
            "inputs": header.inputs,
            "states": header.states,
            "outputs": header.outputs,
            "input_shape": list(header.input_shape),
            "output_map": header.output_map,
            "labels": states.labels is not None,
            "rescale": header.rescale,
            "seed": header.seed,
            "baseline_nnz": header.baseline_nnz,
            "baseline_bytes": header.baseline_bytes,
            "max_reconstruction_error": header.max_reconstruction_error,
            "input_range": list(header.input_range),
            "blocks": _blocks(header.blocks),
            "output_parents": list(header.output_parents),
            "network": header.network,
            "data": header.data,
            "layers": layer_table([(layer.spec, None) for layer in states.layers]),
            "bytes": path.stat().st_size,
        }


def _model_file(path: Path) -> dict[str, Any]:
    """The implicit model in ``path``, or the layers where those are all there is."""
    try:
        return _model(load_model(path))
    except NoImplicitForm:
        layers = load_layers(path)
        assert layers is not None
        return layer_facts(layers)


def _row_of(path: Path, row: int) -> dict[str, Any]:
    layers = load_layers(path)
    return _row(load_model(path), row) if layers is None else layer_row(layers, row)


def _model(model: ImplicitModel) -> dict[str, Any]:
    verdict = model.well_posedness()
    table = model.proofs
    return {
        **({} if model.layers is None else layer_facts(model.layers)),
        "states": model.n,
        "inputs": model.p,
        "outputs": model.q,
        "structure": model.structure,
        "nnz": model.parameters,
        "nnz_by_matrix": {name: int(getattr(model, name).nnz) for name in "ABCD"},
        "baseline_nnz": model.baseline_nnz,
        "sparsity": model.sparsity if model.baseline_nnz else None,
        "well_posed": verdict.well_posed,
        "well_posed_by": verdict.by,
        "explanation": verdict.explanation,
        "norm_a_inf": model.norm_a_inf,
        "norm_a_inf_raw": model.norm_a_inf_raw,
        "rows": model.n + model.q if table is None else len(table),
        "certified": None if table is None else int(table.certified.sum()),
        "statuses": None if table is None else table.count_by_status(),
        "max_relative_gap": None if table is None else float(table.relative_gap.max(initial=0.0)),
        "output_map": model.output_map,
        "input_shape": list(model.input_shape),
        "blocks": _blocks(model.blocks),
        "fingerprints": model.fingerprints,
        "made_with": model.header_extra.get("options"),
    }


def _run(folder: RunFolder, row: int | None) -> dict[str, Any]:
    spec = folder.read_spec()
    plan = Plan(spec)
    done = sum(folder.holds(folder.shard(index)) for index in range(len(plan.shards)))
    if row is not None:
        if not folder.model.exists():
            raise InputError(
                f"{folder.path} is not finished ({done} of {len(plan.shards)} shards), so it has no rows to show. "
                "Run the same simtool sparsify command again to finish it."
            )
        return _row_of(folder.model, row)
    timing = folder.read_timing()
    return {
        "kind": "run",
        "shards": len(plan.shards),
        "done": done,
        "finished": done == len(plan.shards) and folder.model.exists(),
        "options": spec["options"],
        "sizes": spec["sizes"],
        "environment": spec["environment"],
        "result": None if timing is None else timing.get("result"),
        "elimination": elimination.read(folder),
        "model": _model_file(folder.model) if folder.model.exists() else None,
    }


def _row(model: ImplicitModel, row: int) -> dict[str, Any]:
    """One row of M with its proof."""
    indices, values = model.row(row)
    owner = next(
        (
            f"state {row - b.offset} of block {b.name}"
            for b in model.blocks
            if b.offset <= row < b.offset + b.size
        ),
        f"output {row - model.n}",
    )
    return {
        "kind": "row",
        "row": row,
        "owner": owner,
        "nnz": int(indices.size),
        "l1_norm": float(np.abs(values).sum()),
        "l1_norm_a": float(np.abs(values[indices < model.n]).sum()),
        "indices": indices.tolist(),
        "values": values.tolist(),
        "certificate": certificate(model.certificates, row),
    }
