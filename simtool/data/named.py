"""Data sets known by name: digits, fashion-mnist and mnist."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from simtool.data.idx import open_idx
from simtool.data.source import ArraySource, DataSource
from simtool.errors import InputError
from simtool.temporary import beside

log = logging.getLogger("simtool")
_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Where each comes from, and the MD5 sums of the files as published there, in the order of _FILES.
_SOURCES = {
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
}
_SIZES = {"train": 60_000, "test": 10_000}
_TIMEOUT_SECONDS = 60

NAMES = ("digits", *_SOURCES)


def open_named(name: str, split: str | None) -> DataSource:
    """The data set ``name`` (one of NAMES); its splits are train (the default) and test."""
    chosen = split or "train"
    if chosen not in _SIZES:
        raise InputError(f"{name} has the splits train and test, got {chosen!r}.")
    if name == "digits":
        return _digits(chosen)
    folder = _local(name) or _download(name)
    source = open_idx(folder, chosen, name)
    if source.count != _SIZES[chosen] or source.sample_shape != (28, 28) or not source.has_labels:
        raise InputError(
            f"the files in {folder} are not {name}: {source.count} samples of shape {source.sample_shape}, expected "
            f"{_SIZES[chosen]} of (28, 28) with labels. Replace them, or remove the folder to download them."
        )
    return source


def _digits(split: str) -> DataSource:
    """scikit-learn's digits, 8 x 8 pixels scaled from 0..16 to [0, 1]; the last 20 % are the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    cut = len(data.images) - len(data.images) // 5
    rows = slice(0, cut) if split == "train" else slice(cut, None)
    pixels = (data.images[rows] / 16.0).astype(np.float32)
    return ArraySource("digits", split, pixels, np.asarray(data.target[rows]))


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/simtool/data, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simtool" / "data"


def _candidates(name: str) -> list[Path]:
    own = os.environ.get("SIMTOOL_DATA")
    return [*([Path(own) / name] if own else []), Path("/usr/share/datasets") / name, cache_folder() / name]


def _local(name: str) -> Path | None:
    """The first folder that holds all four files, plain or gzipped."""
    for folder in _candidates(name):
        if all((folder / file).is_file() or (folder / file.removesuffix(".gz")).is_file() for file in _FILES):
            return folder
    return None


def _download(name: str) -> Path:
    """Fetch the files into the cache, each checked against its published checksum."""
    address, sums = _SOURCES[name]
    folder = cache_folder() / name
    log.info("%s is not installed here; downloading it from %s into %s.", name, address, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, expected in zip(_FILES, sums, strict=True):
            if not (folder / file).is_file():
                _fetch(address + file, folder / file, expected)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise InputError(
            f"{name} is not installed and cannot be downloaded from {address} ({error}). Put its four IDX files into one of "
            f"{', '.join(str(path) for path in _candidates(name))}, or set SIMTOOL_DATA to the folder above "
            f"(fashion-mnist is Debian's package dataset-fashion-mnist)."
        ) from error
    return folder


def _fetch(address: str, target: Path, expected: str) -> None:
    temporary = beside(target)
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as reply, temporary.open("wb") as file:
            shutil.copyfileobj(reply, file)
        found = hashlib.md5(temporary.read_bytes(), usedforsecurity=False).hexdigest()
        if found != expected:
            raise InputError(
                f"{address} has the checksum {found}, {expected} was expected. The file was changed or the download damaged; "
                "try again later or install the data by hand."
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
