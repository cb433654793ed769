"""An implicit model as an ONNX graph: one Gemm a step of the plan, a Loop where a fixed point must be solved.

The Gemm and the Loop of a cyclic step are float64 in a float32 file too (:mod:`simtool.export.onnx_loop` says why); all
else has the type of the file.

Matrices are dense initialisers. ONNX has sparse (COO) ones, and ONNX Runtime loads them, but only to make them dense, at
12 bytes an entry, and the ONNX checker's shape inference refuses a Gemm with one: they would buy a smaller file that fewer
tools can read. The file with the small size is .safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

import simtool
from simtool.errors import InputError, OptionError
from simtool.export.onnx_graph import IR_VERSION, OPSET, GraphWriter
from simtool.export.onnx_loop import Iteration, apply_pieces, iteration, loop
from simtool.export.plan import FROM_INPUT, Step, dense_entries, plan, values
from simtool.export.verify import verify
from simtool.model import FixedPoint, ImplicitModel

_LARGEST = 2**31 - 2**20  # a protocol buffer holds less than 2 GiB
_LIMIT = "simtool.unproven_loop"  # of a file whose loop may end without a solution: "ITERATIONS ENOUGH", see _unsolved
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
    dtype : "float32" or "float64", of input, weights and output; cyclic components are float64 in both
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
    size = sum(dense_entries((step,)) * (8 if step.cyclic else number.itemsize) for step in steps)
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
    wide = writer.in_double()
    doubles: dict[str, str] = {}  # the float64 form of a value of the file's type
    loops: list[Iteration] = []
    for step in steps[:-1]:
        if step.cyclic:
            parts = [_in_double(wide, number, doubles, part) for part in _sources(step, flat, found)]
            z = _affine(wide, step, model.A, model.B, flat, parts)
            key = int(step.rows[0])
            how = iteration(components[key], verdicts[key], model.blocks, options.method)
            loops.append(how)
            x = loop(wide, step.name, z, step.pieces, how, options)
            found.append(x if number == np.float64 else wide.add("Cast", x, to=writer.type))
            doubles[found[-1]] = x  # another loop may start from it
        else:
            z = _affine(writer, step, model.A, model.B, flat, _sources(step, flat, found))
            found.append(apply_pieces(writer, step.pieces, z))
    y = _affine(writer, steps[-1], model.C, model.D, flat, _sources(steps[-1], flat, found))
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
    helper.set_model_props(made, _properties(model, loops, options))
    onnx.checker.check_model(made, full_check=True)
    return made


def _sources(step: Step, flat: str, found: list[str]) -> list[str]:
    return [flat if source == FROM_INPUT else found[source] for source in step.sources]


def _in_double(wide: GraphWriter, number: np.dtype, doubles: dict[str, str], value: str) -> str:
    """``value``, of the type ``number``, in float64: as it was before it was rounded, where it was."""
    if number == np.float64:
        return value
    if value not in doubles:
        doubles[value] = wide.add("Cast", value, to=TensorProto.DOUBLE)
    return doubles[value]


def _affine(writer: GraphWriter, step: Step, own: Any, driving: Any, flat: str, parts: list[str]) -> str:
    """W s + bias of a step, (batch, size), from its sources s = ``parts`` of the writer's type."""
    bias = None
    if len(step.bias.take):
        column = values(driving, step.bias, (step.size, 1)).reshape(-1)
        bias = writer.weight(f"{step.name}.bias", column)
    if not parts:  # the same for every sample
        batch = writer.add("Shape", flat, start=0, end=1)
        one, width = writer.constant([1], np.int64), writer.constant([step.size], np.int64)
        if bias is None:
            return writer.add("Expand", writer.constant([[0.0]]), writer.add("Concat", batch, width, axis=0))
        return writer.add("Expand", bias, writer.add("Concat", batch, one, axis=0))
    side = parts[0] if len(parts) == 1 else writer.add("Concat", *parts, axis=1)
    shape = (step.size, step.width)
    matrix = values(own, step.states, shape) + values(driving, step.inputs, shape)
    weight = writer.weight(f"{step.name}.weight", matrix)
    operands = [side, weight] if bias is None else [side, weight, bias]
    return writer.add("Gemm", *operands, transB=1, name=f"{step.name}.z")


def _properties(model: ImplicitModel, loops: list[Iteration], options: FixedPoint) -> dict[str, str]:
    verdict = model.well_posedness()
    unproven = [
        how.enough(options.tolerance)
        for how in loops
        if not how.bound(options.tolerance, options.max_iterations)[1]
    ]
    enough = 0 if 0 in unproven else max(unproven, default=0)
    return {
        **({_LIMIT: f"{options.max_iterations} {enough}"} if unproven else {}),
        "simtool.structure": model.structure,
        "simtool.states": str(model.n),
        "simtool.nnz": str(model.parameters),
        "simtool.baseline_nnz": str(model.baseline_nnz),
        "simtool.well_posed_by": str(verdict.by),
    }


def _session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Any:
    """A function from inputs (k, *input_shape) to the outputs of the ONNX file ``path`` in ONNX Runtime."""
    return _runner(_session(path))


def _runner(session: Any) -> Any:
    declared = session.get_inputs()[0]
    number = np.float64 if declared.type == "tensor(double)" else np.float32

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {declared.name: inputs.astype(number)})[0])

    return run


def verify_onnx(
    path: str | Path, model: ImplicitModel, inputs: np.ndarray, shown: str | None = None
) -> float:
    """The largest difference, relative to max(1, |y|), between the file in ONNX Runtime and ``model.predict``.

    ``shown`` is the name for the message where the file has another one still. Raises InputError above 1e-5, and where a
    loop of the file ends before its fixed point.
    """
    name = shown or Path(path).name
    session = _session(Path(path))
    run = _runner(session)
    limit = session.get_modelmeta().custom_metadata_map.get(_LIMIT)

    def solved(batch: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = run(batch)
        open_ = int(np.isnan(outputs).any(axis=1).sum())
        if limit is not None and open_:
            most, enough = limit.split()
            raise InputError(_unsolved(name, most, enough, open_, len(batch)))
        return outputs

    return verify(name, model, inputs, solved)


def _unsolved(name: str, most: str, enough: str, samples: int, of: int) -> str:
    """The message where a loop gave up after ``most`` iterations; ``enough`` is "0" where no number is proven to be enough."""
    known, more = "no theorem proves that the iteration converges", "a larger max_iterations"
    if enough != "0":
        known = f"the iteration is proven to converge, but so slowly that it may take {enough}"
        more = f"max_iterations={enough}"
    return (
        f"{name} does not reach the fixed point within {most} iterations on {samples} of the {of} samples it is checked on, "
        f"whose outputs would be NaN; {known}. The file is not kept. Make the model with a smaller kappa or a layered "
        "structure, export .safetensors, whose fixed point the tool itself solves, or call simtool.to_onnx with "
        f"options=FixedPoint(tolerance=1e-7, {more})."
    )
