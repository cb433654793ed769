"""Changes of a file as its own format sees it, with lengths and checksums made right again."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx

from fuzzing.mutations import (
    INTEGERS,
    Rng,
    integer_bytes,
    json_bytes,
    mutate_bytes,
    mutate_json,
    pick,
)

_DTYPES = (
    "<f4",
    ">f8",
    "<f2",
    "<i8",
    ">i2",
    "|u1",
    "|b1",
    "|O",
    "<U3",
    "|S2",
    "<c16",
    "<M8[s]",
    "|V4",
    "<f16",
)
_SHAPES = ((), (0,), (1,), (-1,), (2**31,), (2**40, 2**40), (3, -4), (2**63,), (0, 2**62), (1,) * 70)


# --- numpy and zip ----------------------------------------------------------------------------------------------------


def npy(content: bytes, rng: Rng) -> bytes:
    """An .npy file with another header."""
    way = rng.random()
    if way < 0.3 or content[:6] != b"\x93NUMPY":
        return mutate_bytes(content, rng)
    size = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + size], content[10 + size :]
    if way < 0.45:
        header = mutate_bytes(header, rng, most=2)
    else:
        fields: dict[str, Any] = eval(
            header.decode("latin1"), {"__builtins__": {}}
        )  # our own header, or a mutant's mutant
        fields = dict(fields)
        key = pick(rng, ("descr", "descr", "shape", "shape", "fortran_order", "more"))
        fields[key] = {
            "descr": pick(
                rng, (*_DTYPES, [("a", "<f4")], [("a", "|O")], "", "x" * 200, None, 7, "<f99999999")
            ),
            "shape": pick(rng, (*_SHAPES, *_SHAPES, None, 5, [3, 2], ("a",), (2.0,), (True, 3))),
            "fortran_order": pick(rng, (True, False, 1, None, "no")),
            "more": 1,
        }[key]
        header = repr(fields).encode("latin1", errors="replace")
        if rng.random() < 0.05:
            header = b"(" * 5000 + b")" * 5000
        if rng.random() < 0.9:
            header += b" " * (-(len(header) + 11) % 64) + b"\n"
    if rng.random() < 0.3:
        data = mutate_bytes(data, rng)
    version = content[6:8] if rng.random() < 0.9 else pick(rng, (b"\2\0", b"\3\0", b"\4\0", b"\0\0"))
    length = struct.pack(
        "<I" if version[0] >= 2 else "<H", len(header) if rng.random() < 0.95 else pick(rng, (0, 65535))
    )
    return b"\x93NUMPY" + version + length + header + data


def zipped(content: bytes, rng: Rng, member: Any = npy) -> bytes:
    """A zip file with changed members, each with the right CRC, or changed zip structures."""
    way = rng.random()
    if way < 0.25:
        return mutate_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    if not parts:
        return mutate_bytes(content, rng)
    chosen = int(rng.integers(len(parts)))
    name, data = parts[chosen]
    if way < 0.8:
        parts[chosen] = (name, member(data, rng))
    elif way < 0.9:
        parts[chosen] = (
            pick(rng, (name + "x", "", "../" + name, name.removesuffix(".npy"), "inputs.npy", "a" * 300)),
            data,
        )
    elif way < 0.95:
        parts.append((name, parts[0][1]))
    else:
        del parts[chosen]
    buffer = io.BytesIO()
    method = pick(
        rng,
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA),
    )
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name or "x"), data, method)
    result = buffer.getvalue()
    if rng.random() < 0.15:  # a field of the central directory
        at = result.rfind(b"PK\x01\x02") + int(rng.integers(4, 46))
        value = integer_bytes(rng)
        result = result[:at] + value + result[at + len(value) :]
    return result


def shard(content: bytes, rng: Rng) -> bytes:
    """A shard whose payload was changed and whose checksum is right."""
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    start = content.find(b"\n", content.find(b"\n") + 1) + 1
    payload = zipped(content[start:], rng)
    return b"SIMSHARD1\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx(content: bytes, rng: Rng) -> bytes:
    """An IDX file with another header, its length sometimes made to fit."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(2, min(20, len(changed)))) if len(changed) > 3 else 0
        value = integer_bytes(rng) if rng.random() < 0.5 else bytes([int(rng.integers(16))])
        changed[at : at + len(value)] = value
    if rng.random() < 0.5:
        changed += bytes(int(rng.integers(0, 500)))
    return bytes(changed)


def gzipped(content: bytes, rng: Rng) -> bytes:
    """A gzip file with changed content, or changed itself."""
    way = rng.random()
    if way < 0.35:
        return mutate_bytes(content, rng)
    inner = gzip.decompress(content)
    changed = gzip.compress(idx(inner, rng), mtime=0)
    if way < 0.5:  # a trailer that lies about the length, or a second member, or bytes after the end
        tail = pick(rng, (changed, b"\0" * 100, rng.bytes(20), b""))
        changed = changed[:-4] + struct.pack("<I", pick(rng, INTEGERS) % 2**32) + tail
    elif way < 0.55:  # a bomb
        changed = gzip.compress(inner[:16] + bytes(2**24), mtime=0)
    return changed


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' hash, by which HDF5 checks its metadata."""

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    position, left = 0, len(data)
    while left > 12:
        x, y, z = struct.unpack_from("<III", data, position)
        a, b, c = (a + x) & 0xFFFFFFFF, (b + y) & 0xFFFFFFFF, (c + z) & 0xFFFFFFFF
        a = ((a - c) & 0xFFFFFFFF) ^ rot(c, 4)
        c = (c + b) & 0xFFFFFFFF
        b = ((b - a) & 0xFFFFFFFF) ^ rot(a, 6)
        a = (a + c) & 0xFFFFFFFF
        c = ((c - b) & 0xFFFFFFFF) ^ rot(b, 8)
        b = (b + a) & 0xFFFFFFFF
        a = ((a - c) & 0xFFFFFFFF) ^ rot(c, 16)
        c = (c + b) & 0xFFFFFFFF
        b = ((b - a) & 0xFFFFFFFF) ^ rot(a, 19)
        a = (a + c) & 0xFFFFFFFF
        c = ((c - b) & 0xFFFFFFFF) ^ rot(b, 4)
        b = (b + a) & 0xFFFFFFFF
        position, left = position + 12, left - 12
    if left == 0:
        return c
    x, y, z = struct.unpack("<III", data[position:].ljust(12, b"\0"))
    a, b, c = (a + x) & 0xFFFFFFFF, (b + y) & 0xFFFFFFFF, (c + z) & 0xFFFFFFFF
    c = ((c ^ b) - rot(b, 14)) & 0xFFFFFFFF
    a = ((a ^ c) - rot(c, 11)) & 0xFFFFFFFF
    b = ((b ^ a) - rot(a, 25)) & 0xFFFFFFFF
    c = ((c ^ b) - rot(b, 16)) & 0xFFFFFFFF
    a = ((a ^ c) - rot(c, 4)) & 0xFFFFFFFF
    b = ((b ^ a) - rot(a, 14)) & 0xFFFFFFFF
    return ((c ^ b) - rot(b, 24)) & 0xFFFFFFFF


def _blocks(content: bytes) -> list[tuple[int, int]]:
    """(start, length without the checksum) of the superblock and of every object header."""
    found = [(0, 44)] if content[8:9] in (b"\2", b"\3") else []
    at = content.find(b"OHDR")
    while at >= 0:
        flags = content[at + 5] if at + 6 < len(content) else 0
        start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        length = start + width - at + int.from_bytes(content[start : start + width], "little")
        if at + length + 4 <= len(content) and length < 5000:
            found.append((at, length))
        at = content.find(b"OHDR", at + 4)
    return found


def metadata(content: bytes, rng: Rng) -> bytes:
    """An HDF5 file with a changed object header (or superblock) whose checksum is right."""
    blocks = _blocks(content)
    if not blocks:
        return mutate_bytes(content, rng)
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        start, length = pick(rng, blocks)
        for _ in range(int(rng.integers(1, 4))):
            at = start + int(rng.integers(8 if start == 0 else 4, length))
            value = integer_bytes(rng) if rng.random() < 0.6 else bytes([int(rng.integers(256))])
            value = value[: start + length - at]
            changed[at : at + len(value)] = value
        changed[start + length : start + length + 4] = _lookup3(
            bytes(changed[start : start + length])
        ).to_bytes(4, "little")
    return bytes(changed)


def reseal(content: bytes, digest: bytes) -> bytes:
    """One of our files with a right digest of its changed content; ``digest`` is the old one."""
    from simtool.hdf5.checksum import PLACEHOLDER

    at = content.find(digest)
    if at < 0:
        return content
    blank = content[:at] + PLACEHOLDER + content[at + len(digest) :]
    return content[:at] + hashlib.sha256(blank).hexdigest().encode() + content[at + len(digest) :]


def digest_of(content: bytes) -> bytes:
    """The digest in one of our files."""
    with h5py.File(io.BytesIO(content), "r") as file:
        return bytes(file["sha256"][()].tobytes()) if "sha256" in file else b"none"


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return [name for name in names if name != "sha256"]


def _array(rng: Rng, old: np.ndarray) -> Any:
    """``old`` with other values, another shape or another type."""
    array = np.array(old)
    way = rng.random()
    if way < 0.4 and array.size:
        flat = array.reshape(-1)
        value = pick(rng, (0, 1, -1, 2**31 - 1, 2**31, 2**62, np.nan, np.inf, 1e300, 1e-320, array.size))
        with np.errstate(all="ignore"):
            flat[int(rng.integers(flat.size))] = np.array([value]).astype(array.dtype)[0]
        return array
    if way < 0.7:
        return pick(
            rng,
            (
                array[:-1],
                np.concatenate([array, array[:1]]),
                array[:0],
                array[None],
                array[::-1],
                array.reshape(-1),
            ),
        )
    kind = pick(rng, ("f8", "f4", "f2", ">f8", "i8", "u1", "i4", "?", "c16", "S3", "u8"))
    with np.errstate(all="ignore"):
        return array.astype(kind)


def hdf5_objects(folder: Path, content: bytes, rng: Rng) -> bytes:
    """An HDF5 file with objects changed through the library itself."""
    path = folder / "changing.h5"
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        if "sha256" in file:
            del file["sha256"]
        for _ in range(int(rng.integers(1, 3))):
            names = _names(file)
            if not names:
                break
            name = "header" if "header" in names and rng.random() < 0.3 else pick(rng, names)
            item, way = file[name], rng.random()
            if name == "header" and way < 0.8 and isinstance(item, h5py.Dataset) and item.dtype == np.uint8:
                text = json_bytes(item[()].tobytes(), rng)
                del file["header"]
                file["header"] = np.frombuffer(text, dtype=np.uint8)
            elif way < 0.1:
                del file[name]
            elif way < 0.2:
                del file[name]
                other = pick(rng, list(_names(file)) or ["/"])
                file[name] = pick(
                    rng,
                    (h5py.SoftLink("/X"), h5py.ExternalLink("other.h5", "/X"), h5py.SoftLink(f"/{other}")),
                )
            elif way < 0.25:
                file[f"{name}-more"] = item
            elif isinstance(item, h5py.Group):
                if way < 0.4:
                    item["loop"] = file["/"]
                else:
                    item.attrs["shape"] = pick(
                        rng,
                        (5, [3], [3, -1], [2**31, 2**40], [0, 0], "no", [1.5, 2.0], np.zeros((3, 3)), [7, 9]),
                    )
            elif way < 0.8:
                array = _array(rng, item[()])
                del file[name]
                options: dict[str, Any] = {}
                if rng.random() < 0.3 and getattr(array, "size", 0) and np.ndim(array):
                    options = pick(rng, ({"compression": "gzip"}, {"chunks": True}, {"scaleoffset": 0}, {"fletcher32": True}, {"compression": "lzf", "shuffle": True}, {"maxshape": (None,) * np.ndim(array)}))  # fmt: skip
                try:
                    file.create_dataset(name, data=array, **options)
                except Exception:  # not every filter takes every type
                    file[name] = array
            elif way < 0.9:
                del file[name]
                shape = pick(rng, ((2**40,), (3, 2**35), (0, 5), (), (2**31, 1), (80, 10**11)))
                file.create_dataset(
                    name,
                    shape=shape,
                    dtype=pick(rng, ("f4", "f8", "i8", "u1")),
                    chunks=True if shape and 0 not in shape else None,
                )
            else:
                key = pick(rng, ("format", "format_version"))
                file.attrs[key] = pick(
                    rng, (0, 2, -1, 1.0, "states", np.bytes_(b"\xff\xfe"), [1, 2], np.bytes_("model"), 2**40)
                )
    return path.read_bytes()


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _attribute(item: onnx.AttributeProto, rng: Rng) -> None:
    way = pick(rng, ("value", "value", "value", "kind", "name"))
    if way == "kind":
        item.type = int(rng.integers(0, 15))
    elif way == "name":
        item.name = pick(rng, ("alpha", "axis", "transA", "transB", "to", "perm", "", "value", "more"))
    elif item.type == onnx.AttributeProto.INT:
        item.i = pick(rng, (-1, 0, 1, 2, 3, -(2**63), 2**63 - 1, 2**31, 99))
    elif item.type == onnx.AttributeProto.FLOAT:
        item.f = pick(rng, (0.0, -1.0, float("nan"), float("inf"), 1e38, 2.0, -0.0, 1e-45))
    elif item.type == onnx.AttributeProto.INTS and len(item.ints):
        item.ints[int(rng.integers(len(item.ints)))] = pick(rng, (-1, 0, 1, 2, 2**62, -(2**63)))
    elif item.type == onnx.AttributeProto.TENSOR:
        _tensor(item.t, rng)
    else:
        item.s = pick(rng, (b"", b"tanh", b"none", b"\xff\xfe", b"x" * 2000))


def _tensor(tensor: onnx.TensorProto, rng: Rng) -> None:
    way = pick(rng, ("dim", "dim", "dims", "type", "raw", "raw", "external", "name", "cut"))
    if way == "dim" and len(tensor.dims):
        tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(
            rng, (0, 1, -1, 2, 3, 2**20, 2**31, 2**40, 2**62, -(2**63))
        )
    elif way == "dims":
        shape = pick(rng, ([], [1], [1, 1], [0], [2, 2, 2], [2**32, 2**32], [1] * 20))
        del tensor.dims[:]
        tensor.dims.extend(shape)
    elif way == "type":
        tensor.data_type = int(rng.integers(0, 25))
    elif way == "external":
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", pick(rng, ("/etc/passwd", "../../x", "input.onnx", "", "missing", "."))), ("offset", pick(rng, ("0", "-1", "99999999999", "x"))), ("length", pick(rng, ("0", "8", "-1", "999999999999999"))))[: int(rng.integers(1, 4))]:  # fmt: skip
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    elif way == "name":
        tensor.name = pick(rng, (tensor.name + "x", "", "x", "y"))
    elif way == "cut":
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif tensor.raw_data:
        raw = np.frombuffer(tensor.raw_data, dtype=np.uint8).copy()
        at = 4 * int(rng.integers(max(1, raw.size // 4)))
        value = np.array([pick(rng, (np.nan, np.inf, 0.0, -1.0, 1e30, 1e-45))], dtype="<f4").view(np.uint8)
        raw[at : at + 4] = value[: raw[at : at + 4].size]
        tensor.raw_data = raw.tobytes()
    else:
        del tensor.float_data[:]
        tensor.int64_data.extend([2**40])


_OPERATORS = ("Relu", "MatMul", "Add", "Gemm", "Softmax", "Reshape", "Flatten", "Constant", "Identity", "Sub", "Div", "Mul", "Pow", "Neg", "Erf", "Where", "Greater", "Clip", "Max", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Loop", "If", "Dropout", "Elu", "LeakyRelu", "Swish", "Gelu", "Tanh", "ConstantOfShape", "Expand", "Tile", "Range", "Conv", "NoSuch", "")  # fmt: skip


def _node(model: onnx.ModelProto, rng: Rng) -> None:
    graph = model.graph
    nodes = graph.node
    names = [*(i.name for i in graph.initializer), *(o for n in nodes for o in n.output), "x", "", "nowhere"]
    if not nodes:
        return
    index = int(rng.integers(len(nodes)))
    node, way = nodes[index], pick(rng, ("type", "type", "input", "input", "input", "output", "drop", "double", "domain", "attribute", "attribute", "attribute", "arity", "order", "name"))  # fmt: skip
    if way == "type":
        node.op_type = pick(rng, _OPERATORS)
    elif way == "input" and len(node.input):
        node.input[int(rng.integers(len(node.input)))] = pick(rng, names)
    elif way == "output" and len(node.output):
        node.output[int(rng.integers(len(node.output)))] = pick(rng, names)
    elif way == "drop":
        del nodes[index]
    elif way == "double":
        nodes.add().CopyFrom(node)
    elif way == "domain":
        node.domain = pick(rng, ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "own"))
    elif way == "arity":
        if rng.random() < 0.5:
            node.input.append(pick(rng, names))
        elif rng.random() < 0.5 and len(node.input):
            del node.input[-1]
        elif rng.random() < 0.5:
            node.output.append(f"extra{int(rng.integers(3))}")
        else:
            del node.output[:]
    elif way == "order" and len(nodes) > 1:
        other = int(rng.integers(len(nodes)))
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[other])
        nodes[other].CopyFrom(node)
        nodes[index].CopyFrom(copy)
    elif way == "name":
        node.name = pick(rng, ("", "a", "\n", "x" * 3000, "/a/b:0"))
    elif node.attribute and rng.random() < 0.7:
        _attribute(pick(rng, node.attribute), rng)
    else:
        name = pick(
            rng, ("alpha", "beta", "transA", "transB", "axis", "to", "allowzero", "keepdims", "min", "value")
        )
        with_kind = pick(rng, (1, -1, 2**40, 0.5, float("nan"), "tanh", [1, 2], [0.5]))
        node.attribute.append(onnx.helper.make_attribute(name, with_kind))


def _value(value: onnx.ValueInfoProto, rng: Rng) -> None:
    kind = value.type.tensor_type
    way = pick(rng, ("dim", "dim", "dim", "type", "rank", "name", "none"))
    if way == "dim" and len(kind.shape.dim):
        dim = pick(rng, kind.shape.dim)
        if rng.random() < 0.3:
            dim.dim_param = pick(rng, ("batch", "n", ""))
        else:
            dim.dim_value = pick(rng, (0, 1, -1, 2, 3, 5, 10**6, 2**31, 2**40, 2**62))
    elif way == "type":
        kind.elem_type = int(rng.integers(0, 25))
    elif way == "rank":
        kind.shape.dim.add().dim_value = int(rng.integers(1, 4))
    elif way == "name":
        value.name = pick(rng, ("x", "y", "", "other", value.name + "x"))
    elif rng.random() < 0.5:
        kind.ClearField("shape")
    else:
        value.type.Clear()


def onnx_model(content: bytes, rng: Rng) -> bytes:
    """An ONNX file with changed nodes, attributes, weights, shapes or versions."""
    if rng.random() < 0.1:
        return mutate_bytes(content, rng, most=3)
    model = onnx.ModelProto()
    model.ParseFromString(content)
    graph = model.graph
    for _ in range(int(rng.integers(1, 3))):
        way = rng.random()
        if way < 0.5:
            _node(model, rng)
        elif way < 0.7 and len(graph.initializer):
            _tensor(pick(rng, graph.initializer), rng)
        elif way < 0.8 and len(graph.input):
            _value(pick(rng, graph.input), rng)
        elif way < 0.85 and len(graph.output):
            _value(pick(rng, graph.output), rng)
        elif way < 0.9 and len(model.opset_import):
            pick(rng, model.opset_import).version = pick(rng, (0, 1, 8, 9, 11, 13, 17, 20, 99, -1, 2**62))
        elif way < 0.92:
            model.ir_version = pick(rng, (0, 1, 3, 8, 11, 99, 2**62))
        elif way < 0.95 and len(graph.node):
            function = model.functions.add()
            function.name, function.domain = pick(rng, ("Own", "Relu")), pick(rng, ("own", ""))
            function.input.append("a")
            function.output.append("b")
            function.node.add().CopyFrom(pick(rng, graph.node))
            if rng.random() < 0.5:  # calls itself
                inner = function.node.add()
                inner.op_type, inner.domain = function.name, function.domain
                inner.input.append("a")
                inner.output.append("b")
            model.opset_import.add().domain = function.domain
        elif way < 0.97:
            (graph.input if rng.random() < 0.5 else graph.output).add().name = pick(rng, ("x", "z", ""))
        elif len(graph.node):
            attribute = pick(rng, graph.node).attribute.add()
            attribute.name, attribute.type = "body", onnx.AttributeProto.GRAPH
            attribute.g.CopyFrom(onnx.GraphProto(name="inner"))
    return model.SerializeToString()


# --- weights ----------------------------------------------------------------------------------------------------------


def safetensors(content: bytes, rng: Rng) -> bytes:
    """A .safetensors file with another header, its length right."""
    if rng.random() < 0.3 or len(content) < 8:
        return mutate_bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(mutate_json(json.loads(content[8 : 8 + size]), rng)).encode()
    length = len(header) if rng.random() < 0.95 else pick(rng, INTEGERS) % 2**64
    return length.to_bytes(8, "little") + header + content[8 + size :]


def state_dict(content: bytes, rng: Rng) -> bytes:
    """A file of torch.save with changed members (its pickle among them), CRCs right."""
    return zipped(content, rng, lambda data, r: mutate_bytes(data, r, most=3) if data else data)


def deflated(content: bytes) -> bytes:
    """``content`` as zlib writes it."""
    return zlib.compress(content)
