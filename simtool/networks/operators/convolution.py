"""Convolutions in any number of dimensions, by im2col and GEMM, and as Toeplitz matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import LinearOperator, Shape
from simtool.networks.operators.chain import Chain
from simtool.networks.operators.sparse import Diagonal
from simtool.networks.operators.window import Window

_SLICE_BYTES = 2**26  # of the im2col array at a time


@dataclass(frozen=True, eq=False)
class Convolution:
    """``kernel`` (maps, images / groups, *taps) slid over an image of ``images`` channels; one :class:`Window` for each axis.

    It maps (images, *sizes) to (maps, *positions). ``transposed`` is the adjoint map, (maps, *positions) to (images, *sizes), which is what
    ConvTranspose computes; its kernel has the same layout.
    """

    kernel: np.ndarray
    windows: tuple[Window, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def image_shape(self) -> Shape:
        return (int(self.kernel.shape[1]) * self.groups, *(window.size for window in self.windows))

    @property
    def map_shape(self) -> Shape:
        return (int(self.kernel.shape[0]), *(window.positions for window in self.windows))

    @property
    def in_shape(self) -> Shape:
        return self.map_shape if self.transposed else self.image_shape

    @property
    def out_shape(self) -> Shape:
        return self.image_shape if self.transposed else self.map_shape

    @property
    def in_size(self) -> int:
        return prod(self.in_shape)

    @property
    def out_size(self) -> int:
        return prod(self.out_shape)

    @cached_property
    def entries(self) -> int:
        seen = np.ones(1, dtype=np.int64)  # by tap: at how many positions it sees a value
        for window in self.windows:
            seen = np.outer(seen, (window.seen() >= 0).sum(axis=0)).reshape(-1)
        used = np.count_nonzero(self.kernel.reshape(-1, seen.size), axis=0)
        return int(used @ seen)

    @property
    def row_entries(self) -> int:
        return self._image_entries if self.transposed else self._map_entries

    @property
    def column_entries(self) -> int:
        return self._map_entries if self.transposed else self._image_entries

    @property
    def _map_entries(self) -> int:
        return prod(self.kernel.shape[1:])

    @property
    def _image_entries(self) -> int:
        return int(self.kernel.shape[0]) // self.groups * prod(self.kernel.shape[2:])

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self._sliced(self._to_image if self.transposed else self._to_map, x, self.out_size)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        return self._sliced(self._to_map if self.transposed else self._to_image, g, self.in_size)

    def _sliced(
        self, function: Callable[[np.ndarray], np.ndarray], values: np.ndarray, width: int
    ) -> np.ndarray:
        columns = self.image_shape[0] * prod(self.kernel.shape[2:]) * prod(self.map_shape[1:])
        step = max(1, _SLICE_BYTES // (8 * columns))
        result = np.empty((len(values), width), dtype=np.result_type(values, self.kernel))
        for start in range(0, len(values), step):
            result[start : start + step] = function(values[start : start + step])
        return result

    @property
    def _grouped_kernel(self) -> np.ndarray:
        """(groups, maps / groups, images / groups * taps)."""
        return self.kernel.reshape(self.groups, self.kernel.shape[0] // self.groups, -1)

    def _spans(self) -> tuple[Shape, tuple[slice, ...], tuple[slice, ...]]:
        """The padded image's sizes, and where in it which part of the image lies (its end may be seen by no position)."""
        ends = [min(w.low + w.size, w.span) for w in self.windows]
        inside = [slice(w.low, end) for w, end in zip(self.windows, ends, strict=True)]
        taken = [slice(0, max(end - w.low, 0)) for w, end in zip(self.windows, ends, strict=True)]
        every = (slice(None), slice(None))
        return tuple(max(w.span, w.low) for w in self.windows), (*every, *inside), (*every, *taken)

    def _to_map(self, x: np.ndarray) -> np.ndarray:
        k, axes = len(x), len(self.windows)
        sizes, inside, taken = self._spans()
        image = x.reshape(k, *self.image_shape)
        padded = np.zeros((k, self.image_shape[0], *sizes), dtype=x.dtype)
        padded[inside] = image[taken]
        reach = tuple((w.taps - 1) * w.dilation + 1 for w in self.windows)
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))
        starts = tuple(slice(0, (w.positions - 1) * w.stride + 1, w.stride) for w in self.windows)
        view = view[
            (slice(None), slice(None), *starts, *(slice(None, None, w.dilation) for w in self.windows))
        ]
        view = view.reshape(k, self.groups, self.kernel.shape[1], *view.shape[2:])
        # (k, groups, channels, *positions, *taps) to (k, groups, channels, *taps, *positions)
        order = (0, 1, 2, *range(3 + axes, 3 + 2 * axes), *range(3, 3 + axes))
        columns = view.transpose(order).reshape(
            k, self.groups, self._grouped_kernel.shape[2], prod(self.map_shape[1:])
        )
        return (self._grouped_kernel @ columns).reshape(k, prod(self.map_shape))

    def _to_image(self, g: np.ndarray) -> np.ndarray:
        k = len(g)
        sizes, inside, taken = self._spans()
        places, taps = prod(self.map_shape[1:]), prod(self.kernel.shape[2:])
        maps = g.reshape(k, self.groups, self.map_shape[0] // self.groups, places)
        columns = self._grouped_kernel.transpose(0, 2, 1) @ maps
        columns = columns.reshape(k, self.image_shape[0], taps, *self.map_shape[1:])
        padded = np.zeros((k, self.image_shape[0], *sizes), dtype=columns.dtype)
        for number, tap in enumerate(np.ndindex(*self.kernel.shape[2:])):  # few; the positions go at once
            where = tuple(
                slice(t * w.dilation, t * w.dilation + (w.positions - 1) * w.stride + 1, w.stride)
                for t, w in zip(tap, self.windows, strict=True)
            )
            padded[(slice(None), slice(None), *where)] += columns[:, :, number]
        image = np.zeros((k, *self.image_shape), dtype=columns.dtype)
        image[taken] = padded[inside]
        return image.reshape(k, prod(self.image_shape))

    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(position, tap, value) of every tap that sees a value, flattened over the axes, by position and then by value."""
        position = tap = value = np.zeros(1, dtype=np.int64)
        for window in self.windows:
            seen = window.seen()
            p, t = np.nonzero(seen >= 0)
            position = (position[:, None] * window.positions + p).reshape(-1)
            tap = (tap[:, None] * window.taps + t).reshape(-1)
            value = (value[:, None] * window.size + seen[p, t]).reshape(-1)
        order = np.argsort(position, kind="stable")
        return position[order], tap[order], value[order]

    def matrix(self) -> sp.csr_array:
        position, tap, value = self._pattern()
        maps, images = self.kernel.shape[:2]
        places, pixels = prod(self.map_shape[1:]), prod(self.image_shape[1:])
        # A row holds, channel after channel, the values its position sees: the same layout for every map.
        counts = np.bincount(position, minlength=places)
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(position.size) - starts[position]
        slots = images * starts[position] + np.arange(images)[:, None] * counts[position] + within
        order = np.empty(images * position.size, dtype=np.int64)
        order[slots.reshape(-1)] = np.arange(order.size)
        channel, entry = np.divmod(order, max(position.size, 1))
        data = self.kernel.reshape(maps, images, -1)[:, channel, tap[entry]]
        group = np.arange(maps) // (maps // self.groups)
        wide = np.int64 if maps * order.size >= 2**31 else np.int32
        indices = ((channel * pixels + value[entry])[None] + (group * images * pixels)[:, None]).astype(wide)
        indptr = np.concatenate([[0], np.cumsum(np.tile(images * counts, maps))]).astype(wide)
        shape = (prod(self.map_shape), prod(self.image_shape))
        matrix = sp.csr_array((data.reshape(-1), indices.reshape(-1), indptr), shape=shape)
        if not self.transposed:
            return matrix
        turned = sp.csr_array(matrix.T)
        turned.sort_indices()
        return turned

    def scaled(self, factor: np.ndarray) -> LinearOperator:
        channels = _by_channel(factor, self.out_shape[0])
        if channels is None:
            return Chain(Diagonal(factor), self)
        return self._scaled(channels, self.transposed)

    def input_scaled(self, factor: np.ndarray) -> LinearOperator:
        """This operator times diag(factor), ``factor`` (in_size,)."""
        channels = _by_channel(factor, self.in_shape[0])
        if channels is None:
            return Chain(self, Diagonal(factor))
        return self._scaled(channels, not self.transposed)

    def _scaled(self, channels: np.ndarray, image: bool) -> Convolution:
        """The channels of the image, or of the maps, multiplied."""
        taps = (1,) * len(self.windows)
        if image:
            by_map = channels.reshape(self.groups, -1).repeat(self.kernel.shape[0] // self.groups, axis=0)
            kernel = self.kernel * by_map.reshape(*self.kernel.shape[:2], *taps)
        else:
            kernel = self.kernel * channels.reshape(-1, 1, *taps)
        return Convolution(kernel, self.windows, self.groups, self.transposed)


def _by_channel(factor: np.ndarray, channels: int) -> np.ndarray | None:
    """One factor for each channel, None if it varies inside a channel."""
    table = factor.reshape(channels, -1)
    return table[:, 0].copy() if np.all(table == table[:, :1]) else None
