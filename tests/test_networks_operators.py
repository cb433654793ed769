"""Every operator: its matrix, its application and its adjoint are one linear map, and scaling is a product from the left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from simtool.networks.operators import (
    Convolution,
    Dense,
    Diagonal,
    Gather,
    LinearOperator,
    Pool,
    SharedDense,
    Sparse,
    Window,
    compose,
    identity,
    signature,
)

RNG = np.random.default_rng(0)


def check(operator: LinearOperator) -> np.ndarray:
    """The laws of an operator; its matrix."""
    matrix = operator.matrix()
    assert matrix.shape == (operator.out_size, operator.in_size)
    assert matrix.dtype == np.float64
    assert matrix.has_sorted_indices
    dense = matrix.toarray()
    assert np.count_nonzero(dense) <= operator.entries
    assert (dense != 0).sum(axis=1).max() <= operator.row_entries
    assert (dense != 0).sum(axis=0).max() <= operator.column_entries
    x, g = RNG.normal(size=(3, operator.in_size)), RNG.normal(size=(3, operator.out_size))
    np.testing.assert_allclose(operator.apply(x), x @ dense.T, atol=1e-12)
    np.testing.assert_allclose(operator.adjoint(g), g @ dense, atol=1e-12)
    factor = RNG.normal(size=operator.out_size)
    np.testing.assert_allclose(
        operator.scaled(factor).matrix().toarray(), factor[:, None] * dense, atol=1e-12
    )
    assert operator.apply(x[:0]).shape == (0, operator.out_size)
    return dense


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3).flatmap(lambda axes: st.lists(st.integers(4, 6), min_size=axes, max_size=axes)),
    *(st.integers(1, 3) for _ in range(3)),
    *(st.integers(0, 2), st.integers(1, 2), st.booleans()),
)
def test_convolutions_are_torchs(
    sizes: list[int], taps: int, stride: int, groups: int, padding: int, dilation: int, transposed: bool
) -> None:
    axes = len(sizes)
    name = f"conv_transpose{axes}d" if transposed else f"conv{axes}d"
    fan_in, fan_out = (2 * groups, 1) if transposed else (groups, 2 * groups)
    kernel = torch.randn((fan_in, fan_out if transposed else 1, *(taps,) * axes), dtype=torch.float64)
    if not transposed:
        kernel = torch.randn((fan_out, 1, *(taps,) * axes), dtype=torch.float64)
    x = torch.randn((3, fan_in, *sizes), dtype=torch.float64)
    try:
        expected = getattr(F, name)(
            x, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation
        )
    except RuntimeError:  # the window is larger than the image, or nothing is left
        return
    image, places = (expected, x) if transposed else (x, expected)
    windows = tuple(
        Window(size, taps, count, stride, padding, dilation)
        for size, count in zip(image.shape[2:], places.shape[2:], strict=True)
    )
    operator = Convolution(kernel.numpy(), windows, groups, transposed)
    assert operator.in_shape == tuple(x.shape[1:])
    assert operator.out_shape == tuple(expected.shape[1:])
    assert operator.entries == operator.matrix().nnz
    np.testing.assert_allclose(operator.apply(x.reshape(3, -1).numpy()), expected.reshape(3, -1), atol=1e-12)
    check(operator)
    by_channel = np.repeat(RNG.normal(size=operator.out_shape[0]), operator.out_size // operator.out_shape[0])
    assert isinstance(operator.scaled(by_channel), Convolution)
    check(operator.scaled(by_channel))
    by_channel = np.repeat(RNG.normal(size=operator.in_shape[0]), operator.in_size // operator.in_shape[0])
    scaled = compose(operator, Diagonal(by_channel))
    assert isinstance(scaled, Convolution)
    np.testing.assert_allclose(
        scaled.matrix().toarray(), operator.matrix().toarray() * by_channel, atol=1e-12
    )


def _gather(outputs: int, inputs: int, factor: bool = False) -> Gather:
    index = RNG.integers(-1, inputs, size=outputs)
    return Gather(index, (inputs,), (outputs,), RNG.normal(size=outputs) if factor else None)


CASES: dict[str, LinearOperator] = {
    "dense": Dense(RNG.normal(size=(3, 6))),
    "shared": SharedDense(RNG.normal(size=(4, 3)), (2,)),
    "diagonal": Diagonal(RNG.normal(size=6)),
    "identity": identity(6),
    "sparse": Sparse(sp.random_array((4, 6), density=0.4, rng=1, format="csr")),
    "gather": _gather(7, 6),
    "weighted gather": _gather(5, 6, factor=True),
    "pool": Pool.along((2, 3), {1: sp.csr_array(np.array([[0.5, 0.5, 0.0]]))}),
    "convolution": Convolution(RNG.normal(size=(2, 2, 2)), (Window(3, 2, 2),)),
}


@pytest.mark.parametrize("name", CASES)
def test_laws(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "inner", [Diagonal(RNG.normal(size=6)), identity(6), _gather(6, 5), _gather(6, 8, factor=True)]
)
def test_composition_is_the_product(name: str, inner: LinearOperator) -> None:
    outer = CASES[name]
    product = compose(outer, inner)
    expected = outer.matrix().toarray() @ inner.matrix().toarray()
    np.testing.assert_allclose(check(product), expected, atol=1e-12)
    for first in (_gather(4, outer.out_size), Diagonal(RNG.normal(size=outer.out_size))):
        np.testing.assert_allclose(
            check(compose(first, product)), first.matrix().toarray() @ expected, atol=1e-12
        )


def test_signatures_tell_operators_apart() -> None:
    found = [b"".join(signature(operator)) for operator in CASES.values()]
    moved = Convolution(CASES["convolution"].kernel, (Window(3, 2, 2, low=1),))  # type: ignore[attr-defined]
    assert len({*found, b"".join(signature(moved))}) == len(CASES) + 1
    assert b"".join(signature(CASES["convolution"])) == found[-1]
