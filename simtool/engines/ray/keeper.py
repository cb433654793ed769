"""The process that owns a private Ray cluster: ``python -m simtool.engines.ray.keeper CPUS FOLDER STORE_BYTES``.

It leads a session of its own, so that Ctrl-C stays with the process that started it and so that everything Ray starts
can be found again: Ray's own processes mostly end when their starter is killed with -9, but two agents of every node
outlive it. When standard input closes, however that happens, the whole session is ended and FOLDER removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Start the cluster, print ``{"address": ...}`` or ``{"error": ...}`` as one line, and wait for the end of stdin."""
    cpus, folder, store = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # Answers go to a private copy of stdout; whatever Ray prints ends up on stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_stdin, args=(folder,), daemon=True).start()
    try:
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=store or None,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        answer = {"address": ray.get_runtime_context().gcs_address}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    threading.Event().wait()


def _end_with_stdin(folder: Path) -> None:
    """Wait for the end of stdin, then end every process of this session, remove ``folder`` and exit."""
    sys.stdin.read()
    # Nobody needs what the cluster holds: killed, it is gone at once, and its shared memory with it.
    while others := _session():
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass  # no zombies where nobody else collects them
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _session() -> list[int]:
    """The living processes of this session, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # pid (name) state ppid pgrp session ...; the name may hold spaces and parentheses
            state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if int(session) == os.getsid(0) and state not in "ZX":
            found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main()
