"""Weight files of PyTorch networks, read without running code from them."""

from __future__ import annotations

from pathlib import Path

import torch

from simtool.errors import FormatError, InputError
from simtool.importing import describe

_SHOWN = 6  # names of a kind in a message


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in ``path`` (.safetensors, or a weights-only torch file).

    Raises InputError if the file is missing, FormatError if it is damaged or is more than a state_dict.
    """
    if path.is_dir():
        raise InputError(
            f"the weights {str(path)!r} are a folder; --weights needs a .safetensors file or a weights-only state_dict. "
            "Pass the file (an empty path stands for the current folder)."
        )
    if not path.is_file():
        raise InputError(f"the weights file {path} does not exist. Check --weights.")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # SafetensorError is not exported by all versions
            raise FormatError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors alike mean: not a plain state_dict
        raise FormatError(
            f"{path} is not a weights-only state_dict ({type(error).__name__}). Allowed are .safetensors and files of "
            "torch.save(module.state_dict(), ...). A pickled module is a NETWORK of its own, and loading it runs code: pass it "
            "as the network with --trust-model if you trust it."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FormatError(
            f"{path} holds {type(state).__name__}, not a flat state_dict of tensors. Save module.state_dict(). "
            "(A pickled module is a NETWORK of its own, to be passed with --trust-model.)"
        )
    return state


def apply_weights(module: torch.nn.Module, path: Path, network: str) -> None:
    """Load the weights in ``path`` into ``module``; every name and shape must match."""
    state = load_weights(path)
    broken = [
        name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {', '.join(broken[:5])}. Use finite weights.")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} do not fit {network}: {_differences(module, state) or describe(error)}. Check --weights and "
            "--model-arg."
        ) from error


def _differences(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> str:
    """What ``state`` lacks, has too much or in another shape than ``module``; empty if its names and shapes fit."""
    own = module.state_dict()
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, network {tuple(value.shape)})"
        for name, value in own.items()
        if name in state and not torch.nn.parameter.is_lazy(value) and state[name].shape != value.shape
    ]
    found = {
        "missing keys": [name for name in own if name not in state],
        "unexpected keys": [name for name in state if name not in own],
        "wrong shapes": shapes,
    }
    return "; ".join(f"{what}: {_listed(names)}" for what, names in found.items() if names)


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
