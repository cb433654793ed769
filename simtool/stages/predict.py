"""Outputs of a model on data, as an .npz file."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from simtool.data import open_data
from simtool.errors import OptionError, OutputError
from simtool.hdf5 import output_error, writable_target
from simtool.model import ImplicitModel
from simtool.model.implicit import apply_output_map
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages.evaluate import load_runnable
from simtool.stages.evaluate.metrics import CLASSIFICATION, classes_of, decide_task
from simtool.temporary import beside

_BATCH_NUMBERS = 2**21
_ARRAYS = {"outputs", "indices", "classes", "labels"}


def predict(
    model: str | Path | ImplicitModel,
    data: str,
    *,
    output: str | Path,
    network: NetworkSpec | str | None = None,
    split: str = "test",
    samples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Write ``outputs`` (m, q) after the output map, ``indices`` (m,) of the samples, ``classes`` (m,) for a classifier
    and ``labels`` where the data have them. The file appears whole or not at all.

    ``network`` is the one that a model of layers alone belongs to. ``overwrite`` replaces an earlier output of predict, nothing else. Raises InputError for a model or data that do not
    fit, OptionError for a name that does not end in .npz, OutputError for the file, ConvergenceError where the model
    has no fixed point.
    """
    started = time.perf_counter()
    path = Path(output)
    if path.suffix != ".npz":
        raise OptionError(
            f"the output of predict must end in .npz, got {str(path)!r}. It holds the arrays outputs and indices, and "
            "classes and labels where they apply; choose a name such as y.npz."
        )
    writable_target(path, overwrite)
    if path.exists() or path.is_symlink():
        _check_replaceable(path, model, data)
    spec = NetworkSpec(network) if isinstance(network, str) else network
    loaded = model if isinstance(model, ImplicitModel) else load_runnable(model, spec)
    source = open_data(data, split)
    indices = source.select(samples, seed)
    labels = np.asarray(source.labels()) if source.has_labels else None
    task = decide_task(labels, loaded.q, loaded.output_map)
    if labels is not None:
        labels = labels[indices]
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


def _check_replaceable(path: Path, model: str | Path | ImplicitModel, data: str) -> None:
    """Raise OutputError unless ``path`` is an earlier output of predict, and neither the model nor the data."""
    if path.is_symlink() or not path.is_file():
        raise OutputError(f"{path} is not a regular file and is not replaced. Choose another output path.")
    read = [Path(data), Path(data.rpartition(":")[0])]
    if not isinstance(model, ImplicitModel):
        read.append(Path(model))
    for other in read:
        try:
            same = other.samefile(path)
        except OSError:
            continue
        if same:
            raise OutputError(
                f"{path} is read by this command and is not replaced. Choose another output path."
            )
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        names = set()
    if not {"outputs", "indices"} <= names <= _ARRAYS:
        found = f"it holds {', '.join(sorted(names)[:8])}" if names else "it is no .npz file"
        raise OutputError(
            f"{path} was not written by predict ({found}), so --overwrite does not replace it. Choose another output path."
        )


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = beside(path)
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
