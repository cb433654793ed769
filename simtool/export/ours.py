"""Whether a file was written by export: names of networks and of exports end alike, and only the latter are replaced."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from simtool.errors import FormatError, OutputError


def refuse_foreign(path: Path) -> None:
    """Raise OutputError unless export wrote ``path`` earlier: names of networks and of exports end alike."""
    if not _OURS[path.suffix](path):
        raise OutputError(
            f"{path} was not written by export, so --overwrite does not replace it. Choose another output path."
        )


def _our_onnx(path: Path) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return bool(onnx.load(path, load_external_data=False).producer_name == "simtool")
    except (DecodeError, OSError, ValueError):
        return False


def _our_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("extra/simtool.json") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _our_safetensors(path: Path) -> bool:
    from simtool.export.safetensors_file import MADE_BY, metadata_of

    try:
        return metadata_of(path).get("made_by") == MADE_BY
    except FormatError:
        return False


def _our_state(path: Path) -> bool:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # pickle, zip and runtime errors alike: no plain state_dict
        return False
    return isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())


_OURS: dict[str, Callable[[Path], bool]] = {
    ".pt": _our_state,
    ".onnx": _our_onnx,
    ".pt2": _our_program,
    ".safetensors": _our_safetensors,
}
