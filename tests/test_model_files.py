"""model.h5: an exact round trip, the same bytes for the same model, and nothing believed that was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model

from simtool.errors import FormatError, InputError, OutputError
from simtool.model import CertificateTable, ImplicitModel, load_model


def assert_same(one: ImplicitModel, two: ImplicitModel) -> None:
    for spec in fields(ImplicitModel):
        a, b = getattr(one, spec.name), getattr(two, spec.name)
        if spec.name in "ABCD":
            for part in ("data", "indices", "indptr"):
                assert np.array_equal(getattr(a, part), getattr(b, part)), spec.name
                assert getattr(a, part).dtype == getattr(b, part).dtype
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b), spec.name
        elif isinstance(a, CertificateTable):
            for column in CertificateTable.columns():
                assert np.array_equal(getattr(a, column), getattr(b, column)), column
        else:
            assert a == b, spec.name


@pytest.fixture
def model() -> ImplicitModel:
    base = layered_model(output_map="softmax", activation="leaky_relu:0.1")
    return replace(base, scale=base.rescaling(), scaling=np.linspace(1, 2, base.n), input_shape=(2, 3))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.0, 1.0))
def test_round_trip_is_the_identity(
    seed: int, density: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = free_model(n=9, density=density, seed=seed)
    path = tmp_path_factory.mktemp("round") / "model.h5"
    assert_same(load_model(model.save(path)), model)


def test_round_trip_with_everything(model: ImplicitModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.h5")
    assert_same(load_model(path), model)
    assert_same(load_model(tmp_path), model)  # a run folder holds its model


def test_same_model_same_bytes(model: ImplicitModel, tmp_path: Path) -> None:
    one = model.save(tmp_path / "a.h5").read_bytes()
    two = load_model(tmp_path / "a.h5").save(tmp_path / "elsewhere.h5").read_bytes()
    assert one == two
    assert str(tmp_path).encode() not in one


def test_zeros_and_order_are_made_canonical(tmp_path: Path) -> None:
    model = layered_model()
    coordinates = model.B.tocoo()
    order = np.random.default_rng(0).permutation(coordinates.nnz)
    from scipy import sparse

    shuffled = sparse.coo_array(
        (
            np.r_[coordinates.data[order], 0.0],
            (np.r_[coordinates.row[order], 0], np.r_[coordinates.col[order], 0]),
        ),
        shape=model.B.shape,
    )
    other = replace(model, B=shuffled)
    assert other.nnz == model.nnz
    assert model.save(tmp_path / "a.h5").read_bytes() == other.save(tmp_path / "b.h5").read_bytes()


def test_existing_files_are_kept(model: ImplicitModel, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_text("precious")
    with pytest.raises(OutputError, match="overwrite"):
        model.save(path)
    assert path.read_text() == "precious"
    model.save(path, overwrite=True)
    assert load_model(path).n == model.n
    with pytest.raises(OutputError, match="does not exist"):
        model.save(tmp_path / "nowhere" / "model.h5")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "no.h5")
    with pytest.raises(InputError, match=r"holds no model\.h5"):
        load_model(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FormatError, match="not a readable HDF5"):
        load_model(tmp_path / "text.h5")


def _set(name: str, index: int, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def _replace(name: str, array: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = array

    return change


def _shape(name: str, shape: list[int]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name].attrs["shape"] = np.array(shape)

    return change


def _delete(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("A/data", 0, np.nan), "NaN"),
        (_set("A/indices", 0, 60_000), "outside"),
        (_set("A/indices", 1, 0), "rise strictly"),
        (_set("A/indptr", 1, 10_000), "indptr"),
        (_set("A/indptr", 0, 1), "indptr"),
        (_shape("A", [16, 17]), "A has shape|outside"),
        (_shape("A", [-1, 16]), "two integers"),
        (_shape("A", [2**40, 16]), "two integers"),
        (_delete("C"), "lacks the group"),
        (_delete("C/data"), "missing"),
        (_delete("header"), "header"),
        (_replace("A/data", np.zeros((2, 2))), "not a vector"),
        (_replace("scale", np.zeros(16)), "positive"),
        (_replace("scale", np.ones(3)), "16 positive"),
        (_replace("certificates/kind", np.full(19, 9, dtype=np.uint8)), "kind 9"),
        (_replace("certificates/dual", np.zeros(4)), "differ in length"),
        (_replace("header", np.frombuffer(b'{"blocks": "[]"}', dtype=np.uint8)), "cannot be read"),
    ],
)
def test_damage_is_refused(
    model: ImplicitModel, tmp_path: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    path = model.save(tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        del file["sha256"]  # or the checksum would speak first
        change(file)
    with pytest.raises(FormatError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_every_flipped_byte_is_noticed(model: ImplicitModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.h5")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            load_model(path)
    path.write_bytes(whole)
    load_model(path)


def test_truncation_and_versions_are_refused(model: ImplicitModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.h5")
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(FormatError):
            load_model(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(FormatError, match="version 99"):
        load_model(path)


def test_external_links_are_refused(model: ImplicitModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["scale"] = np.ones(16)
    with h5py.File(path, "r+") as file:
        del file["scale"]
        file["scale"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "scale")
    with pytest.raises(FormatError, match="link"):
        load_model(path)
