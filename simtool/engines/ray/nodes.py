"""A connection to a Ray cluster, and what its nodes are asked before they compute anything."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simtool.engines.ray.cluster import is_loopback
from simtool.engines.ray.task import probe
from simtool.engines.shards import write_bytes
from simtool.engines.threads import WORKER_VARIABLES
from simtool.errors import WorkerError

_log = logging.getLogger("simtool")


def connect(ray: Any, address: str, is_auto: bool) -> None:
    """Connect this process to the cluster at ``host:port``; raises WorkerError if it cannot be used.

    ``is_auto``: Ray would find that address itself; asked to, it also sends the token that the user has for it.
    """
    loopback: Any = {"_node_ip_address": "127.0.0.1"} if is_loopback(address) else {}
    with _kept_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                "auto" if is_auto else address, log_to_driver=False, logging_level=logging.ERROR, **loopback
            )
        except Exception as error:
            raise WorkerError(
                f"the Ray cluster at {address} cannot be used: {first_lines(error)}. The versions of Python and ray "
                "must be the same there and here, and this machine must be one of its nodes (ray start --address "
                f"{address}); or use --ray-address local."
            ) from error


def worker_environment() -> dict[str, Any]:
    """The runtime environment of workers on a running cluster, in place before they import numpy."""
    variables = dict(WORKER_VARIABLES)
    if kernel := os.environ.get("OPENBLAS_CORETYPE"):
        variables["OPENBLAS_CORETYPE"] = kernel
    return {"env_vars": variables}


def living(ray: Any) -> list[dict[str, Any]]:
    """The nodes that are there and that tasks may run on."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def on_every_node(
    ray: Any, function: Callable[..., Any], *arguments: Any
) -> list[tuple[dict[str, Any], Any]]:
    """Each node, with a reference to ``function(*arguments)`` carried out there, however busy it is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in living(ray):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(function).options(
            num_cpus=0, scheduling_strategy=there, runtime_env=worker_environment()
        )
        asked.append((node, remote.remote(*arguments)))
    return asked


def all_see(ray: Any, folder: Path, token: str) -> bool:
    """Whether every node can read and write in ``folder``: each looks for a fresh note there.

    Raises WorkerError if a node cannot run simtool; one that is lost meanwhile has no say.
    """
    note = folder / f".ray-{token}"
    write_bytes(note, token.encode())
    sees = []
    try:
        for node, reference in on_every_node(ray, probe, str(note), token):
            try:
                sees.append(bool(ray.get(reference)))
            except ray.exceptions.RayError as error:
                if node["NodeID"] in {other["NodeID"] for other in living(ray)}:
                    raise WorkerError(
                        f"the node {node.get('NodeManagerHostname')} of the Ray cluster cannot run simtool: "
                        f"{first_lines(error)}. Install the same simtool, Python and packages on every node."
                    ) from error
    finally:
        note.unlink(missing_ok=True)
    if not all(sees):
        text = "%d of %d nodes of the Ray cluster do not see %s; the inputs are sent to every node"
        _log.info(text, sees.count(False), len(sees), folder)
    return all(sees)


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Ray installs a handler for SIGTERM; the command line's own stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def first_lines(error: BaseException) -> str:
    """``Type: message`` of an exception, on one line of readable length."""
    text = " ".join(str(error).split()).rstrip(". ")
    return f"{type(error).__name__}: {text if len(text) <= 400 else text[:400] + ' ...'}"
