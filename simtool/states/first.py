"""The first samples of a states file, as if it held no others."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from simtool.errors import InputError
from simtool.states.reading import LayerStates, States


class _Columns:
    """Columns ``0 : k`` of a dataset (rows, m), read as a dataset is: by rows, or by rows and columns."""

    def __init__(self, dataset: Any, k: int) -> None:
        self._dataset, self._k = dataset, k
        self.shape = (dataset.shape[0], k)
        self.dtype = dataset.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if rows is Ellipsis or rows == ():
            rows = slice(None)
        inside = slice(*columns.indices(self._k)) if isinstance(columns, slice) else columns
        return np.asarray(self._dataset[rows, inside])


def first(source: States, k: int) -> States:
    """``source`` with its first ``k`` samples alone; it is known by the content of the whole file. Raises InputError.

    What the file says of its network stays, the sensitivities too, which are means over all of its samples.
    """
    if not 1 <= k <= source.m:
        raise InputError(f"{source.path} holds {source.m} samples; the first {k} of them were asked for.")
    if k == source.m:
        return source
    content = source.content_sha256()
    part = copy.copy(source)
    part.__dict__["_content_sha256"] = content
    layers = tuple(replace(spec, columns=spec.columns // source.m * k) for spec in source.header.layers)
    part.header = replace(source.header, samples=k, layers=layers)
    for name in ("U", "Z", "X", "Y"):
        setattr(part, name, _Columns(getattr(source, name), k))
    part.indices = source.indices[:k]
    part.labels = None if source.labels is None else source.labels[:k]
    part.layers = tuple(
        LayerStates(
            spec,
            _Columns(layer.design, spec.columns),
            _Columns(layer.targets, spec.columns),
            layer.teacher,
            layer.sensitivity,
        )
        for spec, layer in zip(layers, source.layers, strict=True)
    )
    return part
