"""Outputs of a model on data, as an .npz file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from simtool.data import open_data
from simtool.hdf5 import output_error, writable_target
from simtool.model import ImplicitModel, load_model
from simtool.model.implicit import apply_output_map
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages.evaluate.metrics import CLASSIFICATION, classes_of, decide_task

_BATCH_NUMBERS = 2**21


def predict(
    model: str | Path | ImplicitModel,
    data: str,
    *,
    output: str | Path,
    split: str = "test",
    samples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Write ``outputs`` (m, q) after the output map, ``indices`` (m,) of the samples, ``classes`` (m,) for a classifier
    and ``labels`` where the data have them. The file appears whole or not at all.

    Raises InputError for a model or data that do not fit, OutputError for the file, ConvergenceError where the model
    has no fixed point.
    """
    started = time.perf_counter()
    path = Path(output)
    writable_target(path, overwrite)
    loaded = model if isinstance(model, ImplicitModel) else load_model(model)
    source = open_data(data, split)
    indices = source.select(samples, seed)
    labels = np.asarray(source.labels())[indices] if source.has_labels else None
    task = decide_task(labels, loaded.q, loaded.output_map)
    size = int(np.clip(_BATCH_NUMBERS // (loaded.n + loaded.p), 16, 1024))

    outputs = np.empty((len(indices), loaded.q))
    classes = np.empty(len(indices), dtype=np.int64)
    done = iterations = 0
    progress.start(len(indices), "samples", "predicting")
    for batch in source.batches(indices, size):
        forward = loaded.forward(loaded.states_inputs(batch))
        here = slice(done, done + len(batch))
        outputs[here] = apply_output_map(loaded.output_map, forward.Y).T
        classes[here] = classes_of(forward.Y)
        iterations = max(iterations, int(forward.iterations.max(initial=0)))
        done += len(batch)
        progress.advance(len(batch))
    progress.finish()

    arrays: dict[str, np.ndarray] = {"outputs": outputs, "indices": np.asarray(indices, dtype=np.int64)}
    if task == CLASSIFICATION:
        arrays["classes"] = classes
    if labels is not None:
        arrays["labels"] = labels
    _write(path, arrays)
    return {
        "task": task,
        "samples": len(indices),
        "outputs": loaded.q,
        "arrays": sorted(arrays),
        "iterations_max": iterations,
        "seconds": time.perf_counter() - started,
        "output": str(path),
    }


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
