"""ONNX Runtime sessions, on one thread and, for what only looks at a model, with a limit on their memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from simtool.errors import InputError

# What loading may take beside the file, in memory.
_PROBE_BYTES = 2**28
_PROBE_FACTOR = 8
FLOATS: dict[int, type[np.floating[Any]]] = {
    int(onnx.TensorProto.FLOAT): np.float32,
    int(onnx.TensorProto.DOUBLE): np.float64,
}
WHOLE: dict[int, type[np.signedinteger[Any]]] = {
    int(onnx.TensorProto.INT32): np.int32,
    int(onnx.TensorProto.INT64): np.int64,
}


def _limit_memory(size: int) -> None:
    """Let the sessions that are limited take ``size`` bytes from now on, all of them together."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    as_requested = 1  # a block is as large as what is asked for, not twice the last one
    onnxruntime.create_and_register_allocator(
        memory, onnxruntime.OrtArenaCfg({"max_mem": size, "arena_extend_strategy": as_requested})
    )


def opened(model: onnx.ModelProto, network: str, limited: bool = False) -> onnxruntime.InferenceSession:
    """``limited`` for a session on constants or few samples: a small file can ask for terabytes (Expand, Tile, Range)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    if limited:
        _limit_memory(_PROBE_BYTES + _PROBE_FACTOR * model.ByteSize())
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(f"ONNX Runtime cannot load {network}: {error}") from error


def opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[0]) if versions else 0
