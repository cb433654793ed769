"""states.h5: what a network computed on the extraction data, U, Z, X, Y with samples as columns.

Written in batches of columns, so memory does not grow with the number of samples, and atomically: the file appears when it is
complete. Read through :func:`open_states`, which trusts nothing in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from simtool import blocks as blocks_module
from simtool import hdf5
from simtool.blocks import Block
from simtool.errors import FormatError, InputError

_MATRICES = ("A", "B", "C", "D")
_TILE = 1024  # columns hashed at a time: part of the meaning of content_sha256
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class StatesHeader:
    """Everything about a states file that is not an array.

    Attributes
    ----------
    samples, inputs, states, outputs : m, p (rows of U, the bias included), n, q
    blocks, output_parents, output_map, has_bias : the layers, what feeds Y, what follows Y, whether U's last row is 1
    input_shape : one sample as the network takes it
    seed : of the choice of samples
    rescale : none, uniform, layer or neuron
    baseline_nnz, baseline_bytes : non-zero explicit parameters of the network; 4 bytes times all of them
    network_sha256, data_sha256, network, data : what was run on what, and how both were loaded
    max_reconstruction_error : of X = phi(Z), relative to max(1, max|Z|)
    input_range : smallest and largest input value
    sensitivity_samples : how many samples ``sensitivity`` averages over
    """

    samples: int
    inputs: int
    states: int
    outputs: int
    blocks: tuple[Block, ...]
    output_parents: tuple[str, ...]
    output_map: str | None
    has_bias: bool
    input_shape: tuple[int, ...]
    seed: int
    rescale: str
    baseline_nnz: int
    baseline_bytes: int
    network_sha256: str
    data_sha256: str
    network: dict[str, Any]
    data: dict[str, Any]
    max_reconstruction_error: float
    input_range: tuple[float, float]
    sensitivity_samples: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form stored in the file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "blocks"}
        return {**plain, "blocks": json.loads(blocks_module.to_json(self.blocks))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> StatesHeader:
        """The inverse of :meth:`to_json`. Raises FormatError."""
        try:
            low, high = content["input_range"]
            counts = {
                name: int(content[name])
                for name in ("samples", "inputs", "states", "outputs", "seed", "baseline_nnz", "baseline_bytes", "sensitivity_samples")
            }  # fmt: skip
            output_map = content["output_map"]
            header = cls(
                **counts,
                blocks=blocks_module.from_json(json.dumps(content["blocks"])),
                output_parents=tuple(str(name) for name in content["output_parents"]),
                output_map=None if output_map is None else str(output_map),
                has_bias=bool(content["has_bias"]),
                input_shape=tuple(int(size) for size in content["input_shape"]),
                rescale=str(content["rescale"]),
                network_sha256=str(content["network_sha256"]),
                data_sha256=str(content["data_sha256"]),
                network=dict(content["network"]),
                data=dict(content["data"]),
                max_reconstruction_error=float(content["max_reconstruction_error"]),
                input_range=(float(low), float(high)),
            )
        except hdf5.DAMAGE as error:
            raise FormatError(
                f"the header of {path} cannot be used ({type(error).__name__}: {error}). Extract the states again."
            ) from error
        blocks_module.check(header.blocks, header.states, header.output_parents)
        if header.output_map not in (None, "softmax", "log_softmax", "sigmoid"):
            raise FormatError(f"{path} names the unknown output map {header.output_map!r}.")
        if min(header.samples, header.inputs, header.states, header.outputs) < 1:
            raise FormatError(
                f"{path} claims an empty array; samples, inputs, states and outputs must all be above 0."
            )
        if (
            min(header.input_shape, default=1) < 1
            or prod(header.input_shape) + header.has_bias != header.inputs
        ):
            raise FormatError(
                f"{path}: the input shape {header.input_shape} does not give {header.inputs} rows of U."
            )
        return header


@dataclass(frozen=True)
class StatesLayout:
    """The sizes a writer needs before the first batch, and the columns of a batch."""

    samples: int
    inputs: int
    states: int
    outputs: int
    batch: int


@dataclass
class StatesWriter:
    """Appends batches of columns to an open states file; made by :func:`create_states`."""

    file: h5py.File
    layout: StatesLayout
    columns: int = 0
    finished: bool = field(default=False, init=False)

    def append(self, u: np.ndarray, z: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Add k samples: ``u`` (p, k), ``z`` and ``x`` (n, k), ``y`` (q, k)."""
        stop = self.columns + u.shape[1]
        for name, values in (("U", u), ("Z", z), ("X", x), ("Y", y)):
            self.file[name][:, self.columns : stop] = values.astype(np.float32, copy=False)
        hdf5.check_written(self.file)  # a full disk ends a long extraction at once
        self.columns = stop

    def finish(
        self,
        header: StatesHeader,
        *,
        indices: np.ndarray,
        labels: np.ndarray | None,
        scaling: np.ndarray,
        sensitivity: np.ndarray,
        teacher: Mapping[str, sp.csr_array],
    ) -> None:
        """Write all that is not a column and mark the file complete."""
        if self.columns != self.layout.samples:
            raise InputError(f"{self.columns} of {self.layout.samples} samples were written.")
        hdf5.write_array(self.file, "indices", np.asarray(indices, dtype=np.int64))
        if labels is not None:
            hdf5.write_array(self.file, "labels", labels)
        hdf5.write_array(self.file, "scaling", np.asarray(scaling, dtype=np.float64))
        hdf5.write_array(self.file, "sensitivity", np.asarray(sensitivity, dtype=np.float64))
        for name in _MATRICES:
            matrix = sp.csr_array(teacher[name])
            group = self.file.create_group(f"teacher/{name}")
            group.attrs["shape"] = np.asarray(matrix.shape, dtype=np.int64)
            hdf5.write_array(group, "data", matrix.data.astype(np.float64))
            hdf5.write_array(group, "indices", matrix.indices.astype(np.int32))
            hdf5.write_array(group, "indptr", matrix.indptr.astype(np.int64))
        hdf5.write_header(self.file, header.to_json())
        self.finished = True


@contextmanager
def create_states(path: Path, layout: StatesLayout, overwrite: bool = False) -> Iterator[StatesWriter]:
    """A writer whose file appears at ``path`` when the block ends after ``finish``. Raises OutputError."""
    hdf5.writable_target(path, overwrite, "states")
    with hdf5.create(path, "states") as file:
        for name, rows in (
            ("U", layout.inputs),
            ("Z", layout.states),
            ("X", layout.states),
            ("Y", layout.outputs),
        ):
            file.create_dataset(
                name,
                shape=(rows, layout.samples),
                dtype="<f4",
                # Chunks of equal height: the last one is stored whole, however little of it is used.
                chunks=(-(-rows // -(-rows // _CHUNK_ROWS)), min(layout.batch, layout.samples)),
                track_times=False,
            )
        writer = StatesWriter(file, layout)
        yield writer
        if not writer.finished:
            raise InputError("the states file was not finished; this is an error in the calling code.")


class States:
    """An open states file. Arrays stay on disk: ``U`` (p, m), ``Z``, ``X`` (n, m), ``Y`` (q, m) are h5py datasets.

    The fields of :class:`StatesHeader` are attributes too, and n, p, q, m.
    """

    def __init__(self, file: h5py.File, header: StatesHeader, path: Path) -> None:
        self.header = header
        self.path = path
        self._file = file
        self.U = self._matrix("U", header.inputs)
        self.Z = self._matrix("Z", header.states)
        self.X = self._matrix("X", header.states)
        self.Y = self._matrix("Y", header.outputs)
        self.indices: np.ndarray = self._vector("indices", header.samples, "iu").astype(np.int64)
        self.scaling: np.ndarray = self._vector("scaling", header.states, "f").astype(np.float64)
        self.sensitivity: np.ndarray = self._vector("sensitivity", header.states, "f").astype(np.float64)
        self.labels: np.ndarray | None = self._labels()
        if not (np.isfinite(self.scaling).all() and (self.scaling > 0).all()):
            raise FormatError(f"{path}: 'scaling' must be positive and finite. Extract the states again.")
        if not (np.isfinite(self.sensitivity).all() and (self.sensitivity >= 0).all()):
            raise FormatError(
                f"{path}: 'sensitivity' must be finite and not negative. Extract the states again."
            )

    @property
    def n(self) -> int:
        """Number of states."""
        return self.header.states

    @property
    def p(self) -> int:
        """Rows of U, the bias included."""
        return self.header.inputs

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.header.outputs

    @property
    def m(self) -> int:
        """Number of samples."""
        return self.header.samples

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.header.blocks

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "header":
            raise AttributeError(name)
        return getattr(self.header, name)

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise FormatError(
                f"{self.path} lacks the dataset {name!r}. It is no complete states file; extract again."
            )
        return dataset

    def _matrix(self, name: str, rows: int) -> h5py.Dataset:
        dataset = self._dataset(name)
        if dataset.shape != (rows, self.header.samples) or dataset.dtype.kind != "f":
            raise FormatError(
                f"{self.path}: {name} is {dataset.dtype} of shape {dataset.shape}, the header says float of shape "
                f"({rows}, {self.header.samples}). Extract the states again."
            )
        return dataset

    def _vector(self, name: str, size: int, kinds: str) -> np.ndarray:
        dataset = self._dataset(name)
        if dataset.shape != (size,) or dataset.dtype.kind not in kinds:
            raise FormatError(
                f"{self.path}: {name!r} is {dataset.dtype} of shape {dataset.shape}, {size} numbers were expected."
            )
        return np.asarray(dataset[()])

    def _labels(self) -> np.ndarray | None:
        if "labels" not in self._file:
            return None
        dataset = self._dataset("labels")
        if dataset.ndim not in (1, 2) or dataset.shape[0] != self.header.samples:
            raise FormatError(
                f"{self.path}: the labels have shape {dataset.shape}, one for each of {self.header.samples} samples is needed."
            )
        return np.asarray(dataset[()])

    def teacher(self) -> dict[str, sp.csr_array]:
        """The network's own A, B, C, D in the units of this file (CSR, float64)."""
        n, p, q = self.n, self.p, self.q
        shapes = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
        return {name: self._sparse(name, shapes[name]) for name in _MATRICES}

    def _sparse(self, name: str, shape: tuple[int, int]) -> sp.csr_array:
        group = f"teacher/{name}"
        data, indices, indptr = (self._dataset(f"{group}/{part}") for part in ("data", "indices", "indptr"))
        damaged = FormatError(
            f"{self.path}: the teacher's {name} is no valid sparse matrix of shape {shape}. Extract again."
        )
        if (
            data.ndim != 1
            or indices.shape != data.shape
            or indptr.shape != (shape[0] + 1,)
            or data.dtype.kind != "f"
        ):
            raise damaged
        if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
            raise damaged
        columns, starts = indices[()].astype(np.int64), indptr[()].astype(np.int64)
        inside = not columns.size or (columns.min() >= 0 and columns.max() < shape[1])
        if not inside or starts[0] != 0 or starts[-1] != columns.size or (np.diff(starts) < 0).any():
            raise damaged
        values = data[()].astype(np.float64)
        if not np.isfinite(values).all():
            raise damaged
        return sp.csr_array((values, columns, starts), shape=shape)

    def verify_content(self) -> None:
        """Raise FormatError if the file is not as it was written; reads all of it once."""
        hdf5.verify_content(self.path, self._file)

    def content_sha256(self) -> str:
        """A hash of all that defines an answer: the arrays, the blocks and the teacher; not paths or names of files."""
        cached = self.__dict__.get("_content_sha256")
        if cached is not None:
            return str(cached)
        digest = hashlib.sha256()
        kept = (
            "blocks",
            "output_parents",
            "output_map",
            "has_bias",
            "input_shape",
            "baseline_nnz",
            "baseline_bytes",
        )
        header = {key: value for key, value in self.header.to_json().items() if key in kept}
        digest.update(json.dumps(header, sort_keys=True).encode())
        for dataset in (self.U, self.Z, self.X, self.Y):
            digest.update(f"{dataset.name} {dataset.shape}".encode())
            for start in range(0, self.m, _TILE):
                tile = np.asarray(dataset[:, start : start + _TILE], dtype="<f4")
                digest.update(np.ascontiguousarray(tile).tobytes())
        for vector in (self.scaling, self.sensitivity):
            digest.update(np.ascontiguousarray(vector, dtype="<f8").tobytes())
        for name, matrix in self.teacher().items():
            digest.update(name.encode() + matrix.data.astype("<f8").tobytes())
            digest.update(matrix.indices.astype("<i8").tobytes() + matrix.indptr.astype("<i8").tobytes())
        self.__dict__["_content_sha256"] = digest.hexdigest()
        return digest.hexdigest()


@contextmanager
def open_states(path: str | Path) -> Iterator[States]:
    """The states file at ``path``, checked; closed at the end of the block.

    Raises InputError if it is missing, FormatError if it is foreign, truncated, tampered with or newer.
    """
    source = Path(path)
    with hdf5.open_checked(source, "states") as file:
        header = StatesHeader.from_json(hdf5.read_header(file, source), source)
        yield States(file, header, source)
