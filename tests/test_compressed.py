"""Compressed CSR: what goes in comes out, damage is noticed, and the sizes are those of the formulas."""

from __future__ import annotations

from math import ceil, comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from simtool.errors import FormatError, InputError, OptionError
from simtool.inference.compressed import (
    VALUE_TYPES,
    Sizes,
    compress,
    decompress,
    log2_binomial,
    sim_index_bits,
    sizes,
)


def _random(rows: int, columns: int, density: float, seed: int) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    return sparse.csr_array(values)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 30),
    st.integers(0, 700),
    st.sampled_from([0.0, 0.003, 0.05, 0.5, 1.0]),
    st.integers(0, 1000),
    st.sampled_from(VALUE_TYPES),
)
def test_what_goes_in_comes_out(rows: int, columns: int, density: float, seed: int, kind: str) -> None:
    matrix = _random(rows, columns, density, seed)
    packed = compress(matrix, kind)
    found = decompress(packed.payload)
    expected = matrix.toarray().astype(kind).astype(np.float64)
    assert found.shape == matrix.shape
    assert (found.toarray() == expected).all()
    assert found.has_canonical_format
    assert found.nnz == np.count_nonzero(expected)
    assert packed.index_bytes + packed.value_bytes == len(packed.payload) - 32
    assert compress(found, kind).payload == packed.payload


@pytest.mark.parametrize("column", [255, 256, 257, 65_535, 65_536, 65_537, 2**31 - 2])
def test_columns_at_the_ends_of_integer_types(column: int) -> None:
    matrix = sparse.csr_array(
        (np.array([1.0, -2.0, 3.0]), np.array([0, column, column]), np.array([0, 0, 2, 2, 3])),
        shape=(4, column + 1),
    )
    found = decompress(compress(matrix).payload)
    assert (found.indices == [0, column, column]).all()
    assert (found.indptr == [0, 0, 2, 2, 3]).all()
    assert (found.data == [1.0, -2.0, 3.0]).all()


def test_order_duplicates_and_zeros_do_not_matter() -> None:
    messy = sparse.csr_array(
        (np.array([1.0, 2.0, 0.0, 1.5, 1e-60]), np.array([3, 1, 0, 3, 2]), np.array([0, 4, 5])), shape=(2, 4)
    )
    assert decompress(compress(messy).payload).toarray().tolist() == [[0, 2, 0, 2.5], [0, 0, 0, 0]]


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"not finite in float16. Use float32"):
        compress(np.array([[1e5]]), "float16")
    with pytest.raises(InputError, match="not finite in float32"):
        compress(np.array([[np.nan]]))
    with pytest.raises(OptionError, match="must be one of float32, float16, got 'int8'"):
        compress(np.eye(2), "int8")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_format_error_or_another_valid_matrix(data: st.DataObject) -> None:
    """Any flipped, missing or added bytes: never another exception, never columns outside the matrix."""
    payload = bytearray(compress(_random(6, 40, 0.3, 1)).payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 1, 17, len(payload)]))
    damaged = bytes(payload[: len(payload) - cut]) + data.draw(st.sampled_from([b"", b"", b"x"]))
    try:
        found = decompress(damaged)
    except FormatError:
        return
    found.check_format(full_check=True)
    assert np.isfinite(found.data).all()


def test_a_small_payload_that_unpacks_to_much_is_refused() -> None:
    import struct
    import zlib

    bomb = zlib.compress(bytes(10**7), 9)
    payload = struct.pack("<8sQQQ", b"simcsr1\0", 5, 5, 5) + struct.pack("<2sQQ", b"u1", 5, len(bomb)) + bomb
    with pytest.raises(FormatError, match="wrong length"):
        decompress(payload)


# --- sizes -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_binomial_is_that_of_the_integers(n: int, k: int) -> None:
    k = min(n, k)
    assert log2_binomial(n, k) == pytest.approx(log2(comb(n, k)), abs=1e-8, rel=1e-10)


def test_the_count_of_the_paper() -> None:
    """Appendix B, on its own terms: n_r ceil(log2 m) + m ceil(log2 n_c)."""
    assert sim_index_bits(256, 784, 20_000) == 256 * 15 + 20_000 * 10
    assert sim_index_bits(4, 8, 1) == 3
    assert sim_index_bits(4, 8, 0) == 0


def test_sizes_add_up_and_order_as_they_must() -> None:
    one, two = _random(256, 784, 0.1, 0), _random(10, 128, 0.3, 1)
    total = sizes([one, two])
    assert total == sizes([one]) + sizes([two])
    assert sizes([]) == Sizes()
    assert total.nnz == one.nnz + two.nnz
    assert total.dense_bytes == 4 * (256 * 784 + 10 * 128)
    assert total.csr_bytes == one.data.size * 8 + 257 * 4 + two.data.size * 8 + 11 * 4
    # a random pattern: below the paper's count, not below the bound, and within 6 % of it
    bits = 8 * total.index_bytes
    assert total.row_entropy_bits <= total.entropy_bits
    assert total.entropy_bits <= bits <= 1.06 * total.entropy_bits
    assert bits < 0.55 * total.sim_index_bits
    assert 2 * one.nnz < total.float16_bytes + total.index_bytes < total.float32_bytes + total.index_bytes
    assert total.sim_index_bits == sum(
        m.shape[0] * ceil(log2(m.nnz)) + m.nnz * ceil(log2(m.shape[1])) for m in (one, two)
    )


def test_a_regular_pattern_costs_next_to_nothing() -> None:
    """Ours is a code that looks at the pattern; the bound is an average over all of them."""
    matrix = sparse.csr_array(np.tile([0, 0, 0, 1.0], (256, 196)))
    assert 8 * sizes([matrix]).index_bytes < 0.02 * sizes([matrix]).entropy_bits
