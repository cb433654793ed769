"""Whether this process may work on a run: the same bytes need the same packages, BLAS and CPU features.

``--allow-mixed`` lifts the refusal; which other environments then worked on the run is recorded beside it, and in the model.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from simtool import environment
from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, OutputError, SpecChanged
from simtool.stages.sparsify.folder import RunFolder


def allow_mixed(folder: RunFolder) -> None:
    """From now on, workers of any environment may work on ``folder``."""
    try:
        folder.mixed.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder.mixed}: {error.strerror}.") from error


def require(folder: RunFolder) -> None:
    """Raise SpecChanged unless this process agrees with the run's spec, or mixed environments are allowed."""
    differences = _differences(folder.spec.read_bytes())
    if not differences:
        return
    if folder.mixed.is_dir():
        _record(folder)
        return
    (name, (stored, here)), *others = differences.items()
    more = f" ({len(others)} more: {', '.join(dict(others))})" if others else ""
    raise SpecChanged(
        f"the run in {folder.path} was started with {name} {_words(stored)}, here it is {_words(here)}{more}: the model "
        "could differ in its last bits. Go on where all agrees, or allow it with --allow-mixed, which is recorded in the "
        "model."
    )


def foreign(folder: RunFolder) -> list[dict[str, Any]]:
    """The environments other than the spec's that worked on ``folder``."""
    if not folder.mixed.is_dir():
        return []
    found = []
    for file in sorted(folder.mixed.glob("*.json")):
        try:
            found.append(dict(json.loads(file.read_text())))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{file} cannot be read ({error}). It names an environment that worked on the run, for the model's record. Delete it "
                "to go on without."
            ) from error
    return found


@functools.lru_cache(maxsize=8)
def _differences(spec: bytes) -> dict[str, tuple[Any, Any]]:
    """Per name, what the spec says and what is here."""
    stored = json.loads(spec).get("environment", {})
    here = _here(tuple(stored))
    return {name: (stored.get(name), here[name]) for name in here if stored.get(name) != here[name]}


def _here(names: tuple[str, ...]) -> dict[str, Any]:
    ours = environment.fingerprint()
    # What else the spec names is the version of a package that its solver needs.
    return ours | {name: environment.package_version(name) for name in names if name not in ours}


def _record(folder: RunFolder) -> None:
    stored = json.loads(folder.spec.read_bytes()).get("environment", {})
    content = json.dumps(_here(tuple(stored)), indent=1, sort_keys=True).encode()
    file: Path = folder.mixed / f"{hashlib.sha256(content).hexdigest()[:12]}.json"
    if not file.exists():
        write_bytes(file, content)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
