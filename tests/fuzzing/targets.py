"""The readers, the real files they are fuzzed from, and what an accepted input must satisfy.

A reader returns a digest of all it read, after checking that this is valid; an input whose checksum covers it must give the
digest of its seed. Everything else a reader may do is to raise SimtoolError.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from fuzzing import formats
from fuzzing.mutations import Rng, json_bytes, mutate_bytes

TESTS = Path(__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 4), dtype=np.uint8)
CLASSES = (np.arange(20) % 4).astype(np.uint8)

# content, rng, a folder to work in, whether the content is a seed as it is -> the input, and whether a checksum of the file covers it.
# Only seeds are opened by the HDF5 library here: mutants could crash this process.
Mutate = Callable[[bytes, Rng, Path, bool], tuple[bytes, bool]]


@dataclass(frozen=True)
class Target:
    """One reader: ``seeds`` lie in the folder of seeds, an input is put at ``place`` in a folder of its own."""

    name: str
    seeds: tuple[str, ...]
    place: str
    mutate: Mutate
    read: Callable[[Path], str]
    share: int  # of the inputs in continuous integration


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


# --- readers ----------------------------------------------------------------------------------------------------------


def read_states(path: Path) -> str:
    from simtool.networks.stored import load
    from simtool.states import open_states

    with open_states(path) as states:
        states.verify_content()
        n, p, q, m = states.n, states.p, states.q, states.m
        arrays = [np.asarray(d[()]) for d in (states.U, states.Z, states.X, states.Y)]
        assert [a.shape for a in arrays] == [(p, m), (n, m), (n, m), (q, m)]
        teacher = states.teacher()
        assert all(np.isfinite(matrix.toarray()).all() for matrix in teacher.values())
        assert states.indices.shape == (m,)
        assert all(size > 0 for size in states.header.input_shape)
        assert np.isfinite(states.scaling).all()
        assert states.labels is None or len(states.labels) == m
        parts: list[object] = []
        for layer in states.layers:
            spec = layer.spec
            design, targets, own = layer.design[()], layer.targets[()], layer.teacher[()]
            assert (design.shape, targets.shape) == ((spec.features, spec.columns), (spec.rows, spec.columns))
            parts += [design, targets, own, layer.sensitivity[()]]
        program = load(states.file)
        if program is not None:
            graph = program.graph([x.spec for x in states.layers], [x.teacher[()] for x in states.layers])
            assert np.isfinite(graph.matrices().A.data).all()
            parts.append(graph.matrices().A.toarray())
        return _digest(*arrays, *parts, states.content_sha256(), states.header.to_json())


def read_model(path: Path) -> str:
    from simtool.model import load_layers, load_model

    layers = load_layers(path)
    if layers is not None:
        assert layers.certificates is None or len(layers.certificates) == layers.rows
        assert all(np.isfinite(matrix.data).all() for matrix in layers.matrices)
    model = load_model(path)
    parts: list[object] = []
    for name in "ABCD":
        matrix = getattr(model, name)
        assert np.isfinite(matrix.data).all()
        dense = matrix.toarray()
        assert np.count_nonzero(dense) == matrix.nnz
        parts.append(dense)
    for index in range(model.n + model.q):
        parts.append(model.row(index)[1])
    assert all(size > 0 for size in model.input_shape)
    table = model.certificates
    assert table is None or len(table) == model.n + model.q
    return _digest(*parts, model.blocks, model.header_extra, model.output_map)


def read_shard(path: Path) -> str:
    from simtool.engines.shards import read_shard as read

    arrays = read(path)
    assert all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in arrays.values())
    return _digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))


def read_spec(path: Path) -> str:
    from simtool.stages.sparsify.folder import RunFolder

    return _digest(RunFolder(path.parent).read_spec())


def read_plan(path: Path) -> str:
    from simtool.stages.sparsify.folder import RunFolder
    from simtool.stages.sparsify.plan import plan_of

    plan = plan_of(RunFolder(path.parent))
    assert all(0 <= shard.start < shard.stop <= plan.rows for shard in plan.shards)
    assert all(group.features.size <= plan.features for group in plan.groups)
    return _digest(plan.options, plan.shards, plan.tiles)


def read_timing(path: Path) -> str:
    from simtool.stages.sparsify.folder import RunFolder

    found = RunFolder(path.parent).read_timing()
    assert found is None or isinstance(found, dict)
    return _digest(found)


def _data(path: str) -> str:
    from simtool.data import open_data

    source = open_data(path)
    batches = list(source.batches(source.select(None, 0), 7))
    assert sum(len(batch) for batch in batches) == source.count
    assert all(batch.shape[1:] == source.sample_shape for batch in batches)
    assert all(np.isfinite(batch).all() and batch.dtype == np.float32 for batch in batches)
    labels = source.labels()
    assert labels is None or (len(labels) == source.count and np.isfinite(labels).all())
    picked = list(source.batches(source.select(min(2, source.count), 0), 1))
    assert len(picked) == min(2, source.count)
    return _digest(source.sha256(), *batches, labels)


def read_data(path: Path) -> str:
    return _data(str(path))


def read_idx(path: Path) -> str:
    # The other file of the pair is there as it was.
    other = "train-labels-idx1-ubyte" if "images" in path.name else "train-images-idx3-ubyte"
    if not (path.parent / other).exists():
        (path.parent / other).write_bytes(_idx_bytes(CLASSES if "labels" in other else PIXELS))
    return _data(str(path.parent))


def read_mask(path: Path) -> str:
    from simtool.stages.sparsify.constraints import read

    found = read(str(path), None, 4, 6, 5)
    assert found.mask is not None
    assert found.mask.shape == (4, 6)
    return _digest(found.mask)


def read_weighting(path: Path) -> str:
    from simtool.stages.sparsify.constraints import read

    found = read(None, str(path), 4, 6, 5)
    assert found.sample_weight is not None
    assert np.isfinite(found.sample_weight).all()
    return _digest(found.sample_weight)


def read_network(path: Path) -> str:
    from simtool.networks.onnx_reader import read_onnx

    network = read_onnx(path, None)
    inputs = np.random.default_rng(1).normal(size=(5, *network.input_shape)).astype(np.float32)
    with np.errstate(all="ignore"):
        recorded = network.run(inputs)
        z, x, y = network.graph.evaluate(inputs.reshape(5, -1).astype(np.float64))
    assert recorded.y.shape == (5, network.output_size)
    pairs = [(recorded.y, y), *((recorded.z[k], z[k]) for k in z), *((recorded.x[k], x[k]) for k in x)]
    if all(np.isfinite(a).all() and np.abs(a).max(initial=0) < 1e12 for pair in pairs for a in pair):
        for found, expected in pairs:
            bound = 1e-3 * max(1.0, float(max(np.abs(a).max(initial=0) for pair in pairs for a in pair)))
            assert np.abs(found - expected).max(initial=0) <= bound, (
                "the graph is not what ONNX Runtime computes"
            )
    network.graph.matrices()
    return _digest(network.sha256)


def read_weights(path: Path) -> str:
    from simtool.networks.weights import load_weights

    state = load_weights(path)
    return _digest(
        *(part for name in sorted(state) for part in (name, tuple(state[name].shape), str(state[name].dtype)))
    )


def apply_weights(path: Path) -> str:
    import networks_zoo

    from simtool.networks.weights import apply_weights as apply

    module = networks_zoo.mlp("3-2-2")
    apply(module, path, "the network")
    values = [value.detach().numpy() for value in module.state_dict().values()]
    assert all(np.isfinite(value).all() for value in values)
    return read_weights(path) + _digest(*values)


# --- mutations --------------------------------------------------------------------------------------------------------


def _ours(content: bytes, rng: Rng, folder: Path, genuine: bool) -> tuple[bytes, bool]:
    """One of our HDF5 files: its bytes (covered by its digest), its bytes with a new digest, its headers, its objects."""
    way = rng.random()
    sealed = genuine and content[8:9] in (b"\2", b"\3")
    if way < 0.15:
        return mutate_bytes(content, rng), sealed
    if way < 0.55 or not genuine:
        changed = mutate_bytes(content, rng, most=3) if way < 0.35 else formats.metadata(content, rng)
        return (formats.reseal(changed, _digest_in(content)) if sealed else changed), False
    return formats.hdf5_objects(folder, content, rng), False


@functools.lru_cache(maxsize=8)
def _digest_in(content: bytes) -> bytes:
    return formats.digest_of(content)


def _theirs(content: bytes, rng: Rng, folder: Path, genuine: bool) -> tuple[bytes, bool]:
    way = rng.random()
    if way < 0.4:
        return mutate_bytes(content, rng, most=3), False
    if way < 0.6 or not genuine:
        return formats.metadata(content, rng), False
    return formats.hdf5_objects(folder, content, rng), False


def _plain(change: Callable[[bytes, Rng], bytes]) -> Mutate:
    return lambda content, rng, folder, genuine: (change(content, rng), False)


def _covered(change: Callable[[bytes, Rng], bytes], raw: float) -> Mutate:
    """``change``, or with probability ``raw`` changed bytes that a checksum covers."""

    def mutate(content: bytes, rng: Rng, folder: Path, genuine: bool) -> tuple[bytes, bool]:
        if rng.random() < raw:
            return mutate_bytes(content, rng), genuine
        return change(content, rng), False

    return mutate


TARGETS = {
    target.name: target
    for target in (
        Target("states", ("states.h5", "states-old.h5"), "states.h5", _ours, read_states, 900),
        Target("model", ("model.h5", "model-old.h5"), "model.h5", _ours, read_model, 900),
        Target("layered-states", ("layers.h5", "layers-old.h5"), "states.h5", _ours, read_states, 600),
        Target("layered-model", ("sparse.h5", "sparse-old.h5"), "model.h5", _ours, read_model, 600),
        Target(
            "shard",
            ("rows.shard", "constraints.shard"),
            "rows.shard",
            _covered(formats.shard, 0.1),
            read_shard,
            1000,
        ),
        Target("spec", ("spec.json",), "spec.json", _plain(json_bytes), read_spec, 800),
        Target("plan", ("spec.json", "layered-spec.json"), "spec.json", _plain(json_bytes), read_plan, 800),
        Target("timing", ("timing.json",), "timing.json", _plain(json_bytes), read_timing, 800),
        Target("idx-images", ("images.idx",), "train-images-idx3-ubyte", _plain(formats.idx), read_idx, 400),
        Target("idx-labels", ("labels.idx",), "train-labels-idx1-ubyte", _plain(formats.idx), read_idx, 400),
        Target(
            "idx-gz",
            ("images.idx.gz",),
            "train-images-idx3-ubyte.gz",
            _covered(formats.gzipped, 0.3),
            read_idx,
            800,
        ),
        Target(
            "npz",
            ("data.npz", "packed.npz", "fortran.npz"),
            "data.npz",
            _plain(formats.zipped),
            read_data,
            1000,
        ),
        Target("h5", ("data.h5", "filters.h5", "latest.h5"), "data.h5", _theirs, read_data, 900),
        Target("mask", ("mask.npy",), "mask.npy", _plain(formats.npy), read_mask, 400),
        Target("sample-weights", ("weights.npy",), "weights.npy", _plain(formats.npy), read_weighting, 400),
        Target(
            "onnx",
            ("mlp.onnx", "tricky.onnx", "conv.onnx", "hand.onnx"),
            "net.onnx",
            _plain(formats.onnx_model),
            read_network,
            1200,
        ),
        Target(
            "safetensors",
            ("net.safetensors",),
            "net.safetensors",
            _plain(formats.safetensors),
            apply_weights,
            800,
        ),
        Target("state-dict", ("net.pt",), "net.pt", _plain(formats.state_dict), apply_weights, 800),
    )
}


# --- seeds ------------------------------------------------------------------------------------------------------------


def _idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def _old_format(source: Path, target: Path) -> None:
    """A copy without a digest, in the oldest format of HDF5, whose metadata has no checksums."""
    with h5py.File(source, "r") as old, h5py.File(target, "w", libver="earliest") as new:
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for name in old:
            if name != "sha256":
                old.copy(name, new)


def make_seeds(folder: Path) -> None:
    """Every seed, by the functions of the product and of the libraries that write such files."""
    import networks_zoo as zoo
    import safetensors.torch
    import torch

    from simtool.networks import NetworkSpec
    from simtool.stages.extract import extract
    from simtool.stages.sparsify.options import SparsifyOptions
    from simtool.stages.sparsify.stage import sparsify

    source = TESTS / "networks_zoo.py"
    zoo.export(torch.nn.Sequential(torch.nn.Flatten(), zoo.mlp("6-3-2-3")), folder / "mlp.onnx", (2, 3))
    extract(NetworkSpec(str(folder / "mlp.onnx")), f"{source}:constant_data", output=folder / "states.h5")
    np.save(folder / "given.npy", np.ones((8, 12)))
    np.save(folder / "given-weights.npy", np.ones(12))
    options = SparsifyOptions(
        kappa=0.9, mask=str(folder / "given.npy"), weight_samples=str(folder / "given-weights.npy")
    )
    sparsify(folder / "states.h5", folder / "run", options)
    for name in ("spec.json", "timing.json", "model.h5", "constraints.shard"):
        shutil.copy(folder / "run" / name, folder / name)
    shutil.copy(next((folder / "run" / "rows").glob("*.shard")), folder / "rows.shard")
    zoo.export(_conv(), folder / "shared.onnx", (1, 3, 3))
    np.savez(folder / "shared.npz", inputs=np.random.default_rng(0).random((6, 1, 3, 3), dtype=np.float32))
    extract(NetworkSpec(str(folder / "shared.onnx")), str(folder / "shared.npz"), output=folder / "layers.h5")
    sparsify(folder / "layers.h5", folder / "layered", SparsifyOptions(target_nnz=20))
    shutil.copy(folder / "layered" / "model.h5", folder / "sparse.h5")
    shutil.copy(folder / "layered" / "spec.json", folder / "layered-spec.json")
    _old_format(folder / "layers.h5", folder / "layers-old.h5")
    _old_format(folder / "sparse.h5", folder / "sparse-old.h5")
    _old_format(folder / "states.h5", folder / "states-old.h5")
    _old_format(folder / "model.h5", folder / "model-old.h5")

    (folder / "images.idx").write_bytes(_idx_bytes(PIXELS))
    (folder / "labels.idx").write_bytes(_idx_bytes(CLASSES))
    (folder / "images.idx.gz").write_bytes(gzip.compress(_idx_bytes(PIXELS), mtime=0))
    np.savez(folder / "data.npz", inputs=PIXELS, labels=CLASSES)
    np.savez_compressed(folder / "packed.npz", inputs=PIXELS / np.float32(7), labels=CLASSES / 3.0)
    np.savez(folder / "fortran.npz", inputs=np.asfortranarray(PIXELS), labels=CLASSES)
    mask = np.random.default_rng(0).integers(0, 2, (4, 6)).astype(np.uint8)
    np.save(folder / "mask.npy", mask)
    np.save(folder / "weights.npy", np.arange(1.0, 6.0))
    with h5py.File(folder / "data.h5", "w") as file:
        file["inputs"], file["labels"] = PIXELS / 255.0, CLASSES
    with h5py.File(folder / "filters.h5", "w") as file:
        file.create_dataset(
            "inputs", data=PIXELS, chunks=(3, 3, 4), compression="gzip", shuffle=True, fletcher32=True
        )
        file.create_dataset("labels", data=CLASSES.astype("i4"), chunks=(7,), scaleoffset=0)
    with h5py.File(folder / "latest.h5", "w", libver="latest") as file:
        file.create_dataset("inputs", data=PIXELS, chunks=(3, 3, 2), maxshape=(None, 3, 4), compression="lzf")
        file.create_dataset("labels", data=CLASSES, chunks=(5,), maxshape=(None,))

    zoo.export(zoo.tricky(), folder / "tricky.onnx", (2, 3))
    zoo.export(_conv(), folder / "conv.onnx", (1, 3, 3))
    nodes = [
        zoo.helper.make_node("Gemm", ["x", "W", "b"], ["h"], alpha=0.5, beta=2.0),
        zoo.helper.make_node("LeakyRelu", ["h"], ["a"], alpha=0.25),
        zoo.helper.make_node("Clip", ["a", "zero"], ["c"]),
        zoo.helper.make_node("Reshape", ["c", "shape"], ["r"]),
        zoo.helper.make_node("MatMul", ["r", "V"], ["v"]),
        zoo.helper.make_node("Add", ["v", "d"], ["s"]),
        zoo.helper.make_node("Softmax", ["s"], ["y"], axis=1),
    ]
    rng = np.random.default_rng(0)
    shapes = {"W": (4, 3), "b": (3,), "V": (3, 2), "d": (2,)}
    constants: dict[str, object] = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    constants |= {"zero": np.float32(0), "shape": np.array([-1, 3])}
    zoo.hand_made(folder / "hand.onnx", nodes, constants)
    small = zoo.mlp("3-2-2")
    safetensors.torch.save_file(small.state_dict(), folder / "net.safetensors")
    torch.save(small.state_dict(), folder / "net.pt")
    json.loads((folder / "spec.json").read_text())  # it is JSON, or the mutations would be of bytes alone


def _conv() -> object:
    """A layer whose weights are shared over positions."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
