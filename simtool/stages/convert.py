"""``convert``: the exact implicit form (A, B, C, D) of a network, nothing fitted (SIM section 2, IDL section 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from simtool import hdf5
from simtool.errors import InputError
from simtool.model import ImplicitModel
from simtool.networks.formable import require_formable
from simtool.networks.graph import Graph
from simtool.networks.loading import load_network
from simtool.networks.network import NetworkSpec


def implicit_form(graph: Graph, fingerprints: dict[str, str] | None = None) -> ImplicitModel:
    """The implicit model with the graph's own weights, structure ``exact``, in float64.

    Its outputs equal the network's run in float64 up to rounding.
    """
    if not graph.nodes:
        raise InputError(
            "the network has no activation between its input and its output, so it has no states: it is linear already. "
            "Use a network with at least one hidden layer."
        )
    require_formable(graph, "the network")
    matrices = graph.matrices()
    return ImplicitModel(
        A=matrices.A,
        B=matrices.B,
        C=matrices.C,
        D=matrices.D,
        blocks=graph.blocks,
        output_parents=graph.output_parents,
        output_map=graph.output_map,
        has_bias=True,
        input_shape=graph.input_shape,
        fingerprints=dict(fingerprints or {}),
        baseline_nnz=graph.baseline_nnz,
        baseline_bytes=4 * graph.baseline_parameters,
        structure="exact",
    )


def convert(
    network: NetworkSpec | str,
    output: str | Path,
    *,
    sample_shape: tuple[int, ...] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the exact implicit form of ``network`` to ``output`` (model.h5) and return what was done.

    Raises InputError or UnsupportedOperator for the network, OutputError for the path.
    """
    started = perf_counter()
    target = Path(output)
    spec = NetworkSpec(network) if isinstance(network, str) else network
    hdf5.writable_target(target, overwrite, kind="model", inputs=spec.files)
    loaded = load_network(spec, sample_shape)
    model = implicit_form(loaded.graph, {"network": loaded.sha256})
    model = replace(model, scale=model.rescaling(), header_extra={"network": loaded.description["format"]})
    model.save(target, overwrite)
    verdict = model.well_posedness()
    return {
        "model": str(target),
        "states": model.n,
        "inputs": model.p,
        "outputs": model.q,
        "nnz": model.nnz,
        "baseline_nnz": model.baseline_nnz,
        "sparsity": model.sparsity if model.baseline_nnz else None,
        "norm_a_inf": model.norm_a_inf,
        "norm_a_inf_raw": model.norm_a_inf_raw,
        "well_posed": verdict.well_posed,
        "well_posed_by": verdict.by,
        "blocks": [block.name for block in model.blocks],
        "bytes": target.stat().st_size,
        "seconds": perf_counter() - started,
    }
