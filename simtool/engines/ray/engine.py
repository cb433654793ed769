"""The Ray engine: tasks on a private cluster of this machine, or on the nodes of a running one.

A task runs on one CPU with one BLAS thread. Where every node sees the run folder the tasks work in it, as those of every
other engine do; otherwise the inputs travel through Ray's object store, once per node, and the files that a task writes
travel back and are stored here. A worker or node that is lost costs a repetition of its tasks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtool.engines import Done
from simtool.engines.process import rebuild, usable_cores
from simtool.engines.ray import nodes
from simtool.engines.ray.cluster import (
    PrivateCluster,
    find_running,
    is_loopback,
    quieten,
    require_cluster,
    require_ray,
)
from simtool.engines.ray.inputs import Inputs
from simtool.engines.ray.task import MEMORY_LEVERS, Shipment, carry_out, remove, warm
from simtool.engines.shards import write_bytes
from simtool.errors import OptionError, SimtoolError, WorkerError

RETRIES = 3
_CLEANING_SECONDS = 10.0
_WARMING_SECONDS = 60.0
_RESUME = "What was finished is kept: run the same command again."


def _is_connected() -> bool:
    """Whether this process uses Ray already."""
    loaded = sys.modules.get("ray")
    return loaded is not None and bool(loaded.is_initialized())


class RayEngine:
    """Tasks on a Ray cluster; it is connected to with the first task.

    Parameters
    ----------
    workers : how many tasks run at once; None for every CPU of the cluster (of a private one: the usable cores)
    address : ``local`` for a private cluster on loopback that ends with :meth:`close`; ``auto`` for the running one
        that RAY_ADDRESS names or ``ray start`` noted; else the ``host:port`` of a running one
    mapped : whether every node sees the run folder; None to ask them

    Raises OptionError if ray is not installed, or no cluster answers at ``address``.
    """

    name = "ray"

    def __init__(self, workers: int | None, address: str = "auto", mapped: bool | None = None) -> None:
        require_ray()
        self._private = address == "local"
        self._is_auto = address == "auto"
        self._address = "" if self._private else find_running(address)
        self._asked = workers
        self.workers = workers or (usable_cores() if self._private else 0)  # 0: until connected
        self._mapped = mapped
        self._id = uuid.uuid4().hex[:16]
        self._cluster: PrivateCluster | None = None
        self._ray: Any = None
        self._is_guest = False
        self._has_shipped = False
        self._inputs: Inputs | None = None
        self._warming: tuple[str, int] = "", 0

    def prepare(self, task: str, items: int) -> None:
        """A private cluster begins to start; the workers of any call ``task()`` when it is connected to."""
        self._warming = task, items
        if self._private and self._cluster is None and not _is_connected():
            quieten(loopback=True)
            self._cluster = PrivateCluster(self.workers, self._mapped is not False)

    def run(self, task: str, folder: Path, items: Sequence[int], done: Done) -> None:
        """See :class:`simtool.engines.Engine`; raises OptionError or WorkerError if the cluster cannot be used."""
        if not items:
            return
        ray = self._connect()
        shipment = self._shipment(folder)
        # The processes of a private cluster have the environment already.
        needed = {} if self._private else nodes.worker_environment()
        function = ray.remote(carry_out).options(
            num_cpus=1, max_retries=RETRIES, name=task, runtime_env=needed
        )
        # Tasks that wait beside the running ones hide the way there and back; on a cluster of others, an explicit number is a
        # promise.
        window = self.workers if self._asked and not self._private else 2 * self.workers
        waiting = iter(items)
        running: dict[Any, int] = {}
        failure: SimtoolError | None = None
        try:
            while True:
                while failure is None and len(running) < window and (item := next(waiting, None)) is not None:
                    arguments = (task, str(folder), item, os.getcwd(), shipment)
                    running[function.remote(*arguments)] = item
                if not running:
                    break
                (ended,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(ended)
                try:
                    report = self._receive(ended, folder, item)
                except SimtoolError as error:
                    failure = failure or error
                else:
                    done(item, report)
        except BaseException:
            for reference in running:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)
            raise
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Remove what was laid on the nodes, leave the cluster, and end it if it is private."""
        ray, self._ray = self._ray, None
        try:
            if ray is not None and self._has_shipped and not self._private:
                with contextlib.suppress(Exception):  # a cluster that is gone has nothing to clean
                    cleaning = [reference for _, reference in nodes.on_every_node(ray, remove, self._id)]
                    ray.wait(cleaning, num_returns=len(cleaning), timeout=_CLEANING_SECONDS)
            if ray is not None and not self._is_guest:
                with contextlib.suppress(Exception):
                    ray.shutdown()
        finally:
            if self._cluster is not None:
                self._cluster.close()
                remove(self._id)
                self._cluster = None

    def _connect(self) -> Any:
        """The module ray, connected; raises OptionError or WorkerError."""
        if self._ray is not None:
            return self._ray
        if _is_connected():
            ray = sys.modules["ray"]
            self._join(ray)
        else:
            quieten(loopback=self._private or is_loopback(self._address))
            if self._private:
                # Before ray is imported: it reads the cluster's token then.
                self._cluster = self._cluster or PrivateCluster(self.workers, self._mapped is not False)
                self._cluster.wait()
            else:
                self._is_auto = require_cluster(self._address, explicit=not self._is_auto)
            import ray

            nodes.connect(ray, self._cluster.address if self._cluster else self._address, self._is_auto)
        self._ray = ray
        if not self._private:
            if not self._asked:
                self.workers = int(sum(node["Resources"]["CPU"] for node in nodes.living(ray)))
            if not nodes.living(ray):
                raise WorkerError(
                    f"the Ray cluster at {self._address} has no CPU to offer. Add nodes to it, or use "
                    "--ray-address local."
                )
        self._inputs = Inputs(ray, self._id)
        self._warm()
        return ray

    def _warm(self) -> None:
        """Let as many workers as will be needed load what they need, all at once; the first tasks tell what fails."""
        task, items = self._warming
        if not task:
            return
        needed = {} if self._private else nodes.worker_environment()
        function = self._ray.remote(warm).options(num_cpus=1, max_retries=0, name=task, runtime_env=needed)
        asked = [function.remote(task) for _ in range(min(self.workers, items))]
        with contextlib.suppress(Exception):
            self._ray.wait(asked, num_returns=len(asked), timeout=_WARMING_SECONDS)

    def _join(self, ray: Any) -> None:
        """Use the connection that this process has already."""
        connected = ray.get_runtime_context().gcs_address
        if self._address != connected:
            raise OptionError(
                f"this process is connected to the Ray cluster at {connected} already, not to "
                f"{self._address or 'a private one'}. Pass that address, or call ray.shutdown() first."
            )
        self._is_guest = True

    def _shipment(self, folder: Path) -> Shipment | None:
        """The inputs in ``folder`` as sent to every node; None where the tasks can work in the folder itself."""
        mapped = self._mapped
        if mapped is None:
            mapped = self._private or nodes.all_see(self._ray, folder, self._id)
        if mapped:
            return None
        self._has_shipped = True
        assert self._inputs is not None
        return self._inputs.ship(folder)

    def _receive(self, reference: Any, folder: Path, item: int) -> dict[str, Any]:
        """The report of an ended task, its files stored; raises the SimtoolError it failed with."""
        failed = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except failed.OutOfMemoryError as error:
            raise WorkerError(
                f"the workers of shard {item} were ended because their node ran out of memory. {MEMORY_LEVERS} {_RESUME}"
            ) from error
        except (failed.WorkerCrashedError, failed.NodeDiedError, failed.LocalRayletDiedError) as error:
            raise WorkerError(
                f"the worker of shard {item} or its node died, {RETRIES + 1} times (out of memory is the usual reason). "
                f"{MEMORY_LEVERS} {_RESUME}"
            ) from error
        except failed.RayError as error:
            raise WorkerError(
                f"shard {item} could not be run on the Ray cluster: {nodes.first_lines(error)}. Check that "
                f"every node has the same simtool, and the cluster with `ray status`. {_RESUME}"
            ) from error
        for name, content in answer["files"].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, content)
        if "error" in answer:
            sys.stderr.write(answer.get("trace", ""))
            raise rebuild(answer)
        report: dict[str, Any] = answer["report"]
        return report
