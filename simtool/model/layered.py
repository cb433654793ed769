"""Sparse rows of a network's own layers, weights shared over positions: what takes the place of its weights.

The network around the layers stays what it is: so this is no implicit model by itself, and it is run by putting its rows back
(:meth:`SparseLayers.tensors`). Where the network is an affine graph, the file holds the implicit model that results as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from simtool.errors import FormatError, InputError
from simtool.layers import LayerSpec
from simtool.model.certificates import CertificateTable


@dataclass(frozen=True, eq=False)
class SparseLayers:
    """The layers of one network with sparse rows.

    Attributes
    ----------
    layers : what each is, in the order of their rows
    matrices : (rows, features) float64 CSR for each, biases in the last column
    certificates : one line a row, layer after layer, or None
    carried_nnz : non-zero parameters of the network that belong to no layer; they stay and are counted
    baseline_nnz, baseline_bytes : of the network: non-zero explicit parameters, and 4 bytes for each parameter
    input_shape, outputs, output_map : of the network
    fingerprints, header_extra : what it was made from, and how
    """

    layers: tuple[LayerSpec, ...]
    matrices: tuple[sparse.csr_array, ...]
    certificates: CertificateTable | None = None
    carried_nnz: int = 0
    baseline_nnz: int = 0
    baseline_bytes: int = 0
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    output_map: str | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    header_extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.matrices):
            raise FormatError(
                f"{len(self.matrices)} matrices for {len(self.layers)} layers; one is needed for each."
            )
        for layer, matrix in zip(self.layers, self.matrices, strict=True):
            if matrix.shape != (layer.rows, layer.features):
                raise FormatError(
                    f"the layer {layer.name} has a matrix of shape {matrix.shape}, ({layer.rows}, {layer.features}) is needed."
                )
        if self.certificates is not None and len(self.certificates) != self.rows:
            raise FormatError(
                f"{len(self.certificates)} certificates for {self.rows} rows; one is needed for each."
            )

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each layer, and the number of all rows."""
        return np.concatenate([[0], np.cumsum([layer.rows for layer in self.layers])])

    @property
    def rows(self) -> int:
        return sum(layer.rows for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Non-zero parameters of the sparse network: those of the rows, and what is carried."""
        return sum(int(matrix.nnz) for matrix in self.matrices) + self.carried_nnz

    @property
    def sparsity(self) -> float:
        """1 - nnz / baseline_nnz; NaN without a baseline."""
        return 1.0 - self.nnz / self.baseline_nnz if self.baseline_nnz else float("nan")

    def place(self, row: int) -> tuple[int, int]:
        """Layer and row inside it of ``row``, counted over all layers. Raises InputError if there is none."""
        if not 0 <= row < self.rows:
            raise InputError(f"row must be in 0..{self.rows - 1} ({len(self.layers)} layers), got {row}.")
        layer = int(np.searchsorted(self.starts, row, side="right")) - 1
        return layer, row - int(self.starts[layer])

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices (into the layer's features) and values of ``row``, counted over all layers."""
        layer, inner = self.place(row)
        matrix = self.matrices[layer]
        span = slice(*matrix.indptr[inner : inner + 2])
        return matrix.indices[span].astype(np.int64), matrix.data[span]

    def tensors(self, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The network's tensors with these rows in the place of its ``own``, which it names; the others are not in it.

        Raises InputError where ``own`` lacks one or has it in another shape: it belongs to another network.
        """
        changed: dict[str, np.ndarray] = {}
        for layer, matrix in zip(self.layers, self.matrices, strict=True):
            for name, shape in ((layer.weight, layer.weight_shape), (layer.bias, layer.bias_shape)):
                if name is not None and (name not in own or own[name].shape != shape):
                    seen = "has none" if name not in own else f"has it with shape {own[name].shape}"
                    raise InputError(
                        f"the layer {layer.name} belongs to a tensor {name} of shape {shape}; the network given {seen}. Pass the network "
                        "that the states were extracted from."
                    )
            weight = changed.get(layer.weight, own[layer.weight])
            bias = None if layer.bias is None else changed.get(layer.bias, own[layer.bias])
            changed |= layer.tensors(matrix, weight, bias)
        return changed
