"""A network with sparse weights in the place of its own, written in its own format, and run before it gets its name."""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simtool.errors import InputError, OptionError
from simtool.export.ours import refuse_foreign
from simtool.export.sizes import SPEED_NOTE, csr_bytes
from simtool.export.verify import TOLERANCE, difference
from simtool.export.whole import whole
from simtool.hdf5 import writable_target
from simtool.model import ImplicitModel, SparseLayers, model_path
from simtool.networks import Network, NetworkSpec, load_network
from simtool.networks.inputs import table_rows
from simtool.stages.dropin import sparse_network

_log = logging.getLogger("simtool")
FORMATS = (".onnx", ".safetensors", ".pt")
_SAMPLES = 16


def export_network(
    model: str | Path | ImplicitModel, path: Path, spec: NetworkSpec, dtype: str, overwrite: bool
) -> dict[str, Any]:
    """Write the network ``spec`` with the sparse weights of ``model`` to ``path``; see :func:`simtool.stages.export.export`."""
    started = perf_counter()
    if isinstance(model, ImplicitModel):
        raise OptionError("with a network, export takes the file of a model (a RUN folder or its model.h5).")
    if path.suffix not in FORMATS:
        raise OptionError(
            f"a network is written as one of {', '.join(FORMATS)}, got {str(path)!r}. Choose a name such as net.onnx."
        )
    if dtype != "float32":
        raise OptionError(
            f"--dtype {dtype} is for implicit models; a network keeps the types of its own weights. Leave it out."
        )
    writable_target(path, overwrite, inputs=[model_path(model), *spec.files])
    if path.exists():
        refuse_foreign(path)
    found, changed, warning = sparse_network(model, load_network(spec, _input_shape(model)))
    if warning is not None:
        _log.warning("%s", warning)
    inputs = _probes(found, changed)
    with whole(path) as temporary:
        worst = _write(changed, spec, temporary, path, inputs)
    matrices = found.matrices if isinstance(found, SparseLayers) else (found.A, found.B, found.C, found.D)
    nnz = found.nnz if isinstance(found, SparseLayers) else found.parameters
    carried = found.carried_nnz if isinstance(found, SparseLayers) else 0
    return {
        "output": str(path),
        "format": path.suffix.removeprefix("."),
        "network": spec.network,
        "dtype": dtype,
        "bytes": path.stat().st_size,
        "dense_bytes": found.baseline_bytes,
        "sparse_bytes": 4 * carried + sum(csr_bytes(matrix) for matrix in matrices),
        "nnz": nnz,
        "stored_nnz": nnz,
        "baseline_nnz": found.baseline_nnz,
        "sparsity": found.sparsity if found.baseline_nnz else None,
        "max_difference": worst,
        "samples_checked": len(inputs),
        "cyclic": False,
        "warnings": [] if warning is None else [warning],
        "speed_note": SPEED_NOTE,
        "seconds": perf_counter() - started,
    }


def _input_shape(model: str | Path) -> tuple[int, ...] | None:
    from simtool.stages.dropin import load_sparse

    return load_sparse(model).input_shape


def _probes(model: SparseLayers | ImplicitModel, network: Network) -> np.ndarray:
    """Random inputs (k, *input_shape) of the range that the model was made on; whole numbers where the network takes those."""
    rng = np.random.default_rng(0)
    shape = (_SAMPLES, *network.input_shape)
    low, high = (float(end) for end in model.header_extra.get("input_range", (0.0, 1.0)))
    if network.takes_whole_numbers:
        rows = table_rows(network.outline.program) or int(high) + 1
        return rng.integers(max(0, int(low)), min(rows - 1, int(high)) + 1, shape).astype(np.float32)
    return rng.uniform(low, max(high, low), shape).astype(np.float32)


def _write(network: Network, spec: NetworkSpec, temporary: Path, path: Path, inputs: np.ndarray) -> float:
    """Write the file, run what it holds on ``inputs``, and give the largest difference to the network in this process."""
    from simtool.export import network_file

    output = network.outline.program.output

    def run(changed: Network) -> np.ndarray:
        y = changed.tensors(inputs, (output,))[output]
        return np.asarray(y, dtype=np.float64).reshape(len(inputs), -1)

    expected = run(network)
    is_onnx = not hasattr(network, "state")
    if path.suffix == ".onnx":
        if is_onnx:
            network_file.write_onnx(temporary, network.changed_model({}))  # type: ignore[attr-defined]
        else:
            from simtool.networks.tracing import quiet_torch

            network_file.write_onnx_of_module(temporary, *_traceable(network, inputs), quiet_torch)
        found = network_file.onnx_runner(temporary)(inputs)
    else:
        state = network.weights() if is_onnx else network.state()  # type: ignore[attr-defined]
        if path.suffix == ".pt":
            network_file.write_torch_state(temporary, state)
        else:
            network_file.write_state(temporary, state)
        found = run(network.with_weights(_read(temporary, path.suffix)))
    worst = difference(expected, np.asarray(found, dtype=np.float64))
    if not worst <= TOLERANCE:
        raise InputError(
            f"{path.name} does not compute what the sparse network computes: outputs differ by {worst:.3g} relative to max(1, |y|), allowed "
            f"are {TOLERANCE:g}. The file is not kept. Please report this network."
        )
    return worst


def _traceable(network: Any, inputs: np.ndarray) -> tuple[Any, Any]:
    """The module, and an example of two samples."""
    import torch

    example = torch.from_numpy(inputs[:2].copy())
    return network.module(), example.to(torch.int64) if network.takes_whole_numbers else example


def _read(path: Path, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".safetensors":
        from safetensors.numpy import load

        return dict(load(path.read_bytes()))
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}
