"""``compact``: the same outputs with fewer states (IDL section 5.2), measured before the file is kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simtool import hdf5
from simtool.errors import ConvergenceError, InputError, NoImplicitForm
from simtool.export.verify import difference, probes
from simtool.model import FixedPoint, ImplicitModel, load_model, model_path
from simtool.model.compact import compact_model

ALLOWED_DIFFERENCE = 1e-6
_PRECISE = FixedPoint(tolerance=1e-14)


def compact(
    model: str | Path, output: str | Path, *, fold_constants: bool = True, overwrite: bool = False
) -> dict[str, Any]:
    """Write ``model`` (a RUN folder or a model.h5) without its dead and constant states to ``output``; see
    :func:`simtool.model.compact.compact_model`.

    Inputs stay part of a sample, so that ``evaluate`` and ``predict`` take the same data; those that nothing reads are
    listed. Outputs of both models are compared on random inputs and corners of the inputs' range, relative to
    max(1, |y|): a difference above 1e-6 is an InputError, and nothing is written. ``max_output_difference`` is None, and
    ``not_compared`` says why, where the model given has no outputs on some of these inputs.

    Raises InputError or NoImplicitForm for the model, OutputError for the path, ConvergenceError where constant states
    overflow.
    """
    started = perf_counter()
    target, source = Path(output), model_path(model)
    hdf5.writable_target(target, overwrite, kind="model", inputs=[source])
    given = _load(source)
    found = compact_model(given, fold_constants=fold_constants)
    worst, why = _compare(given, found.model)
    if worst is not None and not worst <= ALLOWED_DIFFERENCE:
        raise InputError(
            f"{source}: without its {given.n - found.kept.size} dead and constant states the outputs differ by {worst:.3g} relative to "
            f"max(1, |y|), allowed are {ALLOWED_DIFFERENCE:g}, so nothing is written. Terms that cancel almost completely can be the cause: pass "
            "--keep-constants, and check the scale of the weights and the inputs' range."
        )
    smaller = found.model
    if found.kept.size < given.n:
        smaller = replace(smaller, fingerprints={**given.fingerprints, "compacted": _sha256(source)})
    smaller.save(target, overwrite)
    before, after = given.well_posedness(), smaller.well_posedness()
    table = smaller.proofs
    return {
        "model": str(target),
        "states": smaller.n,
        "states_before": given.n,
        "states_removed": given.n - smaller.n,
        "dead_states": int(found.dead.size),
        "constant_states": int(found.constant.size),
        "rows_changed": int(found.changed.size),
        "certified": None if table is None else int(table.certified.sum()),
        "rows": smaller.n + smaller.q if table is None else len(table),
        "inputs": smaller.p,
        "sample_size": smaller.p - int(smaller.has_bias),
        "inputs_unread": int(found.unread.size),
        "unread_inputs": found.unread.tolist(),
        "outputs": smaller.q,
        "nnz": smaller.nnz,
        "nnz_before": given.nnz,
        "parameters": smaller.parameters,
        "parameters_before": given.parameters,
        "baseline_nnz": smaller.baseline_nnz,
        "sparsity": smaller.sparsity if smaller.baseline_nnz else None,
        "blocks": [block.name for block in smaller.blocks],
        "blocks_removed": [b.name for b in given.blocks if b.name not in {x.name for x in smaller.blocks}],
        "norm_a_inf": smaller.norm_a_inf,
        "norm_a_inf_raw": smaller.norm_a_inf_raw,
        "well_posed": after.well_posed,
        "well_posed_by": after.by,
        "well_posed_before": before.well_posed,
        "layers_dropped": given.layers is not None and smaller.layers is None,
        "max_output_difference": worst,
        "not_compared": why,
        "bytes": target.stat().st_size,
        "seconds": perf_counter() - started,
    }


def _load(source: Path) -> ImplicitModel:
    try:
        return load_model(source)
    except NoImplicitForm as error:
        raise NoImplicitForm(
            f"{source} holds sparse layers of a network and no A, B, C, D: the network has no implicit form, or one of more than 20 million "
            "non-zeros. Its weights are shared over positions, so no single state can go. compact needs a model with states: make one with "
            "simtool sparsify of states whose network has an implicit form (simtool inspect NETWORK says so), or use simtool export MODEL "
            "--network NETWORK for the network with its sparse weights."
        ) from error


def _compare(given: ImplicitModel, smaller: ImplicitModel) -> tuple[float | None, str | None]:
    """The largest difference of the outputs, or None and the reason."""
    inputs = probes(given)
    u = given.states_inputs(inputs)
    if given is smaller:
        return 0.0, None
    try:
        expected = given.forward(u, _PRECISE).Y
    except ConvergenceError as error:
        return None, f"the model given has no outputs on some of the inputs: {error}"
    found = smaller.forward(u, _PRECISE).Y
    return difference(np.ascontiguousarray(expected.T), np.ascontiguousarray(found.T)), None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
