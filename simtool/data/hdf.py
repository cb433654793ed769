"""``.h5`` data, read in batches; links and datasets that lead elsewhere are refused."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import h5py
import numpy as np

from simtool.data.source import DataSource
from simtool.errors import FormatError, InputError

# deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf: filters inside HDF5 or h5py. Others would load a plug-in library.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset called ``name``, every link on the way checked."""
    group: h5py.Group = file
    parts = [part for part in name.split("/") if part]
    for depth, part in enumerate(parts):
        link = group.get(part, getlink=True)
        if link is None:
            raise InputError(
                f"{path} has no dataset {name!r}; {group.name} holds {', '.join(group) or 'nothing'}. Name them as "
                f"{path}:inputs,labels."
            )
        if not isinstance(link, h5py.HardLink):
            raise FormatError(
                f"{path}: {name!r} is a soft or external link, which is not followed. Store the data itself."
            )
        item = group.get(part)
        if depth + 1 < len(parts) and isinstance(item, h5py.Group):
            group = item
        elif depth + 1 == len(parts) and isinstance(item, h5py.Dataset):
            return item
        else:
            break
    raise InputError(f"{path}: {name!r} is not a dataset. Name them as {path}:inputs,labels.")


def _check(dataset: h5py.Dataset, name: str, path: Path) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise FormatError(
            f"{path}: {name!r} takes its values from other files, which are not followed. Store the data itself."
        )
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= _FILTERS:
        raise FormatError(
            f"{path}: {name!r} uses the filter(s) {sorted(filters - _FILTERS)}, which need a plug-in. Use gzip."
        )
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise InputError(
            f"{path}: {name!r} is of type {dataset.dtype}; numbers are needed. Store them as such."
        )
    if dataset.chunks is not None:
        wanted = prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        complete = dataset.id.get_num_chunks() >= wanted
    else:
        complete = dataset.id.get_storage_size() >= dataset.nbytes
    if not complete or dataset.id.get_storage_size() > path.stat().st_size:
        raise FormatError(
            f"{path}: {name!r} claims shape {dataset.shape} ({dataset.nbytes} bytes) but does not hold them. It is truncated, "
            "unfinished or tampered with; write it again."
        )


class HdfSource(DataSource):
    """Inputs in an HDF5 dataset."""

    def __init__(self, path: Path, inputs: str, labels: str | None, labels_asked: bool) -> None:
        self._path, self._inputs = path, inputs
        with self._file() as file:
            dataset = _dataset(file, inputs, path)
            _check(dataset, inputs, path)
            if dataset.ndim < 2:
                raise InputError(
                    f"{path}:{inputs} has shape {dataset.shape}; (samples, values...) is needed. Add an axis."
                )
            shape, dtype = dataset.shape, dataset.dtype
            found = None
            if labels is not None and (labels_asked or labels in file):
                values = _dataset(file, labels, path)
                _check(values, labels, path)
                if values.shape[:1] != shape[:1]:
                    raise InputError(
                        f"{path} holds {shape[0]} samples but labels of shape {values.shape}. Each sample needs one."
                    )
                found = np.asarray(values[()])
        super().__init__(str(path), None, shape[0], shape[1:], dtype, found)

    def _file(self) -> h5py.File:
        try:
            return h5py.File(self._path, "r", locking=False)
        except OSError as error:
            raise FormatError(
                f"{self._path} is not a readable HDF5 file ({error}). Write it again."
            ) from error

    def _raw(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        with self._file() as file:
            dataset = _dataset(file, self._inputs, self._path)
            for start in range(0, indices.size, size):
                wanted = indices[start : start + size]
                low, high = int(wanted[0]), int(wanted[-1]) + 1
                try:
                    # A range is read far faster than a list of rows; worth it unless most of it is thrown away.
                    if high - low <= 4 * wanted.size:
                        yield dataset[low:high][wanted - low]
                    else:
                        yield dataset[wanted]
                except (OSError, RuntimeError) as error:
                    raise FormatError(f"{self._path} is damaged ({error}). Write it again.") from error
