"""From a NETWORK as the user names it to a loaded network. Nothing in a file is executed without --trust-model."""

from __future__ import annotations

import ast
import inspect
import logging
import zipfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtool.errors import FormatError, InputError, OptionError
from simtool.importing import call, describe, is_reference, resolve
from simtool.networks.network import Network, NetworkSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger("simtool")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".torch", ".ts", ".jit")
_MODELS = (".h5", ".hdf5")
_ALLOWED = (
    "a .onnx file, package.module:factory or file.py:factory, a model.h5 or run folder, or (with --trust-model) a pickled "
    "module or .pt2"
)


def load_network(spec: NetworkSpec, sample_shape: tuple[int, ...] | None = None) -> Network:
    """Load the network that ``spec`` names; ``sample_shape`` is the data's, for networks that declare no input shape.

    Raises InputError, FormatError or UnsupportedOperator with a message for the user.
    """
    name = spec.network
    if not name:
        raise InputError(f"no network was given. Allowed is {_ALLOWED}.")
    if spec.input_shape is not None and (not spec.input_shape or min(spec.input_shape) <= 0):
        raise OptionError(
            f"--input-shape needs positive sizes, got {spec.input_shape}. Pass for instance --input-shape 1,28,28."
        )
    path, reference = Path(name), is_reference(name)
    is_run = path.is_dir() and (path / "model.h5").exists()
    from_factory = reference and not path.exists()
    if not from_factory and (spec.model_args or spec.weights):
        option = "--model-arg" if spec.model_args else "--weights"
        raise OptionError(
            f"{option} belongs to a package.module:factory network; {name} is none. Leave it out."
        )
    if from_factory:
        return _from_factory(spec, sample_shape)
    if path.suffix == ".onnx":
        from simtool.networks.onnx_reader import read_onnx

        return read_onnx(path, spec.input_shape)
    if is_run or path.suffix in _MODELS:
        from simtool.networks.implicit_reader import read_implicit

        network = read_implicit(path)
        if spec.input_shape is not None and prod(spec.input_shape) != prod(network.input_shape):
            raise InputError(
                f"--input-shape {spec.input_shape} does not fit {name}, whose samples are {network.input_shape}."
            )
        return network
    if path.suffix == ".safetensors":
        raise InputError(
            f"{name} holds weights only. Pass the code as the network (file.py:factory) and this file with --weights."
        )
    if path.suffix == ".pt2" or path.suffix in _PICKLES:
        return _from_code_file(path, spec, sample_shape)
    if not path.exists():
        raise InputError(f"the network {name!r} does not exist. Allowed is {_ALLOWED}.")
    raise InputError(f"{name} is no network that can be read. Allowed is {_ALLOWED}.")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _arguments(pairs: tuple[str, ...]) -> dict[str, Any]:
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(
                f"--model-arg takes key=value, got {pair!r}. Pass for instance --model-arg width=64."
            )
        arguments[key] = _value(value)
    return arguments


def _from_factory(spec: NetworkSpec, sample_shape: tuple[int, ...] | None) -> Network:
    import torch

    factory = resolve(spec.network)
    arguments = _arguments(spec.model_args)
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise OptionError(
                f"{spec.network} is a module already, --model-arg cannot be passed to it. Leave it out."
            )
        module = factory
    elif callable(factory):
        try:
            inspect.signature(factory).bind(**arguments)
        except TypeError as error:
            raise OptionError(
                f"{spec.network} cannot be called with {arguments or 'no arguments'}: {error}. Check --model-arg."
            ) from error
        except ValueError:
            pass  # some callables have no signature; the call itself will tell
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        module = call(factory, f"{spec.network}({shown})", **arguments)
    else:
        module = factory
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{spec.network} gave a {type(module).__name__}, a torch.nn.Module is needed. Return the module from the factory."
        )
    if spec.weights is not None:
        from simtool.networks.weights import apply_weights

        apply_weights(module, spec.weights, spec.network)
    else:
        log.info("%s is used with the weights its factory gives it (no --weights).", spec.network)
    return _read_module(module, spec, sample_shape, "pytorch")


def _read_module(
    module: torch.nn.Module, spec: NetworkSpec, sample_shape: tuple[int, ...] | None, kind: str
) -> Network:
    import torch

    from simtool.networks.torch_reader import read_module

    lazy = [
        name
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if torch.nn.parameter.is_lazy(value)
    ]
    if lazy:
        raise InputError(
            f"{spec.network} has lazy layers that were never run, so that {', '.join(lazy[:5])} have no sizes yet. Run the module once "
            "on a batch of samples in its factory before returning it, or pass its --weights."
        )
    broken = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise InputError(
            f"{spec.network} holds NaN or infinity in {', '.join(broken[:5])}. Use finite weights."
        )
    shape = _torch_shape(module, spec, sample_shape)
    description = {
        "network": spec.network,
        "format": kind,
        "model_args": list(spec.model_args),
        "weights": None if spec.weights is None else str(spec.weights),
        "input_shape": list(shape),
    }
    return read_module(module, shape, description)


def _torch_shape(
    module: torch.nn.Module, spec: NetworkSpec, sample_shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    """PyTorch modules declare no input shape: --input-shape, else the first linear layer's width, else the data's.

    Grey images get the axis of their one channel where the first layer is a convolution of one channel.
    """
    from simtool.networks.torch_reader import first_linear, grey_axes

    if spec.input_shape is not None:
        return spec.input_shape
    width = first_linear(module)
    if width is not None and (sample_shape is None or prod(sample_shape) == width):
        log.info("%s takes samples of shape (%d,), the width of its first linear layer.", spec.network, width)
        return (width,)
    if sample_shape is None:
        raise InputError(
            f"{spec.network} does not say what its input looks like. Pass --input-shape, for instance 1,28,28."
        )
    if grey_axes(module) == len(sample_shape):
        sample_shape = (1, *sample_shape)
    log.info("%s takes samples of the data's shape %s.", spec.network, sample_shape)
    return sample_shape


def _from_code_file(path: Path, spec: NetworkSpec, sample_shape: tuple[int, ...] | None) -> Network:
    """A pickled module or .pt2: only with --trust-model, since loading it can run any code."""
    if not path.is_file():
        raise InputError(f"the network {path} does not exist. Check the path.")
    if not spec.trust_model:
        raise InputError(
            f"loading {path} as a network can run code that the file contains, so it is refused. If it is a state_dict, pass "
            "the code as the network (file.py:factory) and this file with --weights; if it is a module that you trust, add --trust-model."
        )
    if _is_torchscript(path):
        raise InputError(
            f"{path} is TorchScript, whose operators cannot be traced again. Pass the Python code as the network "
            "(file.py:factory) with --weights, or export the network to ONNX."
        )
    import torch

    if path.suffix == ".pt2":
        return _from_pt2(path, spec)
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a pickle can run any code, sys.exit() too
        raise FormatError(
            f"{path} cannot be loaded as a pickled module: {describe(error)}. The code of its class must be importable."
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{path} holds a {type(module).__name__}, not a module. Pass the code as the network (file.py:factory) and this file "
            "with --weights."
        )
    return _read_module(module, spec, sample_shape, "pickled module")


def _from_pt2(path: Path, spec: NetworkSpec) -> Network:
    import torch

    from simtool.networks.torch_reader import read_exported
    from simtool.networks.tracing import load_exported

    try:
        exported = load_exported(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # torch raises many types; a pickle in there can run any code
        raise FormatError(
            f"{path} cannot be loaded as an exported program: {describe(error)}. Write it again with torch.export.save."
        ) from error
    user = torch.export.graph_signature.InputKind.USER_INPUT
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    values = [
        node.meta["val"]
        for node, entry in zip(placeholders, exported.graph_signature.input_specs, strict=True)
        if entry.kind == user
    ]
    if len(values) != 1 or isinstance(values[0].shape[0], int):
        raise InputError(
            f"{path} must take one input with a dynamic first dimension; it takes {len(values)} of shapes "
            f"{[tuple(v.shape) for v in values]}. Export it with dynamic_shapes=({{0: torch.export.Dim('batch')}},)."
        )
    shape = tuple(int(dim) for dim in values[0].shape[1:])
    return read_exported(
        exported,
        shape,
        values[0].dtype,
        {"network": spec.network, "format": "pt2", "input_shape": list(shape)},
    )


def _is_torchscript(path: Path) -> bool:
    """TorchScript archives are zip files with a ``code/`` folder and ``constants.pkl``."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names)
