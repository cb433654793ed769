"""What a loaded network offers, whatever it was read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from simtool.blocks import INPUT
from simtool.networks.graph import Graph

if TYPE_CHECKING:
    from simtool.networks.outline import Outline


@dataclass(frozen=True)
class NetworkSpec:
    """How to find and load a network.

    Attributes
    ----------
    network : ``net.onnx``, ``package.module:factory``, ``file.py:factory``, ``model.h5``, or (trusted) a pickled module or .pt2
    model_args : ``key=value`` arguments of the factory; values are Python literals, else text
    weights : .safetensors or a weights-only state_dict
    input_shape : one sample as the network takes it, where the network does not say
    trust_model : allow files whose loading runs code
    """

    network: str
    model_args: tuple[str, ...] = ()
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    trust_model: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths this may read, whether they exist or not; the code file of ``file.py:factory`` too."""
        module, colon, _ = self.network.rpartition(":")
        found = [Path(self.network), Path(module) if colon else None, self.weights]
        return tuple(path for path in found if path is not None)


@dataclass(frozen=True)
class Recorded:
    """What the network computed on k samples, float32: z and x (k, size) by block, y (k, q) before the output map."""

    z: dict[str, np.ndarray]
    x: dict[str, np.ndarray]
    y: np.ndarray


class Network(Protocol):
    """A network that can be run with every activation's input and output recorded."""

    @property
    def graph(self) -> Graph:
        """All of it as affine forms and activations. Raises UnsupportedOperator where that cannot be."""
        ...

    @property
    def outline(self) -> Outline: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def sha256(self) -> str:
        """Fingerprint of what the network computes."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """How it was loaded, ready for JSON."""
        ...

    @property
    def output_size(self) -> int: ...

    def run(self, inputs: np.ndarray) -> Recorded:
        """Run float32 ``inputs`` (k, *input_shape)."""
        ...

    def tensors(self, inputs: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The tensors ``names`` of its program for ``inputs`` (k, *input_shape), each (k, ...)."""
        ...

    @property
    def takes_whole_numbers(self) -> bool:
        """Whether a sample holds indices into tables."""
        ...

    def weights(self) -> dict[str, np.ndarray]:
        """Its own tensors by their names."""
        ...

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> Network:
        """The same network with the tensors ``changed`` in the place of its own."""
        ...


def shaped(inputs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``inputs`` (k, ...) as (k, *shape)."""
    return np.ascontiguousarray(inputs).reshape(inputs.shape[0], *shape)


def collect(graph: Graph, tensors: dict[str, np.ndarray]) -> Recorded:
    """The record of one batch from the reader's ``tensors``, each (k, ...).

    What no tensor holds is computed: z by the node's form from what its sources recorded, x by the activation.
    """

    def flat(name: str) -> np.ndarray:
        value = tensors[name]
        return np.asarray(value, dtype=np.float32).reshape(value.shape[0], -1)

    z: dict[str, np.ndarray] = {}
    x: dict[str, np.ndarray] = {}
    sources = {INPUT: flat(graph.input_tensor)} if graph.input_tensor in tensors else {}
    for node in graph.nodes:
        if node.z_tensor:
            z[node.name] = flat(node.z_tensor)
        else:
            wide = {name: (sources | x)[name].astype(np.float64) for name, _ in node.form.terms}
            z[node.name] = node.form.apply(wide).astype(np.float32)
        x[node.name] = flat(node.x_tensor) if node.x_tensor else node.activation(z[node.name])
    return Recorded(z, x, flat(graph.output_tensor))


def wanted_tensors(graph: Graph) -> tuple[str, ...]:
    """The reader's tensors that :func:`collect` needs, each once."""
    names = [name for node in graph.nodes for name in (node.z_tensor, node.x_tensor)]
    computed = [node.form for node in graph.nodes if not node.z_tensor]
    if any(source == INPUT for form in computed for source, _ in form.terms):
        names.append(graph.input_tensor)
    return tuple(dict.fromkeys(name for name in [*names, graph.output_tensor] if name))
