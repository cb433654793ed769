"""A network with other weights as a file: the same operators, its own tensor names, and zeros where rows are sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simtool.errors import InputError, OptionError
from simtool.importing import describe

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
MADE_BY = {"made_by": "simtool export"}


def write_state(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """``weights`` as .safetensors, dense: what ``load_state_dict`` of the network's own class takes."""
    from safetensors.numpy import save

    path.write_bytes(
        save({name: np.ascontiguousarray(value) for name, value in weights.items()}, metadata=MADE_BY)
    )


def write_torch_state(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """``weights`` as a weights-only state_dict."""
    import torch

    torch.save({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, path)


def write_onnx(path: Path, model: onnx.ModelProto) -> None:
    """An ONNX file whose initialisers were replaced."""
    import onnx

    model.producer_name = "simtool"
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_onnx_of_module(
    path: Path,
    module: torch.nn.Module,
    example: torch.Tensor,
    quiet: Callable[[], AbstractContextManager[None]],
) -> None:
    """A PyTorch network as ONNX, for any number of samples; torch writes it inside ``quiet``, as it announces much."""
    import onnx
    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise OptionError(
            "writing a PyTorch network as ONNX needs the package onnxscript, which is not installed. pip install onnxscript, or export to "
            ".safetensors."
        ) from None
    try:
        with quiet():
            written = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises many types
        raise InputError(
            f"torch cannot write this network as ONNX; export to .safetensors or .pt instead ({_reason(error)})."
        ) from error
    assert written is not None
    model: Any = written.model_proto
    model.producer_name = "simtool"
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _reason(error: BaseException) -> str:
    """The first words of the innermost error: torch's exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return describe(error).splitlines()[0][:200]


def onnx_runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Runs the ONNX file at ``path`` in ONNX Runtime, in the type that its input has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    kinds = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
    }
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def run(inputs: np.ndarray) -> np.ndarray:
        found = []
        step = batch or len(inputs)
        for start in range(0, len(inputs), step):
            piece = inputs[start : start + step]
            padded = np.concatenate([piece, np.repeat(piece[-1:], step - len(piece), axis=0)])
            (y,) = session.run(None, {entry.name: padded.astype(kinds[entry.type])})
            found.append(y[: len(piece)])
        result = np.concatenate(found)
        return result.reshape(len(result), -1)

    return run
