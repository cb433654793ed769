"""``.h5`` data, read in batches; links and datasets that lead elsewhere are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np

from simtool import hdf5
from simtool.data.source import DataSource
from simtool.errors import FormatError, InputError


class HdfSource(DataSource):
    """Inputs in an HDF5 dataset."""

    def __init__(self, path: Path, inputs: str, labels: str | None, labels_asked: bool) -> None:
        self._path, self._inputs = path, inputs
        wanted = [] if labels is None else [labels]
        self._names = [inputs, *wanted] if labels_asked else [inputs]
        self._optional = [] if labels_asked else wanted
        with self._open() as datasets:
            dataset = datasets[inputs]
            if dataset.ndim < 2:
                raise InputError(
                    f"{path}:{inputs} has shape {dataset.shape}; (samples, values...) is needed. Add an axis."
                )
            shape, dtype = dataset.shape, dataset.dtype
            found = None
            if labels is not None and labels in datasets:
                values = datasets[labels]
                if values.shape[:1] != shape[:1]:
                    raise InputError(
                        f"{path} holds {shape[0]} samples but labels of shape {values.shape}. Each sample needs one."
                    )
                found = np.asarray(self._read(values, ()))
        super().__init__(str(path), None, shape[0], shape[1:], dtype, found)

    def _open(self) -> AbstractContextManager[dict[str, h5py.Dataset]]:
        return hdf5.open_foreign(self._path, self._names, self._optional)

    def _read(self, dataset: h5py.Dataset, wanted: object) -> np.ndarray:
        try:
            return np.asarray(dataset[wanted])
        except hdf5.DAMAGE as error:
            raise FormatError(f"{self._path} is damaged ({error}). Write it again.") from error

    def _raw(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        with self._open() as datasets:
            dataset = datasets[self._inputs]
            for start in range(0, indices.size, size):
                wanted = indices[start : start + size]
                low, high = int(wanted[0]), int(wanted[-1]) + 1
                # A range is read far faster than a list of rows; worth it unless most of it is thrown away.
                if high - low <= 4 * wanted.size:
                    yield self._read(dataset, slice(low, high))[wanted - low]
                else:
                    yield self._read(dataset, wanted)
