"""Finished shards to an implicit model, or to the sparse layers of a network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from simtool.model import CertificateTable, ImplicitModel, SparseLayers
from simtool.stages.sparsify.agreement import foreign
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.work import CERTIFICATE_FIELDS
from simtool.states import States


def spec_sha256(spec: dict[str, Any]) -> str:
    """What a model's fingerprint ``spec`` must be if it was merged from a run with this spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def rows_of(folder: RunFolder, plan: Plan) -> tuple[sparse.csr_array, CertificateTable]:
    """All rows (rows, features) and their certificates; the shards must all be there and valid."""
    parts = [folder.load(folder.shard(index)) for index in range(len(plan.shards))]
    counts = np.concatenate([np.diff(part["indptr"]) for part in parts])
    whole = sparse.csr_array(
        (
            np.concatenate([part["data"] for part in parts]),
            np.concatenate([part["indices"] for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]),
        ),
        shape=(plan.rows, plan.features),
    )
    columns = {field: np.concatenate([part[field] for part in parts]) for field in CERTIFICATE_FIELDS}
    return whole, CertificateTable(**columns)


def _origin(plan: Plan, folder: RunFolder, states: States, spec: dict[str, Any]) -> dict[str, Any]:
    """What a model says of how it was made."""
    header, mixed = states.header, foreign(folder)
    return {
        "fingerprints": {
            "states": spec["states"]["content_sha256"],
            "network": header.network_sha256,
            "data": header.data_sha256,
            "spec": spec_sha256(spec),
        },
        "baseline_nnz": header.baseline_nnz,
        "baseline_bytes": header.baseline_bytes,
        "header_extra": {
            "options": spec["options"],
            "samples": plan.m,
            "input_range": list(header.input_range),
            "network_format": str(header.network.get("format", "")),
            **({"mixed_environments": mixed} if mixed else {}),
        },
    }


def merge_layers(folder: RunFolder, plan: Plan, states: States, spec: dict[str, Any]) -> SparseLayers:
    """The layers whose rows are the shards of ``folder``."""
    whole, certificates = rows_of(folder, plan)
    header = states.header
    matrices = []
    for bank in plan.banks:
        matrix = sparse.csr_array(whole[bank.rows[0] : bank.rows[1], bank.features[0] : bank.features[1]])
        matrix.sort_indices()
        matrices.append(matrix)
    return SparseLayers(
        layers=plan.layers,
        matrices=tuple(matrices),
        certificates=certificates,
        carried_nnz=header.carried_nnz,
        input_shape=header.input_shape,
        outputs=header.outputs,
        output_map=header.output_map,
        **_origin(plan, folder, states, spec),
    )


def merge(folder: RunFolder, plan: Plan, states: States, spec: dict[str, Any]) -> ImplicitModel:
    """The model whose rows are the shards of ``folder``; the shards must all be there and valid."""
    whole, certificates = rows_of(folder, plan)
    header = states.header
    model = ImplicitModel(
        A=whole[: plan.n, : plan.n],
        B=whole[: plan.n, plan.n :],
        C=whole[plan.n :, : plan.n],
        D=whole[plan.n :, plan.n :],
        blocks=header.blocks,
        output_parents=header.output_parents,
        output_map=header.output_map,
        has_bias=header.has_bias,
        input_shape=header.input_shape,
        scaling=np.asarray(states.scaling),
        certificates=certificates,
        structure=plan.options.structure,
        **_origin(plan, folder, states, spec),
    )
    return replace(model, scale=model.rescaling())
