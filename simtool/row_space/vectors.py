"""Features and vectors that need not fit in memory: both are read in tiles of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

# Vectors up to so many numbers are kept between readings of the features (32 MB); more are evaluated at every reading.
_MOST_KEPT = 4_000_000
_TILE = 4096


class Features(Protocol):
    """The features F as a matrix W_F (|F|, m), float64."""

    shape: tuple[int, int]

    def tiles(self, samples: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """The ranges that make up ``samples``, and W_F there; a range that starts where a tile does has the same tiles."""

    def chosen(self, features: np.ndarray) -> Features:
        """Some of them (indices)."""

    def dense(self) -> np.ndarray:
        """All of W_F."""


class Held:
    """Features in memory."""

    def __init__(self, w: np.ndarray) -> None:
        self._w = w
        self.shape: tuple[int, int] = w.shape

    def tiles(self, samples: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """See :class:`Features`."""
        for start in range(samples.start, samples.stop, _TILE):
            inner = slice(start, min(start + _TILE, samples.stop))
            yield inner, self._w[:, inner]

    def chosen(self, features: np.ndarray) -> Held:
        """See :class:`Features`."""
        return Held(np.ascontiguousarray(self._w[features]))

    def dense(self) -> np.ndarray:
        """See :class:`Features`."""
        return self._w


class Vectors(Protocol):
    """``count`` vectors of m samples, evaluated where they are asked for."""

    count: int

    def at(self, samples: slice) -> np.ndarray:
        """The vectors at ``samples``, (count, k) float64; they are only read."""


class Kept:
    """Vectors in memory, ``values`` (r, m)."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.count = values, values.shape[0]

    def at(self, samples: slice) -> np.ndarray:
        """See :class:`Vectors`."""
        return self._values[:, samples]


class FeatureRows:
    """Features as vectors."""

    def __init__(self, w: Features) -> None:
        self.w, self.count = w, w.shape[0]

    def at(self, samples: slice) -> np.ndarray:
        """See :class:`Vectors`."""
        return np.concatenate([tile for _, tile in self.w.tiles(samples)], axis=1)


class LeftOver:
    """``vectors`` minus combinations of features, one after another: c_1 W_F, then c_2 W_F, each to undo rounding of the last."""

    def __init__(self, vectors: Vectors, w: Features, taken: Sequence[np.ndarray] = ()) -> None:
        self._w, self._samples = w, slice(0, w.shape[1])
        self.count, self._taken = vectors.count, list(taken)
        self._fits = vectors.count * w.shape[1] <= _MOST_KEPT
        self._vectors = keep(vectors, w.shape[1])

    def replace(self, coefficients: np.ndarray) -> None:
        """Take off ``coefficients`` (r, |F|), instead of all that was taken before."""
        self._taken = [coefficients]

    def take_off(self, coefficients: np.ndarray) -> None:
        """Take off ``coefficients`` (r, |F|) from what is left."""
        self._taken.append(coefficients)

    def at(self, samples: slice) -> np.ndarray:
        """See :class:`Vectors`."""
        if not self._taken:
            return self._vectors.at(samples)
        out = np.empty((self.count, samples.stop - samples.start))
        for inner, tile in self._w.tiles(samples):
            out[:, inner.start - samples.start : inner.stop - samples.start] = self._at(inner, tile)
        return out

    def _at(self, samples: slice, tile: np.ndarray) -> np.ndarray:
        left = self._vectors.at(samples)
        for coefficients in self._taken:
            left = left - coefficients @ tile
        return left

    def products(self, *, settle: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What is left times W_F^T (r, |F|), and its norms (r,), in one reading of W.

        ``settle`` keeps what is left in place of the vectors, where it fits.
        """
        total, squares = np.zeros((self.count, self._w.shape[0])), np.zeros(self.count)
        settled = (
            np.empty((self.count, self._samples.stop)) if settle and self._taken and self._fits else None
        )
        for samples, tile in self._w.tiles(self._samples):
            left = self._at(samples, tile)
            total += left @ tile.T
            squares += np.einsum("ij,ij->i", left, left)
            if settled is not None:
                settled[:, samples] = left
        if settled is not None:
            self._vectors, self._taken = Kept(settled), []
        return total, np.sqrt(squares)


def keep(vectors: Vectors, samples: int) -> Vectors:
    """``vectors`` in memory where they fit: they are then evaluated only once."""
    if isinstance(vectors, Kept) or vectors.count * samples > _MOST_KEPT:
        return vectors
    out = np.empty((vectors.count, samples))
    for start in range(0, samples, _TILE):
        inner = slice(start, min(start + _TILE, samples))
        out[:, inner] = vectors.at(inner)
    return Kept(out)


def as_vectors(vectors: Vectors | np.ndarray) -> Vectors:
    """``vectors``, whether they are in memory, (r, m), or not."""
    return Kept(vectors) if isinstance(vectors, np.ndarray) else vectors
