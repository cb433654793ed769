"""One operator after another, joined where that keeps both what they are, and sums of operators of one source."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from simtool.networks.operators.base import LinearOperator
from simtool.networks.operators.chain import Chain
from simtool.networks.operators.convolution import Convolution
from simtool.networks.operators.dense import Dense
from simtool.networks.operators.pool import Pool
from simtool.networks.operators.select import Gather
from simtool.networks.operators.sparse import Diagonal

Term = tuple[str, LinearOperator]


def compose(outer: LinearOperator, inner: LinearOperator) -> LinearOperator:
    """``outer`` after ``inner``; at most one of them may be a weight, since weights are never multiplied together."""
    if isinstance(inner, Diagonal):
        if inner.is_identity:
            return outer
        if isinstance(outer, Dense):
            return Dense(np.ascontiguousarray(outer.weight * inner.factor))
        if isinstance(outer, Convolution | Gather):
            return outer.input_scaled(inner.factor)
    if isinstance(outer, Diagonal):
        return inner.scaled(outer.factor)
    if isinstance(inner, Chain):
        return compose(compose(outer, inner.outer), inner.inner)
    if isinstance(outer, Gather) and isinstance(inner, Gather):
        return outer.of(inner)
    if isinstance(outer, Gather | Pool) and isinstance(inner, Gather | Pool | Diagonal):
        weights = sp.csr_array(outer.matrix() @ inner.matrix())
        weights.sort_indices()
        return Pool(weights, inner.in_shape, outer.out_shape)
    return Chain(outer, inner)


def merged(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """``terms`` with what one source gives by diagonals added up (x + x is 2x), and by disjoint selections joined."""
    found: list[Term] = []
    for source, operator in terms:
        for index, (other_source, other) in enumerate(found):
            if source != other_source:
                continue
            total = _sum(other, operator)
            if total is not None:
                found[index] = (source, total)
                break
        else:
            found.append((source, operator))
    return tuple(found)


def _sum(left: LinearOperator, right: LinearOperator) -> LinearOperator | None:
    if isinstance(left, Diagonal) and isinstance(right, Diagonal):
        return Diagonal(left.factor + right.factor)
    if isinstance(left, Gather) and isinstance(right, Gather):
        return left.joined(right)
    return None
