"""The folder that a benchmark writes its report to: it appears complete, and replaces nothing but an earlier report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simtool.errors import OutputError
from simtool.strict_json import finite
from simtool.temporary import beside


@dataclass(frozen=True)
class ReportFolder:
    """A report in ``path``: ``mark``, its JSON file, tells an earlier one from any other folder; ``page`` is its Markdown."""

    path: Path
    mark: str
    page: str

    def check(self, overwrite: bool) -> None:
        """Raise OutputError unless the report can be written; only an earlier one is ever replaced."""
        folder, parent = self.path, self.path.absolute().parent
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; a report is a folder. Choose another name.")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise OutputError(f"{folder} exists already. Pass --overwrite to replace the report in it.")
            if not (folder / self.mark).is_file():
                raise OutputError(
                    f"{folder} is not empty and holds no {self.mark}, so it is not a benchmark's report. Choose another folder."
                )
        if not parent.is_dir():
            raise OutputError(f"the folder {parent} does not exist. Create it, or choose another path.")
        if not os.access(parent, os.W_OK):
            raise OutputError(f"the folder {parent} cannot be written. Choose another path.")

    def write(self, content: Mapping[str, Any], markdown: str, pictures: Mapping[str, bytes]) -> None:
        """Write the report beside its folder and move it there; ``pictures`` by their file names. Raises OutputError."""
        temporary = beside(self.path.absolute())
        try:
            temporary.mkdir()
            (temporary / self.page).write_text(markdown)
            for name, data in pictures.items():
                (temporary / name).write_bytes(data)
            (temporary / self.mark).write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
            if self.path.exists():
                shutil.rmtree(self.path)
            os.replace(temporary, self.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(
                f"the report cannot be written to {self.path}: {error.strerror or error}."
            ) from error
