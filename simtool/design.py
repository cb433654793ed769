"""The design matrix that many rows share, and products with it.

Sums over samples run in fixed tiles, in float64 whatever the states are stored in, so a result never depends on how
much memory or how many processes a machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from scipy import sparse

SAMPLE_TILE = 4096
# Of a larger design so many features are converted at a time: they stay in the cache.
FEATURE_CHUNK = 1024
# Features up to so many numbers are held in memory (64 MB); more are read in tiles of at most the second number.
_MOST_HELD, _MOST_TILE = 8_000_000, 4_200_000
# A sparse product pays below one non-zero in so many: its memory traffic costs more a number.
_SPARSE = 12
# Features are gathered by runs of neighbours where these are as long on average.
_LEAST_RUN = 8
# Of the samples: every eighth, 128 to 512 in all.
_SAMPLE_STEP, _SAMPLE_LEAST, _SAMPLE_MOST = 8, 128, 512


class Design:
    """The design matrix W (d, m) that many rows share; read in tiles of samples, never modified.

    ``gram`` is W W^T where it is known already (sample weights included), ``sample_weight`` (m,) the weight of
    every sample in the loss, finite and >= 0; None for 1. ``features`` (indices) says which rows of ``w`` are W's, None
    for all: a choice from a mapped array is then never copied as a whole, where W has a Gram matrix.
    """

    def __init__(
        self,
        w: np.ndarray,
        gram: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        self._stored, self._index = w, features
        self.d, self.m = w.shape[0] if features is None else features.size, w.shape[1]
        self.root_weight: np.ndarray | None = None
        if sample_weight is not None:
            weight = np.asarray(sample_weight, dtype=np.float64)
            if weight.shape != (self.m,) or not np.isfinite(weight).all() or (weight < 0).any():
                raise ValueError(f"sample_weight must be ({self.m},), finite and >= 0")
            self.root_weight = np.sqrt(weight)
        if gram is not None:
            self.__dict__["gram"] = gram

    @cached_property
    def _w(self) -> np.ndarray:
        """W as it is stored."""
        return self._stored if self._index is None else self._stored[self._index]

    def weighted(self, values: np.ndarray, samples: slice = slice(None)) -> np.ndarray:
        """``values`` (k, m) at ``samples``, times the square roots of their weights: float64."""
        return self._weigh(values[:, samples], samples)

    def _weigh(self, values: np.ndarray, samples: slice) -> np.ndarray:
        if self.root_weight is None:
            return np.ascontiguousarray(values, dtype=np.float64)
        return np.multiply(values, self.root_weight[samples], dtype=np.float64)

    def parts(self) -> Iterator[Part]:
        """The weighted W in ranges of samples, for products with many rows."""
        for samples in self._sample_tiles():
            yield Part(self, samples)

    def tiles(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Sample ranges and the weighted W restricted to them, as float64 (d, tile)."""
        for samples in self._sample_tiles():
            yield samples, self.features(slice(None), samples)

    def _sample_tiles(self) -> Iterator[slice]:
        for start in range(0, self.m, SAMPLE_TILE):
            yield slice(start, min(start + SAMPLE_TILE, self.m))

    def restricted(self, features: np.ndarray) -> Design:
        """The design of ``features`` (indices) alone, as float64 in memory."""
        part = Design(self.dense(features))
        if self.has_gram:
            part.__dict__["gram"] = self.gram[np.ix_(features, features)]
        return part

    @cached_property
    def gram(self) -> np.ndarray:
        """G = W W^T, (d, d) float64."""
        total = np.zeros((self.d, self.d))
        for _, tile in self.tiles():
            total += tile @ tile.T
        return total

    @property
    def has_gram(self) -> bool:
        """Whether G has been computed or given."""
        return "gram" in self.__dict__

    def rough_correlation(self, vectors: np.ndarray) -> np.ndarray:
        """vectors W^T for ``vectors`` (r, m) in the precision W is stored in: (r, d), one reading of W.

        Off by at most ``rough_error`` ||W_j|| ||vector||.
        """
        return _rough(self._w, vectors if self.root_weight is None else vectors * self.root_weight)

    def guessed_correlation(self, vectors: np.ndarray) -> np.ndarray:
        """The same from ``vectors`` (r, k) on :attr:`sample` alone, which is not None: only a guess, (r, d)."""
        assert self.sample is not None
        part, step = self.sample
        return step * _rough(part, vectors)

    @property
    def rough_error(self) -> float:
        """Relative error of :meth:`rough_correlation`: a generous multiple of its type's rounding.

        Measured on constant and smooth vectors, where rounding does not cancel: 22 eps at m = 2000, 93 at 400 000.
        """
        return max(64.0, self.m / 500.0) * float(np.finfo(_kind(self._w)).eps)

    def known_gram(self, features: np.ndarray) -> np.ndarray | None:
        """G restricted to ``features`` (d,) bool if G has been computed, else None."""
        if not self.has_gram:
            return None
        return self.gram if features.all() else self.gram[np.ix_(features, features)]

    @cached_property
    def dead(self) -> np.ndarray:
        """Features that are zero on every sample, (d,) bool."""
        if self.has_gram:
            return np.asarray(np.diag(self.gram) == 0.0)
        counted = slice(None) if self.root_weight is None else self.root_weight > 0
        return ~np.any(self._w[:, counted], axis=1)

    @cached_property
    def squares(self) -> np.ndarray:
        """||W_j||^2 of every feature, (d,)."""
        return np.array(np.diag(self.gram)) if self.has_gram else self.measured_squares

    @cached_property
    def measured_squares(self) -> np.ndarray:
        """The same from W itself, whatever G says: what a certificate goes by."""
        total = np.zeros(self.d)
        for samples in self._sample_tiles():
            for start in range(0, self.d, FEATURE_CHUNK):
                chunk = slice(start, start + FEATURE_CHUNK)
                values = self.features(chunk, samples)
                total[chunk] += np.einsum("ij,ij->i", values, values)
        return total

    @cached_property
    def norms(self) -> np.ndarray:
        """||W_j|| of every feature, (d,)."""
        return np.sqrt(self.squares)

    @cached_property
    def sample(self) -> tuple[np.ndarray, int] | None:
        """The weighted W (d, k) at every ``step``-th sample, as it is stored, and that step; None where samples are few.

        ``step`` times its products estimates those of W: good enough to guess with, at a fraction of the price.
        """
        step = max(_SAMPLE_STEP, -(-self.m // _SAMPLE_MOST))
        if self.m < _SAMPLE_LEAST * step:
            return None
        part = np.ascontiguousarray(self._w[:, ::step], dtype=_kind(self._w))
        if self.root_weight is not None:
            part = (part * self.root_weight[::step]).astype(part.dtype)
        return part, step

    def features(self, chosen: np.ndarray | slice, samples: slice) -> np.ndarray:
        """The features ``chosen`` of the weighted W at ``samples``, float64."""
        if isinstance(chosen, slice):
            if self._index is None:
                return self.weighted(self._stored[chosen], samples)
            chosen = np.arange(self.d)[chosen]
        return self._gathered(chosen, samples)

    def _gathered(self, chosen: np.ndarray, samples: slice) -> np.ndarray:
        """The features ``chosen`` (indices), neighbours at a time where they have some: gathering first copies twice."""
        at = chosen if self._index is None else self._index[chosen]
        if not at.size:
            return np.empty((0, len(range(*samples.indices(self.m)))))
        ends = np.flatnonzero(np.diff(at, append=-2) != 1) + 1
        if ends.size * _LEAST_RUN > at.size:
            return self._weigh(self._stored[at, samples], samples)
        out = np.empty((at.size, len(range(*samples.indices(self.m)))))
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            out[start:end] = self._stored[at[start] : at[end - 1] + 1, samples]
        if self.root_weight is not None:
            out *= self.root_weight[samples]
        return out

    def matrix(self, features: np.ndarray) -> np.ndarray | FeatureTiles:
        """The weighted W at ``features`` (d,) bool, in memory where that is small."""
        chosen = np.flatnonzero(features)
        small = chosen.size * self.m <= _MOST_HELD
        return self.dense(chosen) if small else FeatureTiles(self, chosen)

    def dense(self, features: np.ndarray) -> np.ndarray:
        """The rows ``features`` (indices or mask) of the weighted W as one float64 array."""
        if self._index is None:
            return self.weighted(self._stored[features])
        return self._gathered(np.arange(self.d)[features], slice(0, self.m))


def _kind(w: np.ndarray) -> np.dtype:
    """The type in which rough products with ``w`` run."""
    return w.dtype if w.dtype.kind == "f" else np.dtype(np.float64)


def _rough(w: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (r, m) times ``w`` (d, m) transposed in the type of ``w``: (r, d) float64.

    Each vector goes in with norm 1, so that units do not leave the range of that type, and comes out with its own.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    unit = vectors / np.where(norms > 0, norms, 1.0)[:, None]
    # This way round few vectors cost less.
    return np.ascontiguousarray((w @ unit.T.astype(_kind(w))).T) * norms[:, None]


class FeatureTiles:
    """Some features of the weighted W as a matrix (k, m) that is never in memory as a whole."""

    def __init__(self, design: Design, features: np.ndarray) -> None:
        self._design, self._features = design, features
        self.shape = (features.size, design.m)

    def tiles(self, samples: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Ranges of ``samples``, and the features there, float64; the ranges divide those of :meth:`Design.parts`."""
        length = SAMPLE_TILE
        while length > 1 and length * self._features.size > _MOST_TILE:
            length //= 2
        for start in range(samples.start, samples.stop, length):
            inner = slice(start, min(start + length, samples.stop))
            yield inner, self._design.features(self._features, inner)

    def chosen(self, features: np.ndarray) -> FeatureTiles:
        """Some of them (indices)."""
        return FeatureTiles(self._design, self._features[features])

    def dense(self) -> np.ndarray:
        """All of it in memory."""
        return self._design.dense(self._features)


class Part:
    """The weighted W at some samples, for products in float64; converted in chunks of features where it is large.

    ``samples`` is their range.
    """

    def __init__(self, design: Design, samples: slice) -> None:
        self._design, self.samples = design, samples
        self._whole = design.features(slice(None), samples) if design.d <= FEATURE_CHUNK else None

    def outputs(self, w: np.ndarray) -> np.ndarray:
        """``w`` (r, d) times W: (r, k). Only what some row uses is read."""
        if self._whole is not None:
            return outputs(w, self._whole)
        used = np.flatnonzero(w.any(axis=0))
        total = np.zeros((w.shape[0], self.samples.stop - self.samples.start))
        for start in range(0, used.size, FEATURE_CHUNK):
            chunk = used[start : start + FEATURE_CHUNK]
            total += outputs(w[:, chunk], self._design.features(chunk, self.samples))
        return total

    def correlations(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` (r, k) times W^T: (r, d)."""
        if self._whole is not None:
            return np.asarray(vectors @ self._whole.T)
        found = np.empty((vectors.shape[0], self._design.d))
        for start in range(0, self._design.d, FEATURE_CHUNK):
            chunk = slice(start, start + FEATURE_CHUNK)
            found[:, chunk] = vectors @ self._design.features(chunk, self.samples).T
        return found


def outputs(w: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """``w`` (r, d) times ``tile`` (d, k), by the non-zeros of ``w`` where they are few: (r, k)."""
    if np.count_nonzero(w) * _SPARSE < w.size:
        return np.asarray(sparse.csr_array(w) @ tile)
    return w @ tile
