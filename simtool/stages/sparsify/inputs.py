"""[X; U] and [Z; Y] as plain arrays in the run folder, which workers map: no copies, and nothing to leak."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from simtool.errors import InputError
from simtool.stages.sparsify.anchor import anchored, anchored_states
from simtool.stages.sparsify.folder import RunFolder
from simtool.states import States

_log = logging.getLogger("simtool")
_PIECE_BYTES = 64 * 2**20


def write_inputs(folder: RunFolder, source: States, tied: bool = False, anchor: float = 0.0) -> None:
    """Copy the states piece by piece; arrays that are there already must hold the same numbers, or are written again.

    ``tied`` takes the columns of the layers, one pair of arrays each, instead of all states; ``anchor`` adds its samples to either.
    """
    folder.work.mkdir(exist_ok=True)
    for name, parts in _arrays(source, tied, anchor):
        if _holds(folder, name, parts):
            continue
        rows, samples = sum(part.shape[0] for _, part in parts), parts[0][1].shape[1]
        with folder.new_array(name, (rows, samples), np.float32) as mapped:
            for label, start, offset, piece in _pieces(parts):
                if not np.isfinite(piece).all():
                    row, sample = np.argwhere(~np.isfinite(piece))[0]
                    raise InputError(
                        f"the states file holds {piece[row, sample]} in {label}[{start + row}, {sample}]; every "
                        "value must be finite. Extract again from a network and data without NaN or infinity."
                    )
                mapped[offset : offset + piece.shape[0]] = piece


Parts = tuple[tuple[str, Any], ...]


def _arrays(source: States, tied: bool, anchor: float) -> list[tuple[str, Parts]]:
    """The names of the arrays, and what each is made of."""
    if not tied:
        arrays = anchored_states(source, anchor)
        return [
            ("design", (("X", arrays.X), ("U", arrays.U))),
            ("targets", (("Z", arrays.Z), ("Y", arrays.Y))),
        ]
    found: list[tuple[str, Parts]] = []
    for index, layer in enumerate(source.layers):
        design, targets = anchored(layer, anchor)
        found.append((f"design-{index}", ((f"the inputs of {layer.spec.name}", design),)))
        found.append((f"targets-{index}", ((f"the results of {layer.spec.name}", targets),)))
    return found


def _pieces(parts: Parts) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Every part in pieces: its label, the piece's first row in the part and in the stack, and the piece."""
    offset = 0
    for label, part in parts:
        step = max(1, _PIECE_BYTES // max(1, 4 * part.shape[1]))
        for start in range(0, part.shape[0], step):
            piece = part[start : start + step]
            yield label, start, offset, piece
            offset += piece.shape[0]


def _holds(folder: RunFolder, name: str, parts: Parts) -> bool:
    """Whether array ``name`` is there with the numbers of ``parts``: rows are proven against them."""
    if not folder.array(name).exists():
        return False
    try:
        mapped = folder.map_array(name)
        same = mapped.dtype == np.float32 and all(
            np.array_equal(mapped[offset : offset + piece.shape[0]], piece)
            for _, _, offset, piece in _pieces(parts)
        )
    except (OSError, ValueError, EOFError):
        same = False
    if not same:
        _log.warning("%s is damaged and is written again", folder.array(name))
    return same
