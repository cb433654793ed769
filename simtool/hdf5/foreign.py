"""HDF5 files of others: the datasets that the user names, if they hold their own numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py

from simtool.errors import FormatError, InputError
from simtool.hdf5 import guard
from simtool.hdf5.checking import DAMAGE, open_raw

# deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf: filters inside HDF5 or h5py. Others would load a plug-in library.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
_MOST_INFLATED = 1100  # times; deflate, the strongest of them, reaches 1032
_SLACK_BYTES = 2**20


def _find(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
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
        item = group[part]  # unlike get, it raises if the object is damaged
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
    stored = dataset.id.get_storage_size()
    if dataset.chunks is not None:
        wanted = prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        unpacked = wanted * prod(dataset.chunks) * dataset.dtype.itemsize
        complete = dataset.id.get_num_chunks() >= wanted and (
            unpacked <= (_MOST_INFLATED * stored + _SLACK_BYTES if filters else stored)
        )
    else:
        complete = stored >= dataset.nbytes
    if not complete or stored > path.stat().st_size:
        raise FormatError(
            f"{path}: {name!r} claims shape {dataset.shape} ({dataset.nbytes} bytes) but does not hold them. It is truncated, "
            "unfinished or tampered with; write it again."
        )


@contextmanager
def opened(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, h5py.Dataset]]:
    """The datasets ``names`` of ``path``, and those of ``optional`` that it has, checked. Raises InputError or FormatError."""
    with open_raw(path, "an HDF5 file at all") as file:
        try:
            wanted = [*names, *(name for name in optional if name in file)]
            found = {name: _find(file, name, path) for name in wanted}
            for name, dataset in found.items():
                _check(dataset, name, path)
        except DAMAGE as error:
            raise FormatError(f"{path} is damaged ({error}). Write it again.") from error
        yield found


@contextmanager
def open_foreign(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, h5py.Dataset]]:
    """:func:`opened`, after the guard has read them."""
    guard.check(path, {"task": "foreign", "names": [*names], "optional": [*optional]})
    with opened(path, names, optional) as found:
        yield found
