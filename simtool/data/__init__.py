"""DATA: named data sets, .npz and .h5 files, folders of IDX files, and Python functions, behind one interface."""

from __future__ import annotations

import logging
from pathlib import Path

from simtool.data.named import NAMES, open_named
from simtool.data.source import ArraySource, DataSource
from simtool.errors import InputError
from simtool.importing import is_reference

__all__ = ["NAMES", "ArraySource", "DataSource", "data_path", "open_data"]

log = logging.getLogger("simtool")
_ALLOWED = (
    f"one of the names {', '.join(NAMES)}; an .npz or .h5 file (PATH:inputs,labels); a folder of IDX files; or "
    "package.module:function"
)
_HDF = (".h5", ".hdf5")
_FILES = (".npz", *_HDF)


def open_data(spec: str, split: str | None = None) -> DataSource:
    """The data that ``spec`` names, of ``split`` where the source has splits (train, unless said).

    Raises InputError, FormatError or OptionError with a message for the user. A split that the source does not have at all is ignored
    with a log line.
    """
    source = _open(spec, split)
    if split is not None and source.split is None:
        log.info(
            "%s has no splits: --split %s is ignored, all %d samples are used.",
            source.name,
            split,
            source.count,
        )
    return source


def data_path(spec: str) -> Path | None:
    """The file or folder that ``spec`` names; None for a named data set."""
    if spec in NAMES:
        return None
    path = _parse(spec)[0]
    return Path(spec.rpartition(":")[0]) if is_reference(spec) and not path.exists() else path


def _open(spec: str, split: str | None) -> DataSource:
    if not spec.strip():
        raise InputError(f"no data was given, --data is {spec!r}. Allowed is {_ALLOWED}.")
    if spec in NAMES:
        return open_named(spec, split)
    path, inputs, labels, asked = _parse(spec)
    if path.is_dir():
        from simtool.data.idx import open_idx

        return open_idx(path, split)
    if path.suffix in _FILES:
        if not path.is_file():
            raise InputError(f"the data file {path} does not exist. Check the path.")
        if path.suffix in _HDF:
            from simtool.data.hdf import HdfSource

            return HdfSource(path, inputs, labels, asked)
        from simtool.data.npz import open_npz

        return open_npz(path, inputs, labels, asked)
    if is_reference(spec):
        from simtool.data.function import open_function

        return open_function(spec, split)
    if path.is_file():
        raise InputError(f"{path} is no data file that can be read. Allowed is {_ALLOWED}.")
    raise InputError(f"there is no data called {spec!r}. Allowed is {_ALLOWED}.")


def _parse(spec: str) -> tuple[Path, str, str | None, bool]:
    """(path, name of the inputs, name of the labels or None to read none, whether the labels must be there)."""
    whole = Path(spec)
    if whole.exists() or ":" not in spec:
        return whole, "inputs", "labels", False
    head, _, names = spec.rpartition(":")
    path = Path(head)
    if path.suffix not in _FILES:
        return whole, "inputs", "labels", False
    inputs, comma, labels = names.partition(",")
    if not inputs or (comma and not labels) or "," in labels:
        raise InputError(
            f"the arrays of a data file are named as PATH:inputs or PATH:inputs,labels, got {spec!r}."
        )
    return path, inputs, labels or None, bool(comma)
