"""model.h5: written whole or not at all, the same bytes for the same model, and read without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from simtool import blocks as blocks_module
from simtool import hdf5
from simtool.errors import FormatError, InputError, NoImplicitForm
from simtool.layers import from_json as layers_from_json
from simtool.model.certificates import CertificateTable
from simtool.model.implicit import ImplicitModel
from simtool.model.layered import SparseLayers

_MATRICES = ("A", "B", "C", "D")
_VECTORS = ("scaling", "scale")


def _index_type(columns: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds a column index: wide models only pay for what they need."""
    return np.uint16 if columns <= 2**16 else np.uint32


def _write_matrix(file: h5py.File, name: str, matrix: sparse.csr_array) -> None:
    group = file.create_group(name)
    group.attrs["shape"] = np.array(matrix.shape, dtype=np.int64)
    hdf5.write_array(group, "data", matrix.data)
    hdf5.write_array(group, "indices", matrix.indices.astype(_index_type(matrix.shape[1])))
    hdf5.write_array(group, "indptr", matrix.indptr.astype(np.int64))


def save_model(
    model: ImplicitModel | None, path: Path, overwrite: bool = False, layers: SparseLayers | None = None
) -> Path:
    """Write ``model`` to ``path``, and the sparse ``layers`` of the network it is the implicit form of; one of them may be None.

    Raises OutputError if it exists (without ``overwrite``) or cannot be written.
    """
    if not overwrite:
        hdf5.writable_target(path, overwrite)
    if layers is None and model is not None:
        layers = model.layers
    header = {} if model is None else _header(model)
    if layers is not None:
        header["layers"] = _layers_header(layers)
    with hdf5.create(path, "model") as file:
        hdf5.write_header(file, header)
        if model is not None:
            for name in _MATRICES:
                _write_matrix(file, name, getattr(model, name))
            for name in _VECTORS:
                vector = getattr(model, name)
                if vector is not None:
                    hdf5.write_array(file, name, vector)
            _write_certificates(file, model.certificates)
        if layers is not None:
            for index, matrix in enumerate(layers.matrices):
                _write_matrix(file, f"layers/{index}", matrix)
            _write_certificates(file["layers"], layers.certificates)
    return path


def _write_certificates(place: h5py.Group, table: CertificateTable | None) -> None:
    if table is None:
        return
    group = place.create_group("certificates")
    for column in CertificateTable.columns():
        array = getattr(table, column)
        hdf5.write_array(group, column, array.astype(np.uint8) if array.dtype == np.bool_ else array)


def _layers_header(layers: SparseLayers) -> dict[str, Any]:
    return {
        "layers": [layer.to_json() for layer in layers.layers],
        "carried_nnz": int(layers.carried_nnz),
        "baseline_nnz": int(layers.baseline_nnz),
        "baseline_bytes": int(layers.baseline_bytes),
        "input_shape": list(layers.input_shape),
        "outputs": int(layers.outputs),
        "output_map": layers.output_map,
        "fingerprints": layers.fingerprints,
        "extra": layers.header_extra,
    }


def _header(model: ImplicitModel) -> dict[str, Any]:
    return {
        "blocks": blocks_module.to_json(model.blocks),
        "output_parents": list(model.output_parents),
        "output_map": model.output_map,
        "has_bias": model.has_bias,
        "input_shape": list(model.input_shape),
        "structure": model.structure,
        "fingerprints": model.fingerprints,
        "baseline_nnz": int(model.baseline_nnz),
        "baseline_bytes": int(model.baseline_bytes),
        "extra": model.header_extra,
        # Only of a form whose weights are shared: the rows repeat them.
        **({} if model.parameters_nnz is None else {"parameters_nnz": int(model.parameters_nnz)}),
    }


def _array(group: h5py.Group, name: str, path: Path, kinds: str) -> np.ndarray:
    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in kinds:
        raise FormatError(f"{path}: {group.name.rstrip('/')}/{name} is missing or not a vector of numbers.")
    return np.asarray(dataset[()])


def _read_matrix(file: h5py.File, name: str, path: Path) -> sparse.csr_array:
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        raise FormatError(
            f"{path} lacks the group {name!r}, one of {', '.join(_MATRICES)}. Write the file again."
        )
    raw = np.asarray(group.attrs.get("shape"))
    if raw.shape != (2,) or raw.dtype.kind not in "iu" or (raw < 0).any() or (raw >= 2**31).any():
        raise FormatError(f"{path}: the shape of {name} must be two integers in [0, 2^31), got {raw!r}.")
    rows, columns = int(raw[0]), int(raw[1])
    data = _array(group, "data", path, "f")
    indices = _array(group, "indices", path, "iu").astype(np.int64)
    indptr = _array(group, "indptr", path, "iu").astype(np.int64)

    def refuse(what: str) -> FormatError:
        return FormatError(
            f"{path}: {name} is not a valid sparse matrix: {what}. The file is damaged; write it again."
        )

    if len(indptr) != rows + 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != len(data):
        raise refuse(f"indptr must rise from 0 to {len(data)} in {rows + 1} steps")
    if len(indices) != len(data):
        raise refuse(f"{len(indices)} indices for {len(data)} values")
    if len(indices) and (indices.min() < 0 or indices.max() >= columns):
        raise refuse(f"a column index lies outside 0..{columns - 1}")
    inside = np.ones(max(len(indices) - 1, 0), dtype=bool)
    boundaries = indptr[1:-1]
    inside[boundaries[(boundaries > 0) & (boundaries < len(indices))] - 1] = False
    if (np.diff(indices)[inside] <= 0).any():
        raise refuse("the column indices of a row must rise strictly")
    if not np.isfinite(data).all():
        raise refuse("it holds NaN or infinite values")
    return sparse.csr_array((data.astype(np.float64), indices, indptr), shape=(rows, columns))


def _read_certificates(place: h5py.Group, path: Path) -> CertificateTable | None:
    if "certificates" not in place:
        return None
    group = place["certificates"]
    if not isinstance(group, h5py.Group):
        raise FormatError(f"{path}: 'certificates' must be a group.")
    # Files written before rows had a status lack that column.
    names = [name for name in CertificateTable.columns() if name != "status" or name in group]
    return CertificateTable(**{name: _array(group, name, path, "fiub") for name in names})


def _input_shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if any(not 1 <= size < 2**31 for size in shape):
        raise FormatError(f"its input shape is {shape}; every size must be in [1, 2^31).")
    return shape


def model_path(path: str | Path) -> Path:
    """model.h5 of a RUN folder, or ``path`` itself."""
    found = Path(path)
    if found.is_dir():
        inside = found / "model.h5"
        if not inside.exists():
            raise InputError(
                f"the folder {found} holds no model.h5. If it is a run, finish it: repeat its `simtool sparsify` command."
            )
        return inside
    return found


def load_model(path: str | Path) -> ImplicitModel:
    """The model of a RUN folder or a model.h5.

    Raises InputError if nothing is there, FormatError for a foreign, truncated, tampered or newer file.
    """
    source = model_path(path)
    with hdf5.open_checked(source, "model") as file:
        hdf5.verify_content(source, file)
        header = hdf5.read_header(file, source)
        if "blocks" not in header and "layers" in header:
            raise NoImplicitForm(
                f"{source} holds sparse layers of a network that has no implicit form of its own (or too large a one). Pass the network: "
                "--baseline NETWORK to evaluate, --network NETWORK to predict and export."
            )
        try:
            matrices = {name: _read_matrix(file, name, source) for name in _MATRICES}
            vectors = {name: _array(file, name, source, "f") for name in _VECTORS if name in file}
            output_map = header["output_map"]
            return ImplicitModel(
                **matrices,
                **vectors,
                certificates=_read_certificates(file, source),
                blocks=blocks_module.from_json(header["blocks"]),
                output_parents=tuple(str(name) for name in header["output_parents"]),
                output_map=None if output_map is None else str(output_map),
                has_bias=bool(header["has_bias"]),
                input_shape=_input_shape(header["input_shape"]),
                structure=str(header["structure"]),
                fingerprints={str(k): str(v) for k, v in dict(header["fingerprints"]).items()},
                baseline_nnz=int(header["baseline_nnz"]),
                baseline_bytes=int(header["baseline_bytes"]),
                header_extra=dict(header["extra"]),
                parameters_nnz=None if "parameters_nnz" not in header else int(header["parameters_nnz"]),
                layers=_read_layers(file, header, source),
            )
        except InputError as error:
            if str(source) in str(error):
                raise
            raise FormatError(f"{source} holds an impossible model: {error}") from error
        except hdf5.DAMAGE as error:
            raise FormatError(
                f"{source} cannot be read ({type(error).__name__}: {error}). Write it again."
            ) from error


def _read_layers(file: h5py.File, header: dict[str, Any], source: Path) -> SparseLayers | None:
    if "layers" not in header:
        return None
    content = header["layers"]
    layers = layers_from_json(content["layers"])
    output_map = content["output_map"]
    return SparseLayers(
        layers=layers,
        matrices=tuple(_read_matrix(file, f"layers/{index}", source) for index in range(len(layers))),
        certificates=_read_certificates(file["layers"], source) if layers else None,
        carried_nnz=int(content["carried_nnz"]),
        baseline_nnz=int(content["baseline_nnz"]),
        baseline_bytes=int(content["baseline_bytes"]),
        input_shape=_input_shape(content["input_shape"]),
        outputs=int(content["outputs"]),
        output_map=None if output_map is None else str(output_map),
        fingerprints={str(k): str(v) for k, v in dict(content["fingerprints"]).items()},
        header_extra=dict(content["extra"]),
    )


def load_layers(path: str | Path) -> SparseLayers | None:
    """The sparse layers in a RUN folder or a model.h5, None where it holds none. Raises what :func:`load_model` does."""
    source = model_path(path)
    with hdf5.open_checked(source, "model") as file:
        hdf5.verify_content(source, file)
        header = hdf5.read_header(file, source)
        try:
            return _read_layers(file, header, source)
        except InputError as error:
            if str(source) in str(error):
                raise
            raise FormatError(f"{source} holds impossible layers: {error}") from error
        except hdf5.DAMAGE as error:
            raise FormatError(
                f"{source} cannot be read ({type(error).__name__}: {error}). Write it again."
            ) from error
