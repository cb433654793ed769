"""``extract``: run a network over data and store its states (SIM algorithm 1), in batches of constant memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simtool import hdf5
from simtool.blocks import BIAS, INPUT, Block
from simtool.data import DataSource, data_path, open_data
from simtool.errors import InputError, OptionError, OutputError
from simtool.model import ImplicitModel, state_sensitivity
from simtool.networks import Network, NetworkSpec, Recorded, load_network
from simtool.networks.formable import require_formable
from simtool.networks.sensitivity import is_acyclic, squared_gradients
from simtool.progress import NO_PROGRESS, Progress
from simtool.rescale import DEFAULT_GAMMA, Form, Rescale, scaling
from simtool.stages.convert import implicit_form
from simtool.states import StatesHeader, StatesLayout, create_states

log = logging.getLogger("simtool")

RECONSTRUCTION_TOLERANCE = 1e-5
_TEACHER_TOLERANCE = 1e-4  # float32 sums against float64 ones
_TEACHER_COLUMNS = 64
_SENSITIVITY_SAMPLES = 1024
_SENSITIVITY_WORK = 10**11  # multiplications spent on it at most
_BATCH_BYTES = 2**25
_MAX_BATCH = 1024


def extract(
    network: NetworkSpec | str,
    data: str,
    *,
    output: str | Path,
    split: str | None = "train",
    samples: int | None = None,
    seed: int = 0,
    rescale: str = "none",
    gamma: float = DEFAULT_GAMMA,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Run ``network`` over ``data`` and write U, Z, X, Y to ``output`` (states.h5).

    Parameters
    ----------
    network : a NetworkSpec, or its NETWORK text alone
    data, split, samples, seed : what to run it on; without ``samples`` all of it
    rescale, gamma : see :mod:`simtool.rescale`
    batch_size : samples at a time; by default as many as fit into 32 MiB, at most 1024

    Returns the JSON object of ``simtool extract --json``. Raises InputError for the network or the data, OptionError, and OutputError
    where the file cannot be written; nothing is left behind then.
    """
    started = perf_counter()
    target, mode = Path(output), Rescale(rescale, gamma)
    spec = NetworkSpec(network) if isinstance(network, str) else network
    hdf5.writable_target(target, overwrite, kind="states", inputs=(*spec.files, data_path(data)))
    source = open_data(data, split)
    indices = source.select(samples, seed)
    loaded = load_network(spec, source.sample_shape)
    _check_fit(loaded, source)
    layout = _layout(loaded, len(indices), batch_size)
    _check_space(target, layout)
    _warn_interpolation(loaded.graph.blocks, loaded.graph.input_size, len(indices))
    require_formable(loaded.graph, str(loaded.description["network"]))
    matrices = loaded.graph.matrices()
    form = Form(matrices.A, matrices.B, matrices.C, matrices.D)
    g = scaling(mode, form, loaded.graph.blocks)
    teacher = form.scaled(g) if mode.mode != "none" else form
    run = _Run(loaded, g, teacher, _probe_columns(len(indices), loaded))
    with create_states(target, layout, overwrite) as writer:
        progress.start(len(indices), "samples", "extract")
        for batch in source.batches(indices, layout.batch):
            positions = slice(writer.columns, writer.columns + len(batch))
            writer.append(*run.columns(batch, indices[positions], writer.columns))
            progress.advance(len(batch))
        progress.finish()
        labels = source.labels()
        header = _header(loaded, source, layout, run, mode, seed)
        writer.finish(
            header,
            indices=indices,
            labels=None if labels is None else labels[indices],
            scaling=g,
            sensitivity=run.sensitivity(),
            teacher={"A": teacher.A, "B": teacher.B, "C": teacher.C, "D": teacher.D},
        )
    return {
        "samples": layout.samples,
        "inputs": layout.inputs,
        "states": layout.states,
        "outputs": layout.outputs,
        "blocks": [
            {"name": b.name, "activation": b.activation.spec, "size": b.size, "parents": list(b.parents)}
            for b in loaded.graph.blocks
        ],
        "output_map": loaded.graph.output_map,
        "rescale": mode.mode,
        "norm_a_inf": float(np.max(abs(teacher.A).sum(axis=1))),
        "baseline_nnz": loaded.graph.baseline_nnz,
        "bytes": target.stat().st_size,
        "seconds": perf_counter() - started,
        "max_reconstruction_error": run.reconstruction_error,
        "output": str(target),
    }


def _check_fit(network: Network, source: DataSource) -> None:
    if prod(source.sample_shape) != prod(network.input_shape):
        raise InputError(
            f"a sample has {prod(source.sample_shape)} values, the network takes {prod(network.input_shape)} ({source.name} holds "
            f"samples of shape {source.sample_shape}, the network takes {network.input_shape}). Use data that fits the network, "
            "or --input-shape where the network leaves its input open."
        )
    if not network.graph.nodes:
        raise InputError(
            f"{network.description['network']} has no activation between its input and its output, so it has no states. "
            "Use a network with at least one hidden layer."
        )


def _layout(network: Network, samples: int, batch_size: int | None) -> StatesLayout:
    graph = network.graph
    p, n, q = graph.input_size + 1, graph.states, graph.output_size
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"the batch size must be above 0, got {batch_size}.")
    fitting = int(np.clip(_BATCH_BYTES // (4 * (p + 2 * n + q)), 1, _MAX_BATCH))
    batches = -(-samples // (batch_size or fitting))
    return StatesLayout(
        samples, p, n, q, -(-samples // batches)
    )  # batches of equal size: no half-filled chunks


def _check_space(target: Path, layout: StatesLayout) -> None:
    needed = 4 * layout.samples * (layout.inputs + 2 * layout.states + layout.outputs)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(
            f"the states need {needed / 2**20:.0f} MiB, {target.parent} has {free / 2**20:.0f} MiB left. Use fewer --samples, or "
            "another disk."
        )


def _warn_interpolation(blocks: Sequence[Block], inputs: int, samples: int) -> None:
    sizes = {**{block.name: block.size for block in blocks}, INPUT: inputs, BIAS: 1}
    widest = max(blocks, key=lambda block: sum(sizes[name] for name in block.parents))
    d = sum(sizes[name] for name in widest.parents)
    if samples < d:
        log.warning(
            "%d samples are fewer than the %d values that feed a state of %s: such rows can fit the samples exactly (interpolate) "
            "without having learned the network. Use at least --samples %d if you can.",
            samples,
            d,
            widest.name,
            d,
        )


def _cyclic_model(network: Network) -> ImplicitModel | None:
    """The network as an implicit model (in its own units) if it is cyclic, for gradients through the fixed point."""
    graph = network.graph
    if is_acyclic(graph):
        return None
    return implicit_form(graph)


def _probe_columns(samples: int, network: Network) -> np.ndarray:
    """The evenly spaced samples whose gradients are averaged; fewer of them for networks with many weights and outputs."""
    weights = sum(operator.entries for node in network.graph.nodes for _, operator in node.form.terms)
    affordable = _SENSITIVITY_WORK // max(1, weights * network.graph.output_size)
    count = min(samples, _SENSITIVITY_SAMPLES, max(16, affordable))
    return np.unique(np.linspace(0, samples - 1, count).round().astype(np.int64))


@dataclass
class _Run:
    """Turns batches into checked columns in file units, and gathers what the header says about all of them."""

    network: Network
    g: np.ndarray
    teacher: Form
    probes: np.ndarray
    reconstruction_error: float = 0.0
    low: float = inf
    high: float = -inf
    _sensitivity: np.ndarray = field(init=False)
    _cyclic: ImplicitModel | None = field(init=False)

    def __post_init__(self) -> None:
        self._sensitivity = np.zeros(len(self.g))
        self._cyclic = _cyclic_model(self.network)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.network.graph.blocks

    def columns(self, batch: np.ndarray, indices: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
        """U, Z, X, Y of the samples ``batch`` (k, ...), the first of which is column ``first``."""
        k = len(batch)
        recorded = self.network.run(batch)
        self._check(recorded, indices)
        u = np.ones((self.teacher.B.shape[1], k), dtype=np.float32)
        u[:-1] = batch.reshape(k, -1).T
        z, x = (np.empty((len(self.g), k), dtype=np.float32) for _ in range(2))
        for block in self.blocks:
            scale = self.g[block.rows]
            z[block.rows] = (recorded.z[block.name] * scale).T
            x[block.rows] = (recorded.x[block.name] * scale).T
        y = recorded.y.T
        if first == 0:
            few = slice(0, _TEACHER_COLUMNS)
            self._check_teacher(u[:, few], z[:, few], x[:, few], y[:, few])
        self.low, self.high = min(self.low, float(batch.min())), max(self.high, float(batch.max()))
        chosen = self.probes[(self.probes >= first) & (self.probes < first + k)] - first
        if chosen.size:
            self._probe(u, recorded, chosen)
        return u, z, x, y

    def sensitivity(self) -> np.ndarray:
        """E ||dy/dz_i||^2 (n,) in file units: a state multiplied by g moves the outputs 1/g as much."""
        return self._sensitivity / len(self.probes) / self.g**2

    def _probe(self, u: np.ndarray, recorded: Recorded, chosen: np.ndarray) -> None:
        """Add the squared gradients at the columns ``chosen`` of this batch."""
        if self._cyclic is not None:
            mean = state_sensitivity(self._cyclic, u[:, chosen].astype(np.float64))
            self._sensitivity += chosen.size * mean
            return
        found = squared_gradients(self.network.graph, {name: z[chosen] for name, z in recorded.z.items()})
        for block in self.blocks:
            self._sensitivity[block.rows] += found[block.name]

    def _check(self, recorded: Recorded, indices: np.ndarray) -> None:
        """Finite values, and X = phi(Z), in the network's own units."""
        for block in self.blocks:
            z, x = recorded.z[block.name], recorded.x[block.name]
            _require_finite(z, f"the pre-activations of block {block.name}", indices)
            _require_finite(x, f"the states of block {block.name}", indices)
            wide = z.astype(np.float64)
            error = float(np.abs(block.activation(wide) - x).max() / max(1.0, float(np.abs(wide).max())))
            if error > RECONSTRUCTION_TOLERANCE:
                raise InputError(
                    f"X = phi(Z) fails for block {block.name} ({block.activation.spec}): relative error {error:.3g}, at most "
                    f"{RECONSTRUCTION_TOLERANCE:g} is allowed. The network overwrites values in place, or its activation is "
                    "a variant that is not supported."
                )
            self.reconstruction_error = max(self.reconstruction_error, error)
        _require_finite(recorded.y, "the outputs", indices)

    def _check_teacher(self, u: np.ndarray, z: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Z = A X + B U and Y = C X + D U on the first batch: the graph describes what the network computes."""
        wide_x, wide_u = x.astype(np.float64), u.astype(np.float64)
        model = self.teacher
        z_teacher = (model.A @ wide_x + model.B @ wide_u) / self.g[:, None]
        named = [(b.name, z_teacher[b.rows], z[b.rows] / self.g[b.rows, None]) for b in self.blocks]
        named.append(("the output", model.C @ wide_x + model.D @ wide_u, y))
        for name, found, recorded in named:
            error = float(np.abs(found - recorded).max() / max(1.0, float(np.abs(recorded).max())))
            if not error <= _TEACHER_TOLERANCE:
                raise InputError(
                    f"the linear operators read from the network do not give what it computes for {name}: relative error "
                    f"{error:.3g}, at most {_TEACHER_TOLERANCE:g} is allowed. Please report this network; export it to ONNX "
                    "as a way around."
                )


def _require_finite(values: np.ndarray, what: str, indices: np.ndarray) -> None:
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values).all(axis=1)
        raise InputError(
            f"{what} hold NaN or infinity at sample {int(indices[np.argmax(bad)])} ({int(bad.sum())} sample(s) of the batch). "
            "Check the network's weights and the range of the data."
        )


def _header(
    network: Network, source: DataSource, layout: StatesLayout, run: _Run, mode: Rescale, seed: int
) -> StatesHeader:
    graph = network.graph
    return StatesHeader(
        samples=layout.samples,
        inputs=layout.inputs,
        states=layout.states,
        outputs=layout.outputs,
        blocks=graph.blocks,
        output_parents=graph.output_parents,
        output_map=graph.output_map,
        has_bias=True,
        input_shape=graph.input_shape,
        seed=seed,
        rescale=mode.mode,
        baseline_nnz=graph.baseline_nnz,
        baseline_bytes=4 * graph.baseline_parameters,
        network_sha256=network.sha256,
        data_sha256=source.sha256(),
        network=network.description,
        data={
            "source": source.name,
            "split": source.split,
            "count": source.count,
            "sample_shape": list(source.sample_shape),
        },
        max_reconstruction_error=run.reconstruction_error,
        input_range=(run.low, run.high),
        sensitivity_samples=len(run.probes),
    )
