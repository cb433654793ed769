"""How a run was asked for: where its states are and which engine solves it. Kept beside the spec, as no answer depends on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simtool.engines import EngineOptions
from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, OptionError
from simtool.importing import is_reference
from simtool.stages.sparsify.folder import RunFolder

REQUEST_VERSION = 1


@dataclass(frozen=True)
class Request:
    """The states file and the engine of a run; what ``simtool resume RUN`` goes by."""

    states: Path
    engine: EngineOptions

    def write(self, folder: RunFolder) -> None:
        """Store it in ``folder``. Raises OutputError."""
        content = {
            "format_version": REQUEST_VERSION,
            "states": str(self.states.resolve()),
            "engine": asdict(self.engine),
        }
        write_bytes(folder.request, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def read(cls, folder: RunFolder) -> Request | None:
        """What ``folder`` was asked for last; None if nothing is stored. Raises FormatError."""
        try:
            content: Any = json.loads(folder.request.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(folder, error) from error
        try:
            if content["format_version"] != REQUEST_VERSION:
                raise ValueError(f"format version {content['format_version']!r}")
            return cls(Path(str(content["states"])), EngineOptions.from_json(content["engine"]))
        except (KeyError, TypeError, ValueError, AttributeError, OptionError) as error:
            raise _unreadable(folder, error) from error


def require_trust(folder: RunFolder, objective: str | None) -> None:
    """Raise OptionError if solving the run means running code that its folder names and ``objective`` does not.

    What a file names is never run on its word alone.
    """
    named = str(folder.read_spec()["options"]["objective"])
    if is_reference(named) and objective != named:
        raise OptionError(
            f"the run in {folder.path} has the objective {named}, which is code that would be run. Pass --objective {named} "
            "if you trust it."
        )


def _unreadable(folder: RunFolder, error: Exception) -> FormatError:
    return FormatError(
        f"{folder.request} cannot be read ({type(error).__name__}: {error}). Delete it and run the simtool sparsify "
        "command of this run again."
    )
