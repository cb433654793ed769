"""Every fault that the fuzzer has found, as a small file made by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import networks_zoo as zoo
import numpy as np
import onnx
import pytest
from fuzzing.mutations import mutate_bytes, mutate_json

from simtool.data import open_data
from simtool.engines.shards import read_shard, write_shard
from simtool.errors import FormatError, InputError
from simtool.model import load_model, save_model
from simtool.networks import NetworkSpec, load_network
from simtool.states import StatesHeader

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 4), dtype=np.uint8)
node = onnx.helper.make_node


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def header_bytes(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def newer_zip() -> bytes:
    content = bytearray(zip_bytes({"a.npy": npy_bytes(np.ones(2))}))
    at = content.rfind(b"PK\x01\x02")
    content[at + 6 : at + 8] = (127).to_bytes(2, "little")
    return bytes(content)


SHARDS = {
    "a plain array": npy_bytes(np.ones(3)),
    "nothing": b"",
    "a zip of another version": newer_zip(),
    "no arrays": zip_bytes({"a.npy": b"text"}),
    "packed": zip_bytes({"a.npy": npy_bytes(np.ones(3))}, zipfile.ZIP_DEFLATED),
    "too large": zip_bytes({"a.npy": header_bytes("(100000000000,)") + b"12345678"}),
    "negative": zip_bytes({"a.npy": header_bytes("(-1,)") + b"12345678"}),
    "objects": zip_bytes({"a.npy": header_bytes("(1,)", "|O") + b"12345678"}),
    "a header that does not end": zip_bytes({"a.npy": header_bytes("(((1,)") + b"12345678"}),
}


@pytest.mark.parametrize("payload", SHARDS.values(), ids=SHARDS.keys())
def test_shards_with_a_right_checksum_of_wrong_content(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "a.shard"
    path.write_bytes(b"SIMSHARD1\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    with pytest.raises(FormatError, match=r"is damaged .*Delete it and run again"):
        read_shard(path)


def test_shards_of_every_shape_come_back(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(3),
        "empty": np.zeros((0, 4)),
        "bits": np.array([True, False]),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    write_shard(tmp_path / "a.shard", arrays)
    found = read_shard(tmp_path / "a.shard")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable


def test_npz_members_without_a_suffix(tmp_path: Path) -> None:
    members = {"inputs": npy_bytes(PIXELS), "labels": npy_bytes(np.arange(20))}
    (tmp_path / "d.npz").write_bytes(zip_bytes(members))
    source = open_data(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(source.labels(), np.arange(20))
    assert len(next(source.batches(source.select(None, 0), 20))) == 20


def test_npz_members_with_names_that_are_no_text(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"inputs.npy": npy_bytes(PIXELS)}))
    content[6:8] = (0x800).to_bytes(2, "little")  # of the member itself: its name is UTF-8
    content[30] = 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"not a readable \.npz"):
        open_data(str(tmp_path / "d.npz"))


def test_a_gzip_file_whose_checksum_is_wrong(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + np.array(PIXELS.shape, dtype=">u4").tobytes() + PIXELS.tobytes()
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 1
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed)
    source = open_data(str(tmp_path))
    with pytest.raises(FormatError, match=r"damaged or truncated.*CRC"):
        list(source.batches(source.select(None, 0), 7))
    labels = bytearray(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 20]) + bytes(20)))
    labels[-8] ^= 1
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(FormatError, match=r"damaged or truncated.*CRC"):
        open_data(str(tmp_path))


def test_one_byte_that_crashes_the_hdf5_library(tmp_path: Path) -> None:
    """HDF5 2.0 believes the number of elements that the parameters of a filter claim, and writes behind its buffer."""
    path = tmp_path / "d.h5"
    with h5py.File(path, "w") as file:
        file["inputs"] = PIXELS
        file.create_dataset("labels", data=np.arange(20, dtype="i4") % 4, chunks=(7,), scaleoffset=0)
    content = bytearray(path.read_bytes())
    at = content.find(
        np.array([2, 0, 7, 0, 4], dtype="<u4").tobytes()
    )  # integers, no offset, 7 of them, of 4 bytes
    assert at > 0
    content[at + 10] = 128
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"d\.h5 is damaged"):  # SIGSEGV, or what other versions say
        open_data(str(path))


def states_header(**changed: object) -> dict[str, object]:
    header = StatesHeader(
        samples=3, inputs=3, states=2, outputs=1,
        blocks=(), output_parents=(), output_map=None, has_bias=True, input_shape=(2,), seed=0, rescale="none",
        baseline_nnz=1, baseline_bytes=4, network_sha256="", data_sha256="", network={}, data={},
        max_reconstruction_error=0.0, input_range=(0.0, 1.0),
    )  # fmt: skip
    return header.to_json() | changed


@pytest.mark.parametrize(
    "changed",
    [
        {"input_shape": [float("inf")]},
        {"samples": float("inf")},
        {"samples": float("nan")},
        {"blocks": [{"name": "a", "activation": "relu", "offset": float("inf"), "size": 1, "shape": [1], "parents": []}]},
        {"network": 5},
        {"input_range": 3},
        {"input_shape": [-1, -2], "states": 0},
    ],
)  # fmt: skip
def test_headers_with_values_that_no_field_holds(changed: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        StatesHeader.from_json(states_header(**changed), Path("s.h5"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("input_shape", [float("inf")]), ("input_shape", [-2, -3]), ("baseline_nnz", float("inf")), ("blocks", "[" * 10**5)],
)  # fmt: skip
def test_models_with_values_that_no_field_holds(tmp_path: Path, key: str, value: object) -> None:
    from model_cases import free_model

    save_model(free_model(n=3, p=7), tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        header = json.loads(file["header"][()].tobytes()) | {key: value}
        del file["header"], file["sha256"]
        file["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with pytest.raises(FormatError):
        load_model(tmp_path / "m.h5")


def test_deeply_nested_headers(tmp_path: Path) -> None:
    from model_cases import free_model

    save_model(free_model(n=3), tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["header"], file["sha256"]
        file["header"] = np.frombuffer(b"[" * 10**5, dtype=np.uint8)
    with pytest.raises(FormatError, match=r"header of .* is not JSON"):
        load_model(tmp_path / "m.h5")


def test_data_that_inflates_beyond_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        # One chunk far larger than the data in it: reading a number unpacks it whole.
        file.create_dataset("inputs", (2, 3), "i4", chunks=(2**16, 3), maxshape=(None, 3), compression="gzip")
        file["inputs"][:] = 0
    assert open_data(str(tmp_path / "d.h5")).count == 2
    monkeypatch.setattr("simtool.hdf5.foreign._MOST_INFLATED", 10)
    monkeypatch.setattr("simtool.hdf5.foreign._SLACK_BYTES", 0)
    with pytest.raises(FormatError, match="does not hold them"):
        open_data(str(tmp_path / "d.h5"))


W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
LINEAR = [node("MatMul", ["x", "W"], ["y"])]


def _wide(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40


def _batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**31


def _dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2


def _expand(model: onnx.ModelProto) -> None:
    """Constants of a terabyte out of a file of a kilobyte."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**18, 2**20, 1]), "big"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node.insert(0, node("Expand", ["one", "big"], ["huge"]))
    model.graph.node[1].input[1] = "huge"


def _broadcast(model: onnx.ModelProto) -> None:
    """The same with operators that are taken."""
    ones = np.ones(2**10, dtype=np.float32)
    for axis in range(3):
        shape = [1] * 4
        shape[axis] = 2**10
        model.graph.initializer.append(onnx.numpy_helper.from_array(ones.reshape(shape), f"c{axis}"))
    model.graph.node.extend(
        [node("Add", ["y", "c0"], ["a"]), node("Add", ["a", "c1"], ["b"]), node("Add", ["b", "c2"], ["c"])]
    )
    model.graph.output[0].name = "c"


def _clip(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, dtype=np.float32), "low"))
    model.graph.node.append(node("Clip", ["y", "low"], ["c"]))
    model.graph.output[0].name = "c"


@pytest.mark.parametrize("change", [_wide, _batch, _dims, _expand, _broadcast, _clip])
def test_networks_that_ask_for_too_much_or_cannot_be_read(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    path = zoo.hand_made(tmp_path / "n.onnx", LINEAR, {"W": W})
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        load_network(NetworkSpec(str(path)))
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


# --- the fuzzer itself ------------------------------------------------------------------------------------------------


def test_mutations_are_the_same_for_the_same_seed() -> None:
    content = bytes(range(256)) * 4
    some = [mutate_bytes(content, np.random.default_rng(seed)) for seed in range(50)]
    assert some == [mutate_bytes(content, np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(some)) > 45
    value = {"a": [1, 2.5, "x"], "b": {"c": None}}
    texts = {repr(mutate_json(json.loads(json.dumps(value)), np.random.default_rng(s))) for s in range(50)}
    assert len(texts) > 25


_PROBE = """
import os, sys, pickle
from pathlib import Path
sys.argv = ["probe"]
from fuzzing import worker
from fuzzing.targets import Target
from simtool.errors import InputError
folder = Path({folder!r})
watch = worker.Watch(folder)
def read(path):
    {code}
print(worker.judge(Target("t", (), "x", None, read, 0), folder / "x", watch, "right")[0])
"""


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("return 'right'", "accepted"),
        ("return 'other'", "wrong"),
        ("raise InputError('what is wrong')", "refused"),
        ("raise InputError('')", "message"),
        ("raise InputError('Traceback')", "message"),
        ("raise InputError('Unable to allocate 7 TiB')", "memory"),
        ("raise KeyError('a')", "traceback"),
        ("import warnings; warnings.warn('a')", "traceback"),
        ("raise SystemExit(0)", "traceback"),
        ("os.system('true'); return 'right'", "code"),
        ("eval('1 + 1'); return 'right'", "code"),
        ("pickle.loads(b'cos\\nsystem\\n.'); return 'right'", "code"),
        ("open('/etc/hostname').close(); return 'right'", "code"),
        ("(folder.parent / 'y').write_bytes(b''); return 'right'", "code"),
        ("(folder / 'y').write_bytes(b''); return 'right'", "accepted"),
    ],
)
def test_the_fuzzer_sees(tmp_path: Path, code: str, verdict: str) -> None:
    (tmp_path / "in").mkdir()
    program = _PROBE.format(folder=str(tmp_path / "in"), code=code)
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == verdict
