"""Batches of samples to checked columns of a states file, in its units."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

from simtool.blocks import Block
from simtool.errors import InputError
from simtool.model import ImplicitModel, state_sensitivity
from simtool.networks import Network
from simtool.networks import Recorded as Values
from simtool.networks.sensitivity import is_acyclic, squared_gradients
from simtool.rescale import Form
from simtool.stages.convert import implicit_form
from simtool.stages.extract.choice import Choice
from simtool.stages.extract.layers import Recorded, tensors_of
from simtool.stages.extract.sensitivity import LayerSensitivity

RECONSTRUCTION_TOLERANCE = 1e-5
_TEACHER_TOLERANCE = 1e-4  # float32 sums against float64 ones
_TEACHER_COLUMNS = 64
_SENSITIVITY_SAMPLES = 1024
_SENSITIVITY_WORK = 10**11  # multiplications spent on it at most


def cyclic_model(network: Network) -> ImplicitModel | None:
    """The network as an implicit model (in its own units) if it is cyclic, for gradients through the fixed point."""
    graph = network.graph
    if is_acyclic(graph):
        return None
    return implicit_form(graph)


def probe_columns(samples: int, network: Network) -> np.ndarray:
    """The evenly spaced samples whose gradients are averaged; fewer of them for networks with many weights and outputs."""
    if network.outline.whole is None:
        return np.arange(0)
    weights = sum(operator.entries for node in network.graph.nodes for _, operator in node.form.terms)
    affordable = _SENSITIVITY_WORK // max(1, weights * network.graph.output_size)
    count = min(samples, _SENSITIVITY_SAMPLES, max(16, affordable))
    return np.unique(np.linspace(0, samples - 1, count).round().astype(np.int64))


@dataclass
class Recording:
    """Turns batches into checked columns in file units, and gathers what the header says about all of them."""

    network: Network
    choice: Choice
    g: np.ndarray
    teacher: Form
    probes: np.ndarray
    layers: tuple[Recorded, ...] = ()
    samples: int = 0
    reconstruction_error: float = 0.0
    low: float = inf
    high: float = -inf
    layer_columns: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _sensitivity: np.ndarray = field(init=False)
    _cyclic: ImplicitModel | None = field(init=False)
    _names: tuple[str, ...] = field(init=False)
    watched: LayerSensitivity = field(init=False)

    def __post_init__(self) -> None:
        self._sensitivity = np.zeros(len(self.g))
        self._cyclic = cyclic_model(self.network) if self.blocks else None
        self.watched = LayerSensitivity(
            self.network, tuple(entry.layer for entry in self.layers), self.samples
        )
        outline = self.network.outline
        names = outline.wanted() if self.blocks else (outline.output_tensor,)
        self._names = tuple(dict.fromkeys((*names, *tensors_of([entry.layer for entry in self.layers]))))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The stored ones."""
        return self.choice.blocks

    def _record(self, batch: np.ndarray, first: int) -> Values:
        """What the network computes on ``batch``; the columns of its layers are left in ``layer_columns``."""
        if not self.layers:
            return self.network.run(batch)
        tensors = self.network.tensors(batch, self._names)
        samples = np.arange(first, first + len(batch))
        self.layer_columns = []
        for entry in self.layers:
            design, targets = entry.columns(tensors, samples)
            if first == 0:
                entry.check(design, targets)
            self.layer_columns.append((design, targets))
        self.watched.add(batch, first)
        outline = self.network.outline
        return outline.recorded(tensors) if self.blocks else outline.output(tensors)

    def columns(self, batch: np.ndarray, indices: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
        """U, Z, X, Y of the samples ``batch`` (k, ...), the first of which is column ``first``."""
        k = len(batch)
        recorded = self._record(batch, first)
        self._check(recorded, indices)
        u = np.ones((self.teacher.B.shape[1], k), dtype=np.float32)
        u[:-1] = batch.reshape(k, -1).T
        z, x = (np.empty((len(self.g), k), dtype=np.float32) for _ in range(2))
        for block in self.blocks:
            scale = self.g[block.rows]
            z[block.rows] = (recorded.z[block.name] * scale).T
            x[block.rows] = (recorded.x[block.name] * scale).T
        y = recorded.y.T
        if first == 0 and self.choice.whole:
            few = slice(0, _TEACHER_COLUMNS)
            self._check_teacher(u[:, few], z[:, few], x[:, few], y[:, few])
        self.low, self.high = min(self.low, float(batch.min())), max(self.high, float(batch.max()))
        chosen = self.probes[(self.probes >= first) & (self.probes < first + k)] - first
        if chosen.size and self.blocks:
            self._probe(u, recorded, chosen)
        return u, z, x, y

    def sensitivity(self) -> np.ndarray:
        """E ||dy/dz_i||^2 (n,) in file units: a state multiplied by g moves the outputs 1/g as much."""
        return self._sensitivity / max(1, len(self.probes)) / self.g**2

    def _probe(self, u: np.ndarray, recorded: Values, chosen: np.ndarray) -> None:
        """Add the squared gradients at the columns ``chosen`` of this batch."""
        if self._cyclic is not None:
            mean = state_sensitivity(self._cyclic, u[:, chosen].astype(np.float64))
            self._sensitivity += chosen.size * mean[self.choice.kept]
            return
        found = squared_gradients(self.network.graph, {name: z[chosen] for name, z in recorded.z.items()})
        for block in self.blocks:
            self._sensitivity[block.rows] += found[block.name]

    def _check(self, recorded: Values, indices: np.ndarray) -> None:
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
