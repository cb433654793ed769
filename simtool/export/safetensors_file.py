"""A, B, C, D as sparse matrices in a .safetensors file, for any program that reads that format.

Tensors, for each matrix M of A, B, C, D: ``M.data`` (nnz,) float32 or float64, ``M.indices`` (nnz,) and ``M.indptr``
(rows + 1,), unsigned integers of the smallest type that holds them: row i has the entries indptr[i] ... indptr[i+1]-1 (CSR).
Metadata, text: ``format`` = "simtool-csr", ``format_version`` = "1", ``made_by``, and as JSON ``shapes`` {M: [rows, columns]},
``blocks`` (name, activation, offset, size, shape, parents), ``output_parents``, ``output_map``, ``has_bias`` (the last row of
u is 1), ``input_shape``, ``structure``, ``parameters_nnz``, ``baseline_nnz``, ``baseline_bytes``. x = phi(A x + B u), y = C x + D u.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from simtool import blocks as blocks_module
from simtool.errors import FormatError, InputError
from simtool.export.sizes import smallest_index
from simtool.model import ImplicitModel

FORMAT, VERSION, MADE_BY = "simtool-csr", "1", "simtool export"
_MATRICES = ("A", "B", "C", "D")
_TEXT = ("format", "format_version", "made_by")


def write_safetensors(model: ImplicitModel, path: Path, dtype: str = "float32") -> None:
    """Write ``model`` to ``path``; certificates, scalings and fingerprints stay behind in model.h5."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for name in _MATRICES:
        matrix = getattr(model, name)
        with np.errstate(over="ignore"):
            data = matrix.data.astype(dtype)
        if not np.isfinite(data).all():
            raise InputError(f"{name} holds values beyond {dtype}. Export with --dtype float64.")
        tensors[f"{name}.data"] = data
        tensors[f"{name}.indices"] = matrix.indices.astype(smallest_index(matrix.shape[1] - 1))
        tensors[f"{name}.indptr"] = matrix.indptr.astype(smallest_index(matrix.nnz))
    header: dict[str, Any] = {
        "shapes": {name: list(getattr(model, name).shape) for name in _MATRICES},
        "blocks": json.loads(blocks_module.to_json(model.blocks)),
        "output_parents": list(model.output_parents),
        "output_map": model.output_map,
        "has_bias": model.has_bias,
        "input_shape": list(model.input_shape),
        "structure": model.structure,
        "parameters_nnz": model.parameters_nnz,
        "baseline_nnz": int(model.baseline_nnz),
        "baseline_bytes": int(model.baseline_bytes),
    }
    metadata = {name: json.dumps(value) for name, value in header.items()}
    metadata |= {"format": FORMAT, "format_version": VERSION, "made_by": MADE_BY}
    path.write_bytes(save(tensors, metadata=metadata))


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty where it has none. Raises FormatError where it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a readable .safetensors file ({error}).") from error


def load_safetensors(path: str | Path) -> ImplicitModel:
    """The model in a file of :func:`write_safetensors`.

    Raises FormatError for any other file, a newer version, or contents that do not fit together.
    """
    from safetensors.numpy import load_file

    source = Path(path)
    metadata = metadata_of(source)
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, VERSION):
        raise FormatError(
            f"{source} is not a {FORMAT} file of version {VERSION} (format {metadata.get('format')!r}, version "
            f"{metadata.get('format_version')!r}). Write it with simtool export MODEL -o NAME.safetensors."
        )
    try:
        tensors = load_file(source)
        header = {name: json.loads(text) for name, text in metadata.items() if name not in _TEXT}
        matrices = {}
        for name in _MATRICES:
            rows, columns = header["shapes"][name]
            data, indices, indptr = (tensors[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
            matrix = sparse.csr_array(
                (data.astype(np.float64), indices.astype(np.int64), indptr.astype(np.int64)),
                shape=(int(rows), int(columns)),
            )
            matrix.check_format(full_check=True)
            matrices[name] = matrix
        return ImplicitModel(
            **matrices,
            blocks=blocks_module.from_json(json.dumps(header["blocks"])),
            output_parents=tuple(str(name) for name in header["output_parents"]),
            output_map=header["output_map"],
            has_bias=bool(header["has_bias"]),
            input_shape=tuple(int(size) for size in header["input_shape"]),
            structure=str(header["structure"]),
            parameters_nnz=None if header["parameters_nnz"] is None else int(header["parameters_nnz"]),
            baseline_nnz=int(header["baseline_nnz"]),
            baseline_bytes=int(header["baseline_bytes"]),
        )
    except (InputError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"{source} holds an impossible model: {error}. Export it again.") from error
