"""DATA: every kind of source gives the same float32 batches, and every bad one a message."""

from __future__ import annotations

import gzip
import hashlib
import logging
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtool.data import ArraySource, data_path, named, open_data
from simtool.errors import FormatError, InputError, OptionError

ZOO = str(Path(__file__).with_name("networks_zoo.py"))
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 4), dtype=np.uint8)
CLASSES = (np.arange(20) % 4).astype(np.uint8)


def everything(source, size: int = 7) -> np.ndarray:
    return np.concatenate(list(source.batches(source.select(None, 0), size)))


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
    code = codes[array.dtype.str.replace("|", "")]
    return bytes([0, 0, code, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def write_idx(folder: Path, pack: bool, prefix: str = "train-") -> Path:
    folder.mkdir(exist_ok=True)
    for word, array in (("images-idx3", PIXELS), ("labels-idx1", CLASSES)):
        content = idx_bytes(array)
        path = folder / f"{prefix}{word}-ubyte{'.gz' if pack else ''}"
        path.write_bytes(gzip.compress(content) if pack else content)
    return folder


def write_h5(path: Path, **options) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("inputs", data=PIXELS, **options)
        file.create_dataset("labels", data=CLASSES)
    return path


@pytest.fixture(params=["npz", "npz-compressed", "npz-fortran", "h5", "h5-gzip", "idx", "idx-gz", "array"])
def source(request: pytest.FixtureRequest, tmp_path: Path):
    kind = request.param
    if kind.startswith("npz"):
        save = np.savez_compressed if kind == "npz-compressed" else np.savez
        pixels = np.asfortranarray(PIXELS) if kind == "npz-fortran" else PIXELS
        save(tmp_path / "d.npz", inputs=pixels, labels=CLASSES)
        return open_data(str(tmp_path / "d.npz"))
    if kind.startswith("h5"):
        options = {"compression": "gzip", "chunks": (3, 3, 4)} if kind == "h5-gzip" else {}
        return open_data(str(write_h5(tmp_path / "d.h5", **options)))
    if kind.startswith("idx"):
        return open_data(str(write_idx(tmp_path / "idx", kind == "idx-gz")))
    return ArraySource("array", None, PIXELS, CLASSES)


def test_all_sources_agree(source) -> None:
    assert (source.count, source.sample_shape, source.has_labels) == (20, (3, 4), True)
    batches = list(source.batches(source.select(None, 0), 7))
    assert [len(batch) for batch in batches] == [7, 7, 6]
    assert all(batch.dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), PIXELS.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(source.labels(), CLASSES.astype(np.int64))
    chosen = source.select(6, 3)
    np.testing.assert_array_equal(chosen, np.sort(np.random.default_rng(3).choice(20, 6, replace=False)))
    np.testing.assert_array_equal(
        np.concatenate(list(source.batches(chosen, 4))), PIXELS[chosen].astype(np.float32) / np.float32(255)
    )
    # The same values in any container have the same hash.
    assert source.sha256() == ArraySource("a", None, PIXELS, CLASSES).sha256()
    assert source.sha256() != ArraySource("a", None, PIXELS, None).sha256()


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 19), min_size=1), st.integers(1, 25))
def test_any_choice_of_samples_is_read_right(tmp_path_factory, chosen: set[int], size: int) -> None:
    folder = tmp_path_factory.mktemp("laws")
    np.savez(folder / "d.npz", inputs=PIXELS)
    indices = np.array(sorted(chosen))
    for spec in (str(folder / "d.npz"), str(write_h5(folder / "d.h5"))):
        found = np.concatenate(list(open_data(spec).batches(indices, size)))
        np.testing.assert_array_equal(found, PIXELS[indices] / np.float32(255))


def test_names_of_arrays_types_and_missing_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    values = np.arange(12.0).reshape(4, 3)
    np.savez(path, a=values, b=np.array([0.5, 1.5, 2.5, 3.5]), c=np.array([True, False, True, True]))
    source = open_data(f"{path}:a,b")
    np.testing.assert_array_equal(everything(source), values.astype(np.float32))
    assert source.labels().dtype == np.float64
    assert open_data(f"{path}:a,c").labels().dtype == np.int64
    assert not open_data(f"{path}:a").has_labels
    with pytest.raises(InputError, match="no array 'inputs'; it has a, b, c"):
        open_data(str(path))
    with pytest.raises(InputError, match="no array 'z'"):
        open_data(f"{path}:a,z")
    with pytest.raises(InputError, match="PATH:inputs"):
        open_data(f"{path}:a,")


def test_digits_and_functions() -> None:
    train, test = open_data("digits", "train"), open_data("digits", "test")
    assert (train.count, test.count, train.sample_shape) == (1438, 359, (8, 8))
    pixels = everything(test)
    assert pixels.min() == 0.0
    assert pixels.max() == 1.0
    assert train.split == open_data("digits").split == "train"
    with pytest.raises(InputError, match="train and test, got 'valid'"):
        open_data("digits", "valid")
    source = open_data(f"{ZOO}:constant_data", "test")
    assert (source.count, source.split, source.sample_shape) == (12, "test", (2, 3))


def test_split_is_ignored_with_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "d.npz", inputs=PIXELS)
    with caplog.at_level(logging.INFO, logger="simtool"):
        assert open_data(str(tmp_path / "d.npz"), "test").split is None
    assert "--split test is ignored" in caplog.text


def test_idx_splits_and_folders(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "both", True)
    write_idx(folder, False, "t10k-")
    assert open_data(str(folder), "test").split == "test"
    only = write_idx(tmp_path / "only", False)
    with pytest.raises(InputError, match="no images of the split 'test'"):
        open_data(str(only), "test")
    assert open_data(str(write_idx(tmp_path / "plain", False, "")), "test").split is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no IDX images"):
        open_data(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="train and test"):
        open_data(str(folder), "valid")


@pytest.mark.parametrize("pack", [False, True])
def test_damaged_idx(tmp_path: Path, pack: bool) -> None:
    def write(content: bytes) -> str:
        folder = tmp_path / "d"
        folder.mkdir(exist_ok=True)
        name = "train-images-idx3-ubyte" + (".gz" if pack else "")
        (folder / name).write_bytes(gzip.compress(content) if pack else content)
        return str(folder)

    good = idx_bytes(PIXELS)
    with pytest.raises(FormatError, match="claims shape"):
        open_data(write(good[:-5]))
    huge = good[:4] + np.array([2**31, 3, 4], dtype=">u4").tobytes() + good[16:]
    with pytest.raises(FormatError, match="claims shape"):
        open_data(write(huge))
    with pytest.raises(FormatError, match="not an IDX file"):
        open_data(write(b"GARBAGE" * 9))
    with pytest.raises(FormatError, match="truncated"):
        open_data(write(b""))


def test_truncated_gzip(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "d", True)
    path = folder / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:40] + content[-8:])  # the length at the end still fits
    with pytest.raises(FormatError, match=r"damaged|truncated"):
        everything(open_data(str(folder)))


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(FormatError, match=r"not a readable \.npz"):
        open_data(str(path))
    np.savez(path, inputs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="Python objects"):
        open_data(str(path))
    np.savez(path, inputs=np.array([["a", "b"]]))
    with pytest.raises(InputError, match="numbers are needed"):
        open_data(str(path))
    np.savez(path, inputs=np.arange(4.0))
    with pytest.raises(InputError, match="Add an axis"):
        open_data(str(path))
    np.savez(path, inputs=PIXELS, labels=CLASSES[:-1])
    with pytest.raises(InputError, match="20 samples but 19 labels"):
        open_data(str(path))
    np.savez(path, inputs=PIXELS[:0])
    with pytest.raises(InputError, match="holds 0 samples"):
        open_data(str(path))
    with zipfile.ZipFile(path, "w") as archive:  # a header that claims 4 TB
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (500000000, 1000), }"
        header = header + b" " * (117 - len(header)) + b"\n"
        archive.writestr(
            "inputs.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234"
        )
    with pytest.raises(FormatError, match="claims shape"):
        open_data(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", b"not an array")
    with pytest.raises(FormatError, match="not a readable array"):
        open_data(str(path))


def test_bad_h5(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes(b"junk")
    with pytest.raises(FormatError, match="not a readable HDF5"):
        open_data(str(path))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["inputs"] = PIXELS
    makers = {
        "soft or external link": lambda file: file.__setitem__(
            "inputs", h5py.ExternalLink("other.h5", "inputs")
        ),
        "other files": lambda file: file.create_dataset(
            "inputs", (20, 12), "u1", external=[(str(tmp_path / "other.h5"), 0, 240)]
        ),
        "does not hold them": lambda file: file.create_dataset(
            "inputs", (10**9, 1000), "f8", chunks=(10, 10)
        ),
        "numbers are needed": lambda file: file.create_dataset("inputs", data=np.array([[b"ab"]])),
        "is not a dataset": lambda file: file.create_group("inputs"),
        "no dataset 'inputs'": lambda file: file.create_group("elsewhere"),
    }
    for message, make in makers.items():
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises((InputError, FormatError), match=message):
            open_data(str(path))
    layout = h5py.VirtualLayout((20, 3, 4), "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "inputs", (20, 3, 4))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("inputs", layout)
    with pytest.raises(FormatError, match="other files"):
        open_data(str(path))
    with h5py.File(path, "w") as file:
        file["a/inputs"], file["a/labels"] = PIXELS, CLASSES[:3]
    assert not open_data(f"{path}:a/inputs").has_labels
    with pytest.raises(InputError, match="Each sample needs one"):
        open_data(f"{path}:a/inputs,a/labels")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_non_finite_values_name_their_sample(bad: float) -> None:
    values = np.ones((10, 3))
    values[6, 1] = bad
    with pytest.raises(InputError, match="sample 6"):
        everything(ArraySource("a", None, values, None), 4)


def test_bad_labels_and_choices() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        ArraySource("a", None, PIXELS, np.full(20, np.nan))
    with pytest.raises(InputError, match="one class a sample"):
        ArraySource("a", None, PIXELS, np.ones((20, 3), dtype=int))
    with pytest.raises(InputError, match="integer class or float"):
        ArraySource("a", None, PIXELS, np.array(["x"] * 20))
    source = ArraySource("a", None, PIXELS, None)
    assert source.labels() is None
    for samples in (0, 21, -3):
        with pytest.raises(OptionError, match=f"1..20 for a, got {samples}"):
            source.select(samples, 0)
    with pytest.raises(OptionError, match="--seed"):
        source.select(3, -1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenet", "digits, fashion-mnist, mnist"),
        ("missing.npz", "does not exist"),
        ("missing.h5:a,b", "does not exist"),
        ("no_such_module_xyz:f", "importing"),
        (f"{ZOO}:not_a_module", "missing|positional|failed"),
        (f"{ZOO}:ACTIVATIONS", "a function f"),
        (__file__, "no data file"),
    ],
)
def test_wrong_names(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)


def test_named_data_from_a_local_copy_or_a_checked_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    write_idx(served, True)
    write_idx(served, True, "t10k-")
    sums = tuple(hashlib.md5((served / name).read_bytes()).hexdigest() for name in named._FILES)
    address = served.as_uri() + "/"
    monkeypatch.setattr(
        named, "_candidates", lambda name: [tmp_path / "nowhere", named.cache_folder() / name]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(named._SOURCES, "mnist", (address, ("0" * 32, *sums[1:])))
    with pytest.raises(InputError, match="checksum"):
        open_data("mnist")
    assert not list((named.cache_folder() / "mnist").iterdir())
    monkeypatch.setitem(named._SOURCES, "mnist", (address, sums))
    with pytest.raises(InputError, match="are not mnist"):  # downloaded, but these are not 60 000 images
        open_data("mnist")
    assert len(list((named.cache_folder() / "mnist").iterdir())) == 4
    monkeypatch.setitem(named._SOURCES, "fashion-mnist", ((tmp_path / "gone").as_uri() + "/", sums))
    with pytest.raises(InputError, match="SIMTOOL_DATA"):
        open_data("fashion-mnist")


@pytest.mark.parametrize("spec", ["", "  ", ":inputs", ":"])
def test_empty_paths(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, False)
    monkeypatch.chdir(tmp_path)  # an empty path must not mean the current folder
    with pytest.raises(InputError, match="Allowed is"):
        open_data(spec)


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_labels_that_are_not_named_are_not_read(tmp_path: Path, suffix: str) -> None:
    path, bad = tmp_path / f"d.{suffix}", np.full(20, np.nan)
    if suffix == "npz":
        np.savez(path, inputs=PIXELS, labels=bad)
    else:
        with h5py.File(path, "w") as file:
            file["inputs"], file["labels"] = PIXELS, bad
    with pytest.raises(InputError, match="NaN or infinity"):
        open_data(str(path))
    source = open_data(f"{path}:inputs")
    assert not source.has_labels
    np.testing.assert_array_equal(everything(source), PIXELS / np.float32(255))


def test_negative_seeds() -> None:
    source = ArraySource("a", None, PIXELS, None)
    for samples in (None, 3):
        with pytest.raises(OptionError, match=r"--seed must be .* got -1"):
            source.select(samples, -1)


@pytest.mark.parametrize("code", ["0", "1", "'no data'"])
def test_a_function_that_exits(tmp_path: Path, code: str) -> None:
    (tmp_path / "own.py").write_text(f"def f(split):\n    raise SystemExit({code})\n")
    with pytest.raises(
        InputError, match=rf"own\.py:f\('train'\) failed: SystemExit: {code.strip(chr(39))}\."
    ):
        open_data(f"{tmp_path / 'own.py'}:f")


def test_the_path_that_data_names(tmp_path: Path) -> None:
    assert data_path("digits") is None
    assert data_path("d.npz:inputs,labels") == Path("d.npz")
    assert data_path("own.py:f") == Path("own.py")
    assert data_path(str(tmp_path)) == tmp_path
