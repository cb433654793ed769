"""Names of files that are written beside their target and then renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def beside(target: Path) -> Path:
    """A hidden name in the folder of ``target`` that no other writer has, on whatever machine it runs."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
