"""What the layers of a states or model file hold, and one row of them, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simtool.layers import LayerSpec
from simtool.model import KINDS, CertificateTable, SparseLayers


def layer_table(layers: Sequence[tuple[LayerSpec, int | None]]) -> list[dict[str, Any]]:
    """One entry a layer; ``layers`` are specs with the non-zeros of their rows, where they have some."""
    return [
        {
            "name": spec.name,
            "kind": spec.kind,
            "weight": spec.weight,
            "bias": spec.bias,
            "rows": spec.rows,
            "groups": spec.groups,
            "features": spec.fan_in + int(spec.has_bias),
            "columns": spec.columns,
            **({} if nnz is None else {"nnz": nnz}),
        }
        for spec, nnz in layers
    ]


def layer_facts(layers: SparseLayers) -> dict[str, Any]:
    """What there is to say of sparse layers."""
    table = layers.certificates
    counts = [int(matrix.nnz) for matrix in layers.matrices]
    return {
        "rows": layers.rows,
        "outputs": layers.outputs,
        "nnz": layers.nnz,
        "carried_nnz": layers.carried_nnz,
        "baseline_nnz": layers.baseline_nnz,
        "sparsity": layers.sparsity if layers.baseline_nnz else None,
        "certified": None if table is None else int(table.certified.sum()),
        "statuses": None if table is None else table.count_by_status(),
        "max_relative_gap": None if table is None else table.max_relative_gap,
        "output_map": layers.output_map,
        "input_shape": list(layers.input_shape),
        "layers": layer_table(list(zip(layers.layers, counts, strict=True))),
        "fingerprints": layers.fingerprints,
        "made_with": layers.header_extra.get("options"),
    }


def layer_row(layers: SparseLayers, row: int) -> dict[str, Any]:
    """One row, counted over all layers, with its proof."""
    indices, values = layers.row(row)
    layer, inner = layers.place(row)
    spec = layers.layers[layer]
    is_bias = (indices == spec.features - 1) & spec.has_bias
    return {
        "kind": "row",
        "row": row,
        "owner": f"channel {inner} of layer {spec.name}",
        "nnz": int(indices.size),
        "l1_norm": float(np.abs(values).sum()),
        "l1_norm_a": 0.0 if spec.reads_input else float(np.abs(values[~is_bias]).sum()),
        "indices": indices.tolist(),
        "values": values.tolist(),
        "certificate": certificate(layers.certificates, row),
    }


def certificate(table: CertificateTable | None, row: int) -> dict[str, Any] | None:
    """The proof of ``row``, None where there is none."""
    if table is None:
        return None
    return {
        "certified": bool(table.certified[row]),
        "status": table.status_of(row).label,
        "remedy": table.status_of(row).value,
        "kind": KINDS[int(table.kind[row])],
        "primal": float(table.primal[row]),
        "dual": float(table.dual[row]),
        "relative_gap": float(table.relative_gap[row]),
        "kappa_slack": float(table.kappa_slack[row]),
        "multiplier": float(table.multiplier[row]),
        "projection_error": float(table.projection_error[row]),
    }
