"""``export``: a model for another runtime, written whole or not at all, after it has been run and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simtool.errors import OptionError
from simtool.export.ours import refuse_foreign
from simtool.export.sizes import SPEED_NOTE, sizes
from simtool.export.verify import probes, verify
from simtool.export.whole import whole
from simtool.hdf5 import writable_target
from simtool.model import ImplicitModel, load_model, model_path
from simtool.networks import NetworkSpec
from simtool.stages.export_network import export_network

DTYPES = ("float32", "float64")
# Writes a file, runs it over inputs, and gives the largest difference to the model.
_Format = Callable[[ImplicitModel, Path, str, np.ndarray, str], float]


def export(
    model: str | Path | ImplicitModel,
    output: str | Path,
    *,
    network: NetworkSpec | str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write ``model`` to ``output``, whose suffix says how: .onnx, .pt2 (acyclic models) or .safetensors (sparse).

    With ``network``, the one that the model came from, that network is written with the sparse weights in the place of its own:
    .onnx, or .safetensors and .pt, state_dicts that its class loads.

    The file is run over random inputs and corners of the inputs' range before it gets its name; outputs that differ from the
    model's by more than 1e-5, relative to max(1, |y|), are an InputError, and no file is left. ``overwrite`` replaces an
    earlier export, nothing else. Raises InputError for the model, OptionError for the suffix or dtype, OutputError for
    the path, ConvergenceError where the model has no fixed point.
    """
    path = Path(output)
    if network is not None:
        spec = NetworkSpec(network) if isinstance(network, str) else network
        return export_network(model, path, spec, dtype, overwrite)
    if path.suffix not in _FORMATS:
        raise OptionError(
            f"the output of export must end in one of {', '.join(_FORMATS)}, got {str(path)!r}. "
            "Choose a name such as net.onnx."
        )
    if dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    source = None if isinstance(model, ImplicitModel) else model_path(model)
    writable_target(path, overwrite, inputs=[source])
    if path.exists():
        refuse_foreign(path)
    loaded = model if isinstance(model, ImplicitModel) else load_model(model)
    return _export_implicit(loaded, path, dtype)


def _export_implicit(model: ImplicitModel, path: Path, dtype: str) -> dict[str, Any]:
    """Write, check and measure ``path``, whose place has been found free."""
    started = perf_counter()
    inputs = probes(model)
    with whole(path) as temporary:
        worst = _FORMATS[path.suffix](model, temporary, dtype, inputs, path.name)
    counted = sizes(model)
    return {
        "output": str(path),
        "format": path.suffix.removeprefix("."),
        "dtype": dtype,
        "bytes": path.stat().st_size,
        "dense_bytes": counted.dense_bytes,
        "sparse_bytes": counted.sparse_bytes,
        "nnz": model.parameters,
        "stored_nnz": model.nnz,  # more where rows repeat weights that a convolution shares
        "baseline_nnz": model.baseline_nnz,
        "sparsity": model.sparsity if model.baseline_nnz else None,
        "max_difference": worst,
        "samples_checked": len(inputs),
        "cyclic": any(component.cyclic for component in model.components),
        "speed_note": SPEED_NOTE,
        "seconds": perf_counter() - started,
    }


def _onnx(model: ImplicitModel, path: Path, dtype: str, inputs: np.ndarray, shown: str) -> float:
    from simtool.export.onnx_model import to_onnx, verify_onnx

    path.write_bytes(to_onnx(model, dtype=dtype).SerializeToString())
    return verify_onnx(path, model, inputs, shown)


def _program(model: ImplicitModel, path: Path, dtype: str, inputs: np.ndarray, shown: str) -> float:
    from simtool.export.torch_program import program_runner, write_program

    write_program(model, path, dtype)
    return verify(shown, model, inputs, program_runner(path))


def _safetensors(model: ImplicitModel, path: Path, dtype: str, inputs: np.ndarray, shown: str) -> float:
    from simtool.export.safetensors_file import load_safetensors, write_safetensors

    write_safetensors(model, path, dtype)
    return verify(shown, model, inputs, load_safetensors(path).predict)


_FORMATS: dict[str, _Format] = {".onnx": _onnx, ".pt2": _program, ".safetensors": _safetensors}
