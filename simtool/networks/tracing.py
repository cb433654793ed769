"""torch.export without its own chatter, and, where it fails, a short reason in the user's terms.

What torch says about a failed trace is a traceback in its log and a message in symbolic shapes. So its loggers are silent while it
runs, and the reason is found by running the module as it is: on the sample, and on flat samples of other widths.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from math import prod
from pathlib import Path

import torch

from simtool.errors import InputError
from simtool.importing import describe
from simtool.networks import recurrent

_EXAMPLE_BATCH = 2
_MAX_WIDTHS = 32
_MAX_REASON = 300
_SYMBOLIC = re.compile(r"\b[suz]\d+\b|\bzuf\d+\b|Sym(Int|Float|Bool|Node)")


class Untraceable(InputError):
    """A module that runs on the samples, but not in torch.export's way."""


@contextmanager
def quiet_torch() -> Iterator[None]:
    """No log lines and no warnings of torch inside the block; its loggers are as before afterwards."""
    root = logging.getLogger("torch")
    known = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and (name == "torch" or name.startswith("torch."))
    ]
    before = [(logger, logger.disabled) for logger in known]
    level = root.level
    try:
        for logger in known:
            logger.disabled = True
        root.setLevel(logging.CRITICAL + 1)  # for the loggers that appear inside the block
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        for logger, disabled in before:
            logger.disabled = disabled


def trace(
    module: torch.nn.Module, shape: tuple[int, ...], dtype: torch.dtype, network: str
) -> torch.export.ExportedProgram:
    """``module`` as a functional program for any number of samples of ``shape``; InputError says why there is none."""
    example = _zeros(shape, dtype)
    said = io.StringIO()  # torch prints the graph of a trace that fails; the network may print as well
    try:
        with quiet_torch(), redirect_stderr(said), torch.no_grad(), _plain_attention():
            dynamic = ({0: torch.export.Dim("batch")},)
            exported = torch.export.export(module, (example,), dynamic_shapes=dynamic, strict=False)
            exported = exported.run_decompositions(dict(recurrent.TABLE))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # torch.export raises many types, and the network's own code any
        raise _reason(module, example, network, error) from error
    sys.stderr.write(said.getvalue())
    return exported


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((_EXAMPLE_BATCH, *shape), dtype=dtype)


def takes_whole_numbers(module: torch.nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether ``module`` runs on whole numbers alone, as one that begins with an embedding does."""
    if not any(isinstance(layer, torch.nn.Embedding | torch.nn.EmbeddingBag) for layer in module.modules()):
        return False
    return (
        _failure(module, _zeros(shape, dtype)) is not None
        and _failure(module, _zeros(shape, torch.int64)) is None
    )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as its parts: the fused operator that torch has for a whole encoder layer hides the weights."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _failure(module: torch.nn.Module, example: torch.Tensor) -> BaseException | None:
    """What running ``module`` on ``example`` raises, None if it runs."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(example)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _reason(module: torch.nn.Module, example: torch.Tensor, network: str, error: BaseException) -> InputError:
    shape = tuple(example.shape[1:])
    size, failure = prod(shape), _failure(module, example)
    if failure is None:
        said = describe(error)
        detail = "" if _SYMBOLIC.search(said) else f" ({_short(said)})"
        return Untraceable(
            f"{network} runs on samples of shape {shape}, but torch.export cannot trace it{detail}. What it computes must "
            "not depend on the values or on the number of samples. Rewrite that part, or export the network to ONNX."
        )
    width = None if not isinstance(failure, RuntimeError | ValueError) else _taken_width(module, example)
    if width == size:
        return InputError(
            f"a sample has the shape {shape}, {network} takes its {width} values in one row. Pass --input-shape {width}."
        )
    if width is not None:
        return InputError(
            f"a sample has {size} values, the network takes {width} ({network}; the samples' shape is {shape}). Use data with {width} "
            f"values a sample or a network that takes {size}, or correct --input-shape."
        )
    return InputError(
        f"{network} fails on a batch of samples of shape {shape}: {_short(describe(failure))}. It must be a module of one input "
        "whose first dimension is the batch. Pass --input-shape if the samples should have another shape."
    )


def _taken_width(module: torch.nn.Module, example: torch.Tensor) -> int | None:
    """The width of flat samples that ``module`` runs on: the example's own, or one that a weight matrix has."""
    widths = [prod(example.shape[1:])]
    for layer in module.modules():
        matrices = [p for p in layer.parameters(recurse=False) if p.dim() == 2]
        for matrix in matrices:
            sizes = matrix.shape[1:] if isinstance(layer, torch.nn.Linear) else matrix.shape
            widths += [int(size) for size in sizes]
    for width in list(dict.fromkeys(widths))[:_MAX_WIDTHS]:
        if width > 0 and _failure(module, example.new_zeros((_EXAMPLE_BATCH, width))) is None:
            return width
    return None


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]} ..."


def load_exported(path: Path) -> torch.export.ExportedProgram:
    """The functional program in the .pt2 file ``path``; raises whatever torch does."""
    with quiet_torch():
        return torch.export.load(path).run_decompositions(dict(recurrent.TABLE))
