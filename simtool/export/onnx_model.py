"""An implicit model as an ONNX graph: one Gemm a step of the plan, a Loop where a fixed point must be solved.

Matrices are dense initialisers. ONNX has sparse (COO) ones, and ONNX Runtime loads them, but only to make them dense, at
12 bytes an entry, and the ONNX checker's shape inference refuses a Gemm with one: they would buy a smaller file that fewer
tools can read. The file with the small size is .safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

import simtool
from simtool.errors import InputError, OptionError
from simtool.export.onnx_graph import IR_VERSION, OPSET, GraphWriter
from simtool.export.onnx_loop import apply_pieces, iteration, loop
from simtool.export.plan import FROM_INPUT, Step, dense_entries, plan, values
from simtool.export.verify import verify
from simtool.model import FixedPoint, ImplicitModel

_LARGEST = 2**31 - 2**20  # a protocol buffer holds less than 2 GiB
_OUTPUT_MAPS: dict[str | None, tuple[str, dict[str, int]]] = {
    None: ("Identity", {}),
    "softmax": ("Softmax", {"axis": 1}),
    "log_softmax": ("LogSoftmax", {"axis": 1}),
    "sigmoid": ("Sigmoid", {}),
}


def to_onnx(
    model: ImplicitModel,
    *,
    dtype: str = "float32",
    output_map: bool = True,
    options: FixedPoint | None = None,
) -> ModelProto:
    """``model`` as a graph from ``input`` (batch, *input_shape) to ``output`` (batch, q).

    Parameters
    ----------
    dtype : "float32" or "float64", of input, weights and output
    output_map : apply the model's output map, as ``model.predict`` does
    options : method and tolerance of the loops, and their most iterations where nothing proves how many are enough (see
        :mod:`simtool.export.onnx_loop`); None takes a tolerance of 1e-7 in float32 and 1e-9 in float64

    Raises OptionError for another dtype, InputError where the weights do not fit into an ONNX file, UnsupportedOperator for
    an activation that ONNX lacks.
    """
    if dtype not in ("float32", "float64"):
        raise OptionError(f"dtype must be float32 or float64, got {dtype!r}.")
    number = np.dtype(dtype)
    options = options or FixedPoint(tolerance=1e-7 if dtype == "float32" else 1e-9)
    steps = plan(model)
    size = dense_entries(steps) * number.itemsize
    if size > _LARGEST:
        raise InputError(
            f"the dense weights take {size / 1e9:.1f} GB; an ONNX file holds less than 2 GiB. Export .safetensors, which keeps "
            "them sparse."
        )
    writer = GraphWriter(number)
    source, output = writer.name("input"), writer.name("output")
    flat = source if len(model.input_shape) == 1 else writer.add("Flatten", source, axis=1, name="flat")
    verdicts = dict(
        zip(
            (int(part.rows[0]) for part in model.components if part.cyclic),
            model.well_posedness().components,
            strict=True,
        )
    )
    components = {int(part.rows[0]): part for part in model.components if part.cyclic}
    found: list[str] = []
    for step in steps[:-1]:
        z = _affine(writer, step, model.A, model.B, flat, found)
        if step.cyclic:
            key = int(step.rows[0])
            how = iteration(components[key], verdicts[key], model.blocks, options.method)
            found.append(loop(writer, step.name, z, step.pieces, how, options))
        else:
            found.append(apply_pieces(writer, step.pieces, z))
    y = _affine(writer, steps[-1], model.C, model.D, flat, found)
    operator, attributes = _OUTPUT_MAPS[model.output_map if output_map else None]
    node = helper.make_node(operator, [y], [output], name="output_map")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    writer.nodes.append(node)
    graph = writer.graph(
        "simtool",
        [helper.make_tensor_value_info(source, writer.type, ["batch", *model.input_shape])],
        [helper.make_tensor_value_info(output, writer.type, ["batch", model.q])],
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="simtool",
        producer_version=simtool.__version__,
    )
    helper.set_model_props(made, _properties(model))
    onnx.checker.check_model(made, full_check=True)
    return made


def _affine(writer: GraphWriter, step: Step, own: Any, driving: Any, flat: str, found: list[str]) -> str:
    """W s + bias of a step, (batch, size)."""
    bias = None
    if len(step.bias.take):
        column = values(driving, step.bias, (step.size, 1)).reshape(-1)
        bias = writer.weight(f"{step.name}.bias", column)
    if not step.sources:  # the same for every sample
        batch = writer.add("Shape", flat, start=0, end=1)
        one, width = writer.constant([1], np.int64), writer.constant([step.size], np.int64)
        if bias is None:
            return writer.add("Expand", writer.constant([[0.0]]), writer.add("Concat", batch, width, axis=0))
        return writer.add("Expand", bias, writer.add("Concat", batch, one, axis=0))
    parts = [flat if source == FROM_INPUT else found[source] for source in step.sources]
    side = parts[0] if len(parts) == 1 else writer.add("Concat", *parts, axis=1)
    shape = (step.size, step.width)
    matrix = values(own, step.states, shape) + values(driving, step.inputs, shape)
    weight = writer.weight(f"{step.name}.weight", matrix)
    operands = [side, weight] if bias is None else [side, weight, bias]
    return writer.add("Gemm", *operands, transB=1, name=f"{step.name}.z")


def _properties(model: ImplicitModel) -> dict[str, str]:
    verdict = model.well_posedness()
    return {
        "simtool.structure": model.structure,
        "simtool.states": str(model.n),
        "simtool.nnz": str(model.parameters),
        "simtool.baseline_nnz": str(model.baseline_nnz),
        "simtool.well_posed_by": str(verdict.by),
    }


def runner(path: Path) -> Any:
    """A function from inputs (k, *input_shape) to the outputs of the ONNX file ``path`` in ONNX Runtime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    declared = session.get_inputs()[0]
    number = np.float64 if declared.type == "tensor(double)" else np.float32

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {declared.name: inputs.astype(number)})[0])

    return run


def verify_onnx(
    path: str | Path, model: ImplicitModel, inputs: np.ndarray, shown: str | None = None
) -> float:
    """The largest difference, relative to max(1, |y|), between the file in ONNX Runtime and ``model.predict``.

    ``shown`` is the name for the message where the file has another one still. Raises InputError above 1e-5.
    """
    return verify(shown or Path(path).name, model, inputs, runner(Path(path)))
