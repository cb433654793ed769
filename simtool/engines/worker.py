"""A worker process: reads requests as JSON lines on stdin, answers one JSON line each, ends with its input."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve tasks until stdin closes."""
    # Answers go to a private copy of stdout; whatever a library prints ends up on stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from simtool.engines import resolve
    from simtool.errors import SimtoolError

    for line in sys.stdin:
        request = json.loads(line)
        try:
            report = resolve(request["task"])(Path(request["folder"]), int(request["item"]))
            answer: dict[str, Any] = {"report": report}
        except SimtoolError as error:
            answer = {"error": str(error), "type": type(error).__name__}
        except MemoryError as error:
            answer = {
                "error": f"out of memory in shard {request['item']} ({error}). Use fewer --workers, "
                "or fewer --samples in extract.",
                "type": "WorkerError",
            }
        except Exception as error:
            traceback.print_exc()
            answer = {
                "error": f"shard {request['item']} failed: {type(error).__name__}: {error}. This is a fault in "
                "simtool; the trace is above.",
                "type": "WorkerError",
            }
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
