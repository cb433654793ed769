"""A tensor of the program, one sample of it, as an affine form."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from simtool.networks.graph import AffineForm
from simtool.networks.operators import Diagonal, Gather, LinearOperator, Shape, compose, merged


@dataclass(frozen=True, eq=False)
class Value:
    """``shape`` is one sample's; ``tensor`` is the program's tensor that holds this value, "" where there is none."""

    terms: tuple[tuple[str, LinearOperator], ...]
    bias: np.ndarray | None
    shape: Shape
    tensor: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def form(self) -> AffineForm:
        return AffineForm(self.terms, self.bias, self.size)

    @property
    def selection(self) -> LinearOperator | None:
        """The operator, if this takes each of its values from one value of one source, perhaps multiplied, and adds nothing.

        A weight that follows may be composed with it: the product has no more entries than the weight.
        """
        if len(self.terms) == 1 and self.bias is None and isinstance(self.terms[0][1], Diagonal | Gather):
            return self.terms[0][1]
        return None

    @property
    def is_identity(self) -> bool:
        """Whether this is the input or one node's value, unchanged."""
        selection = self.selection
        return isinstance(selection, Diagonal) and selection.is_identity

    @property
    def is_plain(self) -> bool:
        """Whether this is the input or one node's value, with its entries chosen and ordered anew at most."""
        selection = self.selection
        return self.is_identity or (isinstance(selection, Gather) and selection.factor is None)

    def mapped(self, operator: LinearOperator, shape: Shape, tensor: str) -> Value:
        """``operator`` of this."""
        terms = tuple((source, compose(operator, inner)) for source, inner in self.terms)
        bias = None if self.bias is None else operator.apply(self.bias[None])[0]
        return Value(terms, bias, shape, tensor)

    def scaled(self, factor: np.ndarray, tensor: str) -> Value:
        """Each entry multiplied by ``factor`` (size,)."""
        terms = tuple((source, operator.scaled(factor)) for source, operator in self.terms)
        return Value(terms, None if self.bias is None else factor * self.bias, self.shape, tensor)

    def shifted(self, vector: np.ndarray, tensor: str) -> Value:
        """``vector`` (size,) added."""
        return Value(self.terms, vector if self.bias is None else self.bias + vector, self.shape, tensor)

    def plus(self, other: Value, tensor: str) -> Value:
        """The sum of two values of one shape."""
        biases = [bias for bias in (self.bias, other.bias) if bias is not None]
        bias = np.sum(biases, axis=0) if biases else None
        return Value(merged(self.terms + other.terms), bias, self.shape, tensor)
