"""A data source: inputs and labels of one split, read in batches as float32.

uint8 is divided by 255 whatever the source, so that a model is always evaluated on data transformed as its extraction data was.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod

import numpy as np

from simtool.errors import InputError, OptionError

_HASH_BATCH_BYTES = 2**18


class DataSource(ABC):
    """Inputs, and labels where known, of ``count`` samples of shape ``sample_shape``.

    A concrete source reads raw batches in increasing order of the samples; everything else is here.
    """

    name: str
    split: str | None
    count: int
    sample_shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(
        self,
        name: str,
        split: str | None,
        count: int,
        sample_shape: tuple[int, ...],
        dtype: np.dtype,
        labels: np.ndarray | None,
    ) -> None:
        if dtype.kind not in "fiub":
            raise InputError(
                f"the inputs of {name} are of type {dtype}; numbers are needed (float, integer or bool). Store them as such."
            )
        if count < 1 or prod(sample_shape) < 1:
            raise InputError(
                f"{name} holds {count} samples of shape {sample_shape}; at least one value is needed."
            )
        self.name, self.split, self.count = name, split, count
        self.sample_shape, self.dtype = tuple(int(size) for size in sample_shape), dtype
        self._labels = None if labels is None else _checked_labels(labels, count, name)

    @abstractmethod
    def _raw(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """The samples ``indices`` (increasing), ``size`` at a time, as stored."""

    @property
    def has_labels(self) -> bool:
        """Whether the source knows its labels."""
        return self._labels is not None

    def labels(self) -> np.ndarray | None:
        """Classes as int64 (count,), or targets of a regression as float64 (count,) or (count, q); None if unknown."""
        return self._labels

    def select(self, samples: int | None, seed: int) -> np.ndarray:
        """Sorted int64 indices: all, or ``samples`` of them without replacement by ``default_rng(seed)``."""
        if seed < 0:
            raise OptionError(f"--seed must be an integer from 0 up, got {seed}. Pass for instance --seed 0.")
        if samples is None:
            return np.arange(self.count, dtype=np.int64)
        if not 1 <= samples <= self.count:
            raise OptionError(
                f"--samples must be in 1..{self.count} for {self.name}"
                f"{f' ({self.split})' if self.split else ''}, got {samples}. Leave it out to use all."
            )
        chosen = np.random.default_rng(seed).choice(self.count, samples, replace=False)
        return np.sort(chosen).astype(np.int64)

    def batches(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """The samples ``indices`` (increasing) as float32 arrays (k, *sample_shape), k <= size.

        Raises InputError that names the sample if a value is NaN or infinite (also in float32).
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices[0] < 0 or indices[-1] >= self.count or (np.diff(indices) <= 0).any()):
            raise OptionError(f"sample indices of {self.name} must increase within 0..{self.count - 1}.")
        if size < 1:
            raise OptionError(f"the batch size must be above 0, got {size}.")
        done = 0
        for raw in self._raw(indices, size):
            batch = self._convert(raw, indices[done : done + len(raw)])
            done += len(raw)
            yield batch
        if done != indices.size:
            raise InputError(
                f"{self.name} gave {done} of {indices.size} samples. The file is truncated or was changed."
            )

    def _convert(self, raw: np.ndarray, indices: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            batch = np.ascontiguousarray(raw, dtype=np.float32)
        if raw.dtype == np.uint8:
            batch /= np.float32(255.0)
        if not np.isfinite(batch).all():
            bad = ~np.isfinite(batch.reshape(len(batch), -1)).all(axis=1)
            raise InputError(
                f"{self.name}: sample {int(indices[np.argmax(bad)])} holds NaN, infinity or a value too large for float32 "
                f"({int(bad.sum())} such sample(s) in this batch). Remove or repair them."
            )
        return batch

    def sha256(self) -> str:
        """A hash of the inputs as stored (type, shape, bytes) and of the labels: the same for any container."""
        digest = hashlib.sha256(f"{self.dtype.str[1:]} {(self.count, *self.sample_shape)}".encode())
        size = max(1, _HASH_BATCH_BYTES // max(1, prod(self.sample_shape) * self.dtype.itemsize))
        little = self.dtype.newbyteorder("<")
        for raw in self._raw(np.arange(self.count, dtype=np.int64), size):
            digest.update(np.ascontiguousarray(raw, dtype=little).tobytes())
        if self._labels is not None:
            kind = np.dtype("<i8" if self._labels.dtype.kind == "i" else "<f8")
            digest.update(f"{kind} {self._labels.shape}".encode())
            digest.update(np.ascontiguousarray(self._labels, dtype=kind).tobytes())
        return digest.hexdigest()


class ArraySource(DataSource):
    """A source whose inputs are an array in memory, (count, *sample_shape)."""

    def __init__(self, name: str, split: str | None, inputs: np.ndarray, labels: np.ndarray | None) -> None:
        if inputs.ndim < 2:
            raise InputError(
                f"the inputs of {name} have shape {inputs.shape}; (samples, values...) is needed. Add an axis."
            )
        super().__init__(name, split, inputs.shape[0], inputs.shape[1:], inputs.dtype, labels)
        self._inputs = inputs

    def _raw(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for start in range(0, indices.size, size):
            yield self._inputs[indices[start : start + size]]


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    if labels.dtype.kind not in "fiub" or labels.ndim not in (1, 2):
        raise InputError(
            f"the labels of {name} are {labels.dtype} of shape {labels.shape}; one integer class or float target (or a row of "
            "targets) a sample is needed."
        )
    if len(labels) != count:
        raise InputError(f"{name} holds {count} samples but {len(labels)} labels. Each sample needs one.")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise InputError(f"the labels of {name} hold NaN or infinity. Remove or repair those samples.")
        return labels.astype(np.float64)
    if labels.ndim == 2 and labels.shape[1] != 1:
        raise InputError(
            f"the labels of {name} are integers of shape {labels.shape}; one class a sample is needed (float for targets)."
        )
    return labels.astype(np.int64).reshape(-1)
