"""An ONNX network with noise added to some of its tensors: how much each of their entries moves the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from simtool.networks.onnx_session import opened

Noisy = Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]
_OWN, _NOISE = "::without noise", "::noise"


def noisy(
    model: onnx.ModelProto, source: str, names: Sequence[str], output: str, kind: int, network: str
) -> Noisy:
    """A function of a batch and of noise for each of the tensors ``names``, as large as they are, that gives ``output``.

    ``source`` is the input's name, ``kind`` the element type of the tensors.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    for node in model.graph.node:
        copied = changed.graph.node.add()
        copied.CopyFrom(node)
        for index, name in enumerate(node.output):
            if name in names:
                copied.output[index] = name + _OWN
                changed.graph.node.append(onnx.helper.make_node("Add", [name + _OWN, name + _NOISE], [name]))
    changed.graph.input.extend(
        onnx.helper.make_tensor_value_info(name + _NOISE, kind, None) for name in names
    )
    del changed.graph.output[:]
    changed.graph.output.append(onnx.ValueInfoProto(name=output))
    session = opened(changed, network)

    def run(batch: np.ndarray, noise: Mapping[str, np.ndarray]) -> np.ndarray:
        feeds = {source: batch, **{name + _NOISE: noise[name] for name in names}}
        (y,) = session.run([output], feeds)
        return np.asarray(y)

    return run
