"""Rescaling: the same function, and a norm below one whatever the layers feed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool import activations
from simtool.blocks import Block
from simtool.model import ImplicitModel
from simtool.rescale import MODES, Form, Rescale, scaling

RELU = activations.make("relu")


def layers_with_skips(
    seed: int, depth: int, weight: float, skip: float
) -> tuple[Form, tuple[Block, ...], np.ndarray]:
    """A random layered network, last layer first, in which a layer may feed every later one."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, depth)
    n, p, q = int(sizes.sum()), 3, 2
    starts = n - np.cumsum(sizes)
    a, b = np.zeros((n, n)), np.zeros((n, p))
    blocks = []
    for layer in range(depth):
        rows = slice(starts[layer], starts[layer] + sizes[layer])
        parents = ["input"] if layer == 0 or rng.random() < skip else []
        if parents:
            b[rows, : p - 1] = weight * rng.normal(size=(sizes[layer], p - 1))
        for earlier in range(layer):
            if earlier == layer - 1 or rng.random() < skip:
                columns = slice(starts[earlier], starts[earlier] + sizes[earlier])
                a[rows, columns] = weight * rng.normal(size=(sizes[layer], sizes[earlier]))
                parents.append(f"h{earlier}")
        b[rows, -1] = rng.normal(size=sizes[layer])
        size = int(sizes[layer])
        blocks.append(Block(f"h{layer}", RELU, int(starts[layer]), size, (size,), (*parents, "bias")))
    c = weight * rng.normal(size=(q, n))
    form = Form(*(sp.csr_array(part) for part in (a, b, c, rng.normal(size=(q, p)))))
    u = np.vstack([rng.normal(size=(p - 1, 5)), np.ones(5)])
    return form, tuple(reversed(blocks)), u


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    depth=st.integers(1, 5),
    weight=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 5.0]),
    skip=st.sampled_from([0.0, 0.5, 1.0]),
    mode=st.sampled_from(MODES[1:]),
    gamma=st.sampled_from([1.01, 1.1, 3.0]),
)
def test_every_mode_brings_the_norm_below_one_and_keeps_the_function(
    seed: int, depth: int, weight: float, skip: float, mode: str, gamma: float
) -> None:
    form, blocks, u = layers_with_skips(seed, depth, weight, skip)
    scale = scaling(Rescale(mode, gamma), form, blocks)
    scaled = form.scaled(scale)
    norm = float(abs(scaled.A).sum(axis=1).max())
    assert norm < 1.0
    if mode == "uniform":
        # no weight grows
        assert (scale <= 1.0).all()
        assert norm <= 1.0 / gamma * (1 + 1e-12)
        assert norm <= abs(form.A).sum(axis=1).max() * (1 + 1e-12)
    one, two = (ImplicitModel(A=f.A, B=f.B, C=f.C, D=f.D, blocks=blocks).forward(u) for f in (form, scaled))
    np.testing.assert_allclose(two.X, scale[:, None] * one.X, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(two.Y, one.Y, rtol=1e-9, atol=1e-9)


def test_uniform_leaves_a_network_with_small_weights_and_a_skip_alone() -> None:
    # a -> b -> c -> d and a -> d: dividing by c = .44 < 1 would multiply the skip by c^-3
    def block(name: str, offset: int, *parents: str) -> Block:
        return Block(name, RELU, offset, 1, (1,), parents)

    blocks = (block("d", 0, "c", "a"), block("c", 1, "b"), block("b", 2, "a"), block("a", 3, "input"))
    a = np.zeros((4, 4))
    a[0, 1], a[0, 3], a[1, 2], a[2, 3] = 0.1, 0.3, 0.4, 0.4
    b = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.4, 0.0]])
    form = Form(*(sp.csr_array(part) for part in (a, b, [[0.4, 0.0, 0.0, 0.0]], np.zeros((1, 2)))))
    assert scaling(Rescale("uniform", 1.1), form, blocks).tolist() == [1.0] * 4


def test_uniform_divides_a_link_by_c_to_the_depth_it_crosses() -> None:
    form, blocks, _ = layers_with_skips(3, 4, 2.0, 1.0)
    g = scaling(Rescale("uniform", 1.5), form, blocks)
    inputs = abs(form.A).sum(axis=1) + abs(form.B[:, :-1]).sum(axis=1)
    c = 1.5 * max(inputs.max(), (abs(form.C).sum(axis=1) + abs(form.D[:, :-1]).sum(axis=1)).max())
    assert c > 1.0
    scaled = form.scaled(g)
    for later in range(4):
        for earlier in range(later):
            rows, columns = blocks[3 - later].rows, blocks[3 - earlier].rows
            expected = form.A[rows, columns].toarray() * c ** (earlier - later)
            assert scaled.A[rows, columns].toarray() == pytest.approx(expected, rel=1e-12)
