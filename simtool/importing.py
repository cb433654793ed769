"""Python objects named on the command line: ``package.module:name`` or ``file.py:name``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from simtool.errors import InputError


def describe(error: BaseException) -> str:
    """``Type: message`` of an exception, on one line and without a final full stop."""
    text = " ".join(str(error).split()).rstrip(". ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_reference(spec: str) -> bool:
    """Whether ``spec`` has the form ``file.py:name`` or ``package.module:name``."""
    module, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the path of the Python file.")
    # A stable name lets classes defined there be found again, and a second import reuse the first.
    name = "_simtool_file_" + "".join(c if c.isalnum() else "_" for c in str(path.resolve()))
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported as Python code.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def resolve(reference: str) -> Any:
    """The object behind ``package.module:name`` or ``file.py:name``; the current folder is importable.

    Raises InputError if the module cannot be imported or has no such name.
    """
    module_name, _, name = reference.rpartition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the command's own: with --json, one object
            if module_name.endswith(".py"):
                module = _import_file(Path(module_name))
            else:
                module = importlib.import_module(module_name)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() in a module must not end the command as if all were well
        raise InputError(
            f"importing {module_name} (for {reference}) failed: {describe(error)}. "
            "Use package.module:name or file.py:name; modules are also searched in the current folder."
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"{module_name} has no {name!r} (asked for by {reference}). It offers {', '.join(public[:20]) or 'nothing callable'}."
        ) from None


def call(function: Callable[..., Any], shown: str, *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``; whatever it raises, SystemExit too, becomes an InputError that names it as ``shown``."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(0) in there must not end the command as if all were well
        raise InputError(
            f"{shown} failed: {describe(error)}. Correct the function, or what it is called with."
        ) from error
