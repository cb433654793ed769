"""A worker process: reads requests as JSON lines on stdin, answers one JSON line each, ends with its input.

Its input closes when the process that started it ends, however that happens; a worker in the middle of a shard then
drops it, as nobody waits for it and shards are written whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_GRACE = 0.5


def main() -> None:
    """Serve tasks until stdin closes."""
    # Answers go to a private copy of stdout; whatever a library prints ends up on stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from simtool.engines import resolve
    from simtool.errors import SimtoolError

    requests: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while (line := requests.get()) is not None:
        request = json.loads(line)
        if "prepare" in request:
            with contextlib.suppress(Exception):  # the first shard meets the same fault, and tells of it
                resolve(request["prepare"])()
            continue
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
        try:
            answers.write(json.dumps(answer) + "\n")
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more
    os._exit(0)  # nothing is held that an orderly end would give back, and it takes half a second


def _listen(requests: queue.Queue[str | None]) -> None:
    """Pass lines of stdin on; at its end give the main thread a moment to finish what it writes, then end the process."""
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)
    time.sleep(_GRACE)
    os._exit(0)


if __name__ == "__main__":
    main()
