"""Writing a states file in batches of columns, so that memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp

from simtool import hdf5
from simtool.errors import InputError
from simtool.layers import LayerSpec
from simtool.states.header import StatesHeader

MATRICES = ("A", "B", "C", "D")
LAYERS, DESIGN, TARGETS, TEACHER, SENSITIVITY = "layers", "inputs", "targets", "teacher", "sensitivity"
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class StatesLayout:
    """The sizes a writer needs before the first batch, and the columns of a batch."""

    samples: int
    inputs: int
    states: int
    outputs: int
    batch: int
    layers: tuple[LayerSpec, ...] = ()


@dataclass
class StatesWriter:
    """Appends batches of columns to an open states file; made by :func:`create_states`."""

    file: h5py.File
    layout: StatesLayout
    columns: int = 0
    layer_columns: dict[int, int] = field(default_factory=dict, init=False)
    finished: bool = field(default=False, init=False)

    def append(self, u: np.ndarray, z: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Add k samples: ``u`` (p, k), ``z`` and ``x`` (n, k), ``y`` (q, k)."""
        stop = self.columns + u.shape[1]
        for name, values in (("U", u), ("Z", z), ("X", x), ("Y", y)):
            self.file[name][:, self.columns : stop] = values.astype(np.float32, copy=False)
        hdf5.check_written(self.file)  # a full disk ends a long extraction at once
        self.columns = stop

    def append_layer(self, index: int, design: np.ndarray, targets: np.ndarray) -> None:
        """Add columns to layer ``index``: its ``design`` (features, k) and ``targets`` (rows, k)."""
        start = self.layer_columns.get(index, 0)
        stop = start + design.shape[1]
        for name, values in ((DESIGN, design), (TARGETS, targets)):
            self.file[f"{LAYERS}/{index}/{name}"][:, start:stop] = values
        hdf5.check_written(self.file)
        self.layer_columns[index] = stop

    def finish(
        self,
        header: StatesHeader,
        *,
        indices: np.ndarray,
        labels: np.ndarray | None,
        scaling: np.ndarray,
        sensitivity: np.ndarray,
        teacher: Mapping[str, sp.csr_array],
        layer_teachers: Sequence[np.ndarray] = (),
        layer_sensitivities: Sequence[np.ndarray] = (),
        store_program: Callable[[h5py.File], None] | None = None,
    ) -> None:
        """Write all that is not a column and mark the file complete."""
        if self.columns != self.layout.samples:
            raise InputError(f"{self.columns} of {self.layout.samples} samples were written.")
        wanted = [layer.columns for layer in self.layout.layers]
        if [self.layer_columns.get(index, 0) for index in range(len(wanted))] != wanted:
            raise InputError(f"{self.layer_columns} of {wanted} columns of the layers were written.")
        for index, rows in enumerate(layer_teachers):
            hdf5.write_array(self.file, f"{LAYERS}/{index}/{TEACHER}", np.asarray(rows, dtype=np.float64))
        for index, known in enumerate(layer_sensitivities):
            hdf5.write_array(
                self.file, f"{LAYERS}/{index}/{SENSITIVITY}", np.asarray(known, dtype=np.float64)
            )
        hdf5.write_array(self.file, "indices", np.asarray(indices, dtype=np.int64))
        if labels is not None:
            hdf5.write_array(self.file, "labels", labels)
        hdf5.write_array(self.file, "scaling", np.asarray(scaling, dtype=np.float64))
        hdf5.write_array(self.file, "sensitivity", np.asarray(sensitivity, dtype=np.float64))
        for name in MATRICES:
            matrix = sp.csr_array(teacher[name])
            group = self.file.create_group(f"teacher/{name}")
            group.attrs["shape"] = np.asarray(matrix.shape, dtype=np.int64)
            hdf5.write_array(group, "data", matrix.data.astype(np.float64))
            hdf5.write_array(group, "indices", matrix.indices.astype(np.int32))
            hdf5.write_array(group, "indptr", matrix.indptr.astype(np.int64))
        if store_program is not None:
            store_program(self.file)
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
            _dataset(file, name, rows, layout.samples, layout.batch)
        for index, layer in enumerate(layout.layers):
            width = max(1, layout.batch * layer.columns // layout.samples)
            _dataset(file, f"{LAYERS}/{index}/{DESIGN}", layer.features, layer.columns, width)
            _dataset(file, f"{LAYERS}/{index}/{TARGETS}", layer.rows, layer.columns, width)
        writer = StatesWriter(file, layout)
        yield writer
        if not writer.finished:
            raise InputError("the states file was not finished; this is an error in the calling code.")


def _dataset(file: h5py.File, name: str, rows: int, columns: int, width: int) -> None:
    """An array (rows, columns), to be filled ``width`` columns at a time."""
    file.create_dataset(
        name,
        shape=(rows, columns),
        dtype="<f4",
        # Chunks of equal height: the last one is stored whole, however little of it is used.
        chunks=(-(-rows // -(-rows // _CHUNK_ROWS)), min(width, columns)) if rows else None,
        track_times=False,
    )
