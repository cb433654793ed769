"""Reading a states file, which trusts nothing in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from simtool import hdf5
from simtool.blocks import Block
from simtool.errors import FormatError
from simtool.layers import LayerSpec
from simtool.states.header import StatesHeader
from simtool.states.writing import DESIGN, LAYERS, MATRICES, SENSITIVITY, TARGETS, TEACHER

_TILE = 1024  # columns hashed at a time: part of the meaning of content_sha256


@dataclass(frozen=True)
class LayerStates:
    """A layer's arrays on disk: ``design`` (features, columns), ``targets`` (rows, columns), the ``teacher``'s rows (rows, width).

    ``sensitivity`` (rows,) is the sum over a sample's positions of E||dy/dt||^2, 0 in all rows where it is not known.
    """

    spec: LayerSpec
    design: h5py.Dataset
    targets: h5py.Dataset
    teacher: h5py.Dataset
    sensitivity: h5py.Dataset


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
        self.layers = tuple(self._layer(index, spec) for index, spec in enumerate(header.layers))
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

    def _layer(self, index: int, spec: LayerSpec) -> LayerStates:
        found = {}
        for name, shape in (
            (DESIGN, (spec.features, spec.columns)),
            (TARGETS, (spec.rows, spec.columns)),
            (TEACHER, (spec.rows, spec.width)),
            (SENSITIVITY, (spec.rows,)),
        ):
            dataset = self._dataset(f"{LAYERS}/{index}/{name}")
            if dataset.shape != shape or dataset.dtype.kind != "f":
                raise FormatError(
                    f"{self.path}: {name} of the layer {spec.name} is {dataset.dtype} of shape {dataset.shape}, float of shape {shape} was "
                    "expected. Extract the states again."
                )
            found[name] = dataset
        known, own = found[SENSITIVITY][()], found[TEACHER][()]
        if not (np.isfinite(own).all() and np.isfinite(known).all() and (known >= 0).all()):
            raise FormatError(
                f"{self.path}: the rows or sensitivities of the layer {spec.name} are not finite, or negative. Extract the states again."
            )
        return LayerStates(spec, found[DESIGN], found[TARGETS], found[TEACHER], found[SENSITIVITY])

    @property
    def file(self) -> h5py.File:
        """The open file, for what other parts keep in it."""
        return self._file

    def teacher(self) -> dict[str, sp.csr_array]:
        """The network's own A, B, C, D in the units of this file (CSR, float64)."""
        n, p, q = self.n, self.p, self.q
        shapes = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
        return {name: self._sparse(name, shapes[name]) for name in MATRICES}

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
        if self.layers or not self.header.whole:
            digest.update(f"{self.header.whole} {self.header.carried_nnz}".encode())
        for layer in self.layers:
            digest.update(json.dumps(layer.spec.to_json(), sort_keys=True).encode())
            for known in (layer.teacher, layer.sensitivity):
                digest.update(np.ascontiguousarray(known[()], dtype="<f8").tobytes())
            for dataset in (layer.design, layer.targets):
                for start in range(0, dataset.shape[1], _TILE):
                    tile = np.asarray(dataset[:, start : start + _TILE], dtype="<f4")
                    digest.update(np.ascontiguousarray(tile).tobytes())
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
