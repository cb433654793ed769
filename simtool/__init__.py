"""simtool: turn a trained network into a sparse, certified implicit model without retraining it.

    import simtool
    simtool.extract("mlp.onnx", "fashion-mnist", samples=2000, output="states.h5")
    simtool.sparsify("states.h5", "run", simtool.SparsifyOptions(kappa=0.1))
    simtool.evaluate("run", "fashion-mnist", baseline="mlp.onnx", output="report")
    model = simtool.load("run")            # A, B, C, D as CSR; model.predict(inputs), model.well_posedness()

Every verb is also a command: ``simtool extract``, and so on. Names are imported on first use, so that importing
simtool loads neither torch nor cvxpy, numba or h5py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from simtool.engines import EngineOptions
    from simtool.engines.slurm import SlurmOptions
    from simtool.errors import SimtoolError
    from simtool.export.onnx_model import to_onnx
    from simtool.export.torch_module import from_torch, to_torch
    from simtool.model import FixedPoint, ImplicitModel
    from simtool.model import load_model as load
    from simtool.networks import NetworkSpec
    from simtool.report import evaluate
    from simtool.report.sweep import sweep
    from simtool.stages.column_groups import select_columns
    from simtool.stages.compact import compact
    from simtool.stages.convert import convert
    from simtool.stages.export import export as export_model
    from simtool.stages.extract import extract
    from simtool.stages.inspect import inspect
    from simtool.stages.predict import predict
    from simtool.stages.replay import replay
    from simtool.stages.sparsify.options import SparsifyOptions
    from simtool.stages.sparsify.stage import resume
    from simtool.stages.sparsify.status import cancel, status
    from simtool.stages.sweep import Axis, Grid, Measure
    from simtool.stages.tune import Wish, sparsify
    from simtool.states import open_states

_HOMES = {
    "Axis": ("simtool.stages.sweep", "Axis"),
    "EngineOptions": ("simtool.engines", "EngineOptions"),
    "FixedPoint": ("simtool.model", "FixedPoint"),
    "Grid": ("simtool.stages.sweep", "Grid"),
    "ImplicitModel": ("simtool.model", "ImplicitModel"),
    "Measure": ("simtool.stages.sweep", "Measure"),
    "NetworkSpec": ("simtool.networks", "NetworkSpec"),
    "SimtoolError": ("simtool.errors", "SimtoolError"),
    "SlurmOptions": ("simtool.engines.slurm", "SlurmOptions"),
    "Wish": ("simtool.stages.tune", "Wish"),
    "SparsifyOptions": ("simtool.stages.sparsify.options", "SparsifyOptions"),
    "cancel": ("simtool.stages.sparsify.status", "cancel"),
    "compact": ("simtool.stages.compact", "compact"),
    "convert": ("simtool.stages.convert", "convert"),
    "evaluate": ("simtool.report", "evaluate"),
    "export_model": ("simtool.stages.export", "export"),
    "extract": ("simtool.stages.extract", "extract"),
    "inspect": ("simtool.stages.inspect", "inspect"),
    "load": ("simtool.model", "load_model"),
    "open_states": ("simtool.states", "open_states"),
    "predict": ("simtool.stages.predict", "predict"),
    "replay": ("simtool.stages.replay", "replay"),
    "resume": ("simtool.stages.sparsify.stage", "resume"),
    "select_columns": ("simtool.stages.column_groups", "select_columns"),
    "sparsify": ("simtool.stages.tune", "sparsify"),
    "from_torch": ("simtool.export.torch_module", "from_torch"),
    "sweep": ("simtool.report.sweep", "sweep"),
    "status": ("simtool.stages.sparsify.status", "status"),
    "to_onnx": ("simtool.export.onnx_model", "to_onnx"),
    "to_torch": ("simtool.export.torch_module", "to_torch"),
}

__all__ = [
    "Axis",
    "EngineOptions",
    "FixedPoint",
    "Grid",
    "ImplicitModel",
    "Measure",
    "NetworkSpec",
    "SimtoolError",
    "SlurmOptions",
    "SparsifyOptions",
    "Wish",
    "__version__",
    "cancel",
    "compact",
    "convert",
    "evaluate",
    "export_model",
    "extract",
    "from_torch",
    "inspect",
    "load",
    "open_states",
    "predict",
    "replay",
    "resume",
    "select_columns",
    "sparsify",
    "status",
    "sweep",
    "to_onnx",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simtool' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
