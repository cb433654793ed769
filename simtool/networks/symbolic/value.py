"""A tensor of the program, one sample of it, as an affine form."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from simtool.networks.graph import AffineForm
from simtool.networks.operators import Diagonal, Gather, LinearOperator, Shape, compose, merged

MOST_VALUES = 2**27  # in one sample of one tensor


def _is_nothing(operator: LinearOperator) -> bool:
    """Whether an operator takes none of its source's values, as one step of a sequence takes nothing from the others."""
    return isinstance(operator, Gather) and bool((operator.index < 0).all())


@dataclass(frozen=True, eq=False)
class Value:
    """``shape`` is one sample's; ``tensor`` is the program's tensor that holds this value, "" where there is none.

    ``batch`` is the axis that the samples have in the program: 0 but for networks that put something before them (the steps of a
    recurrent layer).
    """

    terms: tuple[tuple[str, LinearOperator], ...]
    bias: np.ndarray | None
    shape: Shape
    tensor: str
    batch: int = 0

    @property
    def full(self) -> Shape:
        """The shape with the samples' axis in its place, as if there were one sample."""
        return (*self.shape[: self.batch], 1, *self.shape[self.batch :])

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
        composed = ((source, compose(operator, inner)) for source, inner in self.terms)
        terms = tuple((source, found) for source, found in composed if not _is_nothing(found))
        bias = None if self.bias is None else operator.apply(self.bias[None])[0]
        return Value(terms, bias, shape, tensor, self.batch)

    def scaled(self, factor: np.ndarray, tensor: str) -> Value:
        """Each entry multiplied by ``factor`` (size,)."""
        terms = tuple((source, operator.scaled(factor)) for source, operator in self.terms)
        return Value(terms, None if self.bias is None else factor * self.bias, self.shape, tensor, self.batch)

    def shifted(self, vector: np.ndarray, tensor: str) -> Value:
        """``vector`` (size,) added."""
        bias = vector if self.bias is None else self.bias + vector
        return Value(self.terms, bias, self.shape, tensor, self.batch)

    def plus(self, other: Value, tensor: str) -> Value:
        """The sum of two values of one shape."""
        biases = [bias for bias in (self.bias, other.bias) if bias is not None]
        bias = np.sum(biases, axis=0) if biases else None
        return Value(merged(self.terms + other.terms), bias, self.shape, tensor, self.batch)
