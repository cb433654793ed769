"""A linear layer of a network with its weights shared over positions: what its rows and features are.

A row is an output channel; its samples are the positions of every sample (im2col). The features of a row are the values that one
position sees: for a convolution the taps of the channels of its group, channel by channel, for a linear layer its inputs; then the
constant 1 where the layer has a bias. One layer may be used several times (the steps of a recurrent network), with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from simtool.errors import FormatError

KINDS = ("linear", "convolution", "transposed-convolution")
# A file that claims more is damaged.
_MOST = 2**24


@dataclass(frozen=True)
class LayerSpec:
    """One layer.

    Attributes
    ----------
    name : unique among the network's layers
    kind : one of KINDS
    weight : the network's own name of the weight
    weight_shape : of that tensor, as the network stores it; a linear layer's with more than two axes is a matrix of all its rows
    rows_first : a linear layer's weight is stored as (rows, features); False: (features, rows). True for convolutions
    start : a linear layer's rows are ``start : start + rows`` of the tensor, as in a packed projection
    alpha : the layer multiplies its weight by it
    bias, bias_shape, beta : the same for the bias; None without one
    rows : output channels
    groups : of a convolution; row i belongs to group i // (rows / groups)
    fan_in : values that one position of a group sees
    reads_input, is_output : it is fed by the network's input; its result is the network's output
    columns : samples of its rows
    """

    name: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]
    rows_first: bool
    start: int
    alpha: float
    bias: str | None
    bias_shape: tuple[int, ...]
    beta: float
    rows: int
    groups: int
    fan_in: int
    reads_input: bool
    is_output: bool
    columns: int

    def __post_init__(self) -> None:
        sizes = (self.rows, self.groups, self.fan_in, self.columns, *self.weight_shape)
        problem = None
        if self.kind not in KINDS:
            problem = f"its kind is {self.kind!r}, known are {', '.join(KINDS)}"
        elif min(sizes) < 1 or max(*sizes, prod(self.weight_shape)) > 2**31 or self.features > _MOST:
            problem = f"its sizes {sizes} are impossible"
        elif self.rows % self.groups or self.start < 0:
            problem = f"{self.rows} rows from {self.start} on do not make {self.groups} groups"
        elif not (np.isfinite(self.alpha) and np.isfinite(self.beta) and self.alpha and self.beta):
            problem = f"its factors are {self.alpha} and {self.beta}"
        elif self.kind == "linear":
            whole = self.weight_shape if self.rows_first else self.weight_shape[::-1]
            if len(whole) > 2 and self.rows_first:
                whole = (prod(whole[:-1]), whole[-1])
            if len(whole) != 2 or whole[1] != self.fan_in or self.start + self.rows > whole[0]:
                problem = f"a weight of shape {self.weight_shape} has no rows {self.start}..{self.start + self.rows}"
        elif len(self.weight_shape) < 3 or prod(self.weight_shape) != self.rows * self.fan_in:
            problem = f"a kernel of shape {self.weight_shape} does not make {self.rows} rows of {self.fan_in}"
        if problem is None and self.bias is not None and self.start + self.rows > prod(self.bias_shape):
            problem = f"a bias of shape {self.bias_shape} is too short for {self.rows} rows"
        if problem is not None:
            raise FormatError(f"the layer {self.name!r} is impossible: {problem}.")

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def features(self) -> int:
        """Rows of its design: the values that a position sees in every group, and the bias."""
        return self.groups * self.fan_in + int(self.has_bias)

    @property
    def group_rows(self) -> int:
        """Rows of each group."""
        return self.rows // self.groups

    def group_features(self, group: int) -> np.ndarray:
        """The features of the rows of ``group``, sorted."""
        own = np.arange(group * self.fan_in, (group + 1) * self.fan_in)
        return np.append(own, self.features - 1) if self.has_bias else own

    def to_json(self) -> dict[str, Any]:
        """What a JSON file gives back: lists, no tuples."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    # --- the network's tensors and rows -----------------------------------------------------------------------------------
    #
    # A table (rows, width) holds what each row may use: its own group's features and the bias. The matrix (rows, features) of the same
    # rows is mostly zeros where there are many groups.

    @property
    def width(self) -> int:
        """Coefficients of a row."""
        return self.fan_in + int(self.has_bias)

    def table(self, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The rows (rows, width) float64 that the network's own tensors stand for."""
        table = np.asarray(weight, dtype=np.float64)
        if self.kind == "linear":
            table = (table.reshape(-1, self.fan_in) if self.rows_first else table.T)[self._span]
        elif self.kind == "transposed-convolution":
            table = self._turned(table)
        table = table.reshape(self.rows, self.fan_in) * self.alpha
        if not self.has_bias:
            return np.ascontiguousarray(table)
        assert bias is not None
        shift = np.asarray(bias, dtype=np.float64).reshape(-1)[self._span] * self.beta
        return np.hstack([table, shift[:, None]])

    def matrix(self, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same as a matrix (rows, features)."""
        table = self.table(weight, bias)
        if self.groups == 1:
            return table
        found = np.zeros((self.rows, self.features))
        for group, rows in self._by_group():
            found[rows, self.group_features(group)] = table[rows]
        return found

    def compact(self, matrix: Any) -> np.ndarray:
        """The table of rows given as a matrix (rows, features), dense or sparse; a table stays as it is."""
        dense = (lambda part: part.toarray()) if hasattr(matrix, "toarray") else np.asarray
        if matrix.shape[1] == self.width:
            return np.asarray(dense(matrix), dtype=np.float64)
        found = np.empty((self.rows, self.width))
        for group, rows in self._by_group():
            start = group * self.fan_in
            found[rows, : self.fan_in] = dense(matrix[rows, start : start + self.fan_in])
            if self.has_bias:
                found[rows, -1:] = dense(matrix[rows, self.features - 1 : self.features])
        return found

    def outputs(self, table: np.ndarray, design: np.ndarray) -> np.ndarray:
        """The rows' results (rows, k) on ``design`` (features, k)."""
        found = np.empty((self.rows, design.shape[1]))
        for group, rows in self._by_group():
            found[rows] = table[rows] @ design[self.group_features(group)]
        return found

    def tensors(self, rows: Any, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
        """The network's tensors with these ``rows`` (a table or a matrix) in the place of their own, in their own types."""
        own = self.compact(rows)
        table = own[:, : self.fan_in] / self.alpha
        changed = np.array(weight, order="C")
        if self.kind == "linear":
            if self.rows_first:
                changed.reshape(-1, self.fan_in)[self._span] = table
            else:
                changed[:, self._span] = table.T
        elif self.kind == "transposed-convolution":
            outs = self.weight_shape[1]
            split = table.reshape(self.groups, outs, self.weight_shape[0] // self.groups, -1)
            changed[...] = split.swapaxes(1, 2).reshape(self.weight_shape)
        else:
            changed[...] = table.reshape(self.weight_shape)
        result = {self.weight: changed}
        if self.bias is not None:
            assert bias is not None
            shifted = np.array(bias, order="C")
            shifted.reshape(-1)[self._span] = own[:, -1] / self.beta
            result[self.bias] = shifted
        return result

    def _by_group(self) -> Iterator[tuple[int, slice]]:
        for group in range(self.groups):
            yield group, slice(group * self.group_rows, (group + 1) * self.group_rows)

    @property
    def _span(self) -> slice:
        return slice(self.start, self.start + self.rows)

    def _turned(self, kernel: np.ndarray) -> np.ndarray:
        """A transposed convolution's kernel (ins, rows / groups, *taps) as (rows, ins / groups, taps)."""
        ins, outs = kernel.shape[:2]
        split = kernel.reshape(self.groups, ins // self.groups, outs, -1)
        return split.swapaxes(1, 2).reshape(self.rows, ins // self.groups, -1)


def from_json(content: Sequence[Mapping[str, Any]]) -> tuple[LayerSpec, ...]:
    """The inverse of :meth:`LayerSpec.to_json`, for layers with different names. Raises FormatError."""
    try:
        layers = [LayerSpec(**_typed(item)) for item in content]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise FormatError(
            f"the description of a layer is damaged ({type(error).__name__}: {error})."
        ) from error
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        raise FormatError("two layers have the same name.")
    return tuple(layers)


def _typed(item: Mapping[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = {
        **dict.fromkeys(("name", "kind", "weight"), str),
        **dict.fromkeys(("start", "rows", "groups", "fan_in", "columns"), int),
        **dict.fromkeys(("rows_first", "reads_input", "is_output"), bool),
        **dict.fromkeys(("alpha", "beta"), float),
        **dict.fromkeys(("weight_shape", "bias_shape"), lambda sizes: tuple(int(size) for size in sizes)),
        "bias": lambda name: None if name is None else str(name),
    }
    return {key: read(item[key]) for key, read in types.items()}
