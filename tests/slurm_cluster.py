"""A private SLURM on loopback for the tests: own ports, own key, nothing in /etc, no services.

All nodes are this machine. What is stopped at the end is what was started: the daemons by their own ids, and the
steps they left behind by a mark in their environment that nobody else has.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGES = "slurm-wlm and munge"
_MARK = "SIMTOOL_TEST_NODE"
_START_SECONDS = 60.0


def programs() -> dict[str, str] | None:
    """Where the daemons are, None if SLURM is not installed; Debian keeps them outside a user's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    names = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
    found = {name: shutil.which(name, path=path) for name in names}
    return None if None in found.values() else {k: v for k, v in found.items() if v}


class SlurmCluster:
    """``nodes`` nodes called n1, n2, ... of ``cpus`` cores each; use as a context manager."""

    def __init__(self, nodes: int = 3, cpus: int = 2) -> None:
        found = programs()
        if found is None:
            pytest.skip(f"SLURM is not installed here (Debian: apt-get install {PACKAGES})")
        self._programs = found
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.cpus = cpus
        # Short, as the path of a socket may have some 100 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
        self.conf = self.folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmCluster:
        try:
            for name in ("state", "log", "spool", "munge"):
                (self.folder / name).mkdir(mode=0o700 if name == "munge" else 0o755)
            self.folder.chmod(0o755)
            self._start_munge()
            self._configure()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self._await(lambda: self._idle() == len(self.nodes), "the nodes to be idle")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # what tests do to it

    def run(self, *argv: str) -> str:
        """Output of one of SLURM's programs."""
        environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=True, timeout=60)
        return done.stdout.strip()

    def kill_node(self, node: str) -> None:
        """Take the power from a node: its daemon and everything that runs there."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self._kill_marked(node)

    def start_node(self, node: str) -> None:
        """Start a node, again if it was killed."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-f", str(self.conf), "-N", node, mark=node)

    def drain(self, node: str, reason: str = "a test") -> None:
        """No new work for a node; what runs there goes on."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def undrain(self, node: str) -> None:
        """The opposite of :meth:`drain`."""
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def stop_controller(self) -> None:
        """The controller is away; running jobs go on."""
        daemon = self._daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait()

    def start_controller(self) -> None:
        """Start the controller, again if it was stopped: the queue is kept on disk."""
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf), mark="controller")

    def clear(self) -> None:
        """End all jobs and wait until they are gone, so that a test finds an empty queue and all nodes."""
        for node in self.nodes:
            if node not in self._daemons:
                self.start_node(node)
        if "slurmctld" not in self._daemons:
            self.start_controller()
        self._await(lambda: self._try("scancel", f"--user={_user()}") is not None, "scancel")
        self._await(lambda: self._try("squeue", "--noheader") == "", "the queue to be empty")
        for node in self.nodes:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.undrain(node)
        self._await(lambda: self._idle() == len(self.nodes), "the nodes to be idle")

    def where(self, job: int, part: int) -> str:
        """The node on which a task of an array runs."""
        return self.run("squeue", "--noheader", "--array", f"--jobs={job}_{part}", "--format=%N")

    def close(self) -> None:
        """Stop what was started, and delete the folder."""
        if "slurmctld" in self._daemons:
            self._try("scancel", f"--user={_user()}")
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for node in self.nodes:
            self._kill_marked(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    # how it is built

    def _start(self, name: str, program: str, *arguments: str, mark: str = "") -> None:
        environment = {**os.environ, "SLURM_CONF": str(self.conf), _MARK: f"{self.folder}/{mark}"}
        with (self.folder / "log" / f"{name}.start").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [self._programs[program], *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _start_munge(self) -> None:
        key, munge = self.folder / "munge" / "key", self.folder / "munge"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._socket = self.folder / "munge.sock"
        arguments = {
            "key-file": key,
            "socket": self._socket,
            "pid-file": munge / "pid",
            "log-file": munge / "log",
            "seed-file": munge / "seed",
            "num-threads": 2,
        }
        words = [f"--{name}={value}" for name, value in arguments.items()]
        self._start("munged", "munged", "--foreground", "--force", *words)
        self._await(self._socket.exists, "munged")

    def _configure(self) -> None:
        ports = _free_ports(len(self.nodes) + 1)
        lines = [
            "ClusterName=simtest",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            # Without a short life of credentials, a requeued task waits for two minutes.
            f"AuthType=auth/munge\nAuthInfo=socket={self._socket},cred_expire=5\nCredType=cred/munge",
            f"SlurmUser={_user()}\nSlurmdUser={_user()}",
            f"StateSaveLocation={self.folder}/state\nSlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid\nSlurmdPidFile={self.folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld\nSlurmdLogFile={self.folder}/log/slurmd.%n",
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none\nMpiDefault=none\nSwitchType=switch/none",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,defer_batch",
            "ReturnToService=2\nMinJobAge=300\nKillWait=2\nInactiveLimit=0\nWaittime=0",
            "MessageTimeout=5\nSlurmctldTimeout=30\nSlurmdTimeout=6\nJobRequeue=1\nMaxArraySize=1001",
        ]
        lines += [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=4000"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        lines += [
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100",
            "PartitionName=short Nodes=ALL MaxTime=1 State=UP DefMemPerCPU=100",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def _idle(self) -> int:
        answer = self._try("sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D %t")
        return sum(int(line.split()[0]) for line in (answer or "").splitlines() if line.endswith(" idle"))

    def _try(self, *argv: str) -> str | None:
        try:
            return self.run(*argv)
        except subprocess.SubprocessError:
            return None

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"{p.name}: {p.read_text(errors='replace')[-800:]}"
                    for p in (self.folder / "log").iterdir()
                )
                raise RuntimeError(f"waited in vain for {what}\n{logs}")
            time.sleep(0.1)

    def _kill_marked(self, node: str) -> None:
        """End the processes of a node: its steps carry our mark, its jobs the name of the node and our configuration."""
        step = f"{_MARK}={self.folder}/{node}".encode()
        job = {f"SLURM_CONF={self.conf}".encode(), f"SLURMD_NODENAME={node}".encode()}
        for _ in range(3):  # a process may be starting another
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                with contextlib.suppress(OSError):
                    found = set((entry / "environ").read_bytes().split(b"\0"))
                    if step in found or job <= found:
                        os.kill(int(entry.name), signal.SIGKILL)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is bound to come; a minute or two on a busy machine, then it is a failure."""
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range from which the system hands them out; random, as workers run side by side."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 2000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    """The cluster that all tests of a session share."""
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster with an empty queue and every node up, as the one that SLURM's programs speak to."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_session.conf))
    yield slurm_session
    slurm_session.clear()
