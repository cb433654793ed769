"""Where the non-zeros of M = [A B; C D] are: counts by block, and a picture of any size of model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from simtool.model import SparseLayers
from simtool.stages.evaluate import Model, SparseNetwork

OUTPUT = "output"


@dataclass(frozen=True)
class Band:
    """A run of rows or columns of M with a name: a block, the inputs, the bias or the outputs."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class BlockCounts:
    """``counts[i, j]`` non-zeros of row band i and column band j."""

    rows: tuple[Band, ...]
    columns: tuple[Band, ...]
    counts: np.ndarray

    def density(self) -> np.ndarray:
        """Share of the entries of each pair that are not 0."""
        areas = np.outer([band.size for band in self.rows], [band.size for band in self.columns])
        return np.asarray(self.counts / np.maximum(areas, 1))


def whole(model: Model) -> sparse.csr_array:
    """M (n + q, n + p)."""
    if isinstance(model, SparseNetwork):
        return sparse.csr_array(sparse.block_diag(model.layers.matrices, format="csr"))
    top = sparse.hstack([model.A, model.B], format="csr")
    bottom = sparse.hstack([model.C, model.D], format="csr")
    return sparse.csr_array(sparse.vstack([top, bottom], format="csr"))


def bands(model: Model) -> tuple[tuple[Band, ...], tuple[Band, ...]]:
    """The row bands and the column bands of M."""
    if isinstance(model, SparseNetwork):
        return _layer_bands(model.layers)
    states = [Band(block.name, block.offset, block.size) for block in model.blocks]
    inputs = model.p - int(model.has_bias)
    columns = [*states, Band("input", model.n, inputs)]
    if model.has_bias:
        columns.append(Band("bias", model.n + inputs, 1))
    return (*states, Band(OUTPUT, model.n, model.q)), tuple(columns)


def _layer_bands(layers: SparseLayers) -> tuple[tuple[Band, ...], tuple[Band, ...]]:
    """One band of rows and one of features for each layer."""
    rows, columns = [], []
    row = column = 0
    for layer in layers.layers:
        rows.append(Band(layer.name, row, layer.rows))
        columns.append(Band(layer.name, column, layer.features))
        row, column = row + layer.rows, column + layer.features
    return tuple(rows), tuple(columns)


def count_blocks(model: Model) -> BlockCounts:
    """Non-zeros of every pair of bands."""
    rows, columns = bands(model)
    matrix = whole(model)
    row_of = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    i = np.searchsorted([band.start for band in rows], row_of, side="right") - 1
    j = np.searchsorted([band.start for band in columns], matrix.indices, side="right") - 1
    counts = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(counts, (i, j), 1)
    return BlockCounts(rows, columns, counts)


def layout(sizes: list[int], pixels: int, smallest: int) -> np.ndarray:
    """Pixel edges of bands of these sizes: extents grow with the square root, none is below ``smallest`` pixels.

    On a linear scale a layer of ten states beside 784 inputs would be too thin to see.
    """
    roots = np.sqrt(np.asarray(sizes, dtype=np.float64))
    extents = np.maximum(np.round(roots * (pixels / roots.sum())), smallest).astype(np.int64)
    return np.concatenate([[0], np.cumsum(extents)])


def raster(
    matrix: sparse.csr_array,
    rows: tuple[Band, ...],
    columns: tuple[Band, ...],
    row_edges: np.ndarray,
    column_edges: np.ndarray,
) -> np.ndarray:
    """Density of non-zeros of M in every pixel, in [0, 1]; bands lie between the pixel edges of :func:`layout`.

    A band smaller than its pixels is drawn with repeated pixels, a larger one is averaged.
    """
    row_bins, row_pixels, row_weight = _bins(rows, row_edges)
    column_bins, column_pixels, column_weight = _bins(columns, column_edges)
    row_of = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    counted = sparse.coo_array(
        (np.ones(matrix.nnz), (row_bins[row_of], column_bins[matrix.indices])),
        shape=(len(row_weight), len(column_weight)),
    ).toarray()
    density = counted / np.outer(row_weight, column_weight)
    return np.asarray(density[np.ix_(row_pixels, column_pixels)])


def _bins(bands_: tuple[Band, ...], edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin of each index, bin of each pixel, indices in each bin."""
    of_index, of_pixel, weight, start = [], [], [], 0
    for band, low, high in zip(bands_, edges[:-1], edges[1:], strict=True):
        pixels = int(high - low)
        count = min(band.size, pixels)
        index_bin = np.arange(band.size) * count // band.size
        of_index.append(start + index_bin)
        of_pixel.append(start + np.arange(pixels) * count // pixels)
        weight.append(np.bincount(index_bin, minlength=count))
        start += count
    return np.concatenate(of_index), np.concatenate(of_pixel), np.concatenate(weight).astype(np.float64)
