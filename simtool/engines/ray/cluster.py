"""Which Ray cluster to use: a private one on loopback, or a running one whose address is checked before it is used.

Ray itself waits for minutes on an address where no cluster answers, so that is found out here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simtool.engines.threads import worker_environment
from simtool.errors import OptionError, WorkerError

ANSWER_SECONDS = 5.0
CLUSTER_SECONDS = 20.0
# Mapped inputs leave the object store nothing but reports to hold; Ray's smallest is 75 MiB.
_SMALL_STORE = 100 * 2**20
# The longest path of a socket is 107 characters, of which Ray needs about 70 below its folder.
_LONGEST_FOLDER = 35
_START_ONE = (
    "Start one with `ray start --head`, or pass --ray-address local for a private one on this machine."
)


def require_ray() -> None:
    """Raise OptionError unless ray is installed; does not import it."""
    try:
        missing = importlib.util.find_spec("ray") is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        raise OptionError(
            "--engine ray needs the package ray, which is not installed. Run: pip install 'simtool[ray]', or use "
            "--engine process."
        )


def quieten(loopback: bool) -> None:
    """Set, before ray is imported, what keeps it silent; ``loopback``: this process listens on 127.0.0.1 only."""
    for name, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),  # else a FutureWarning
        *((("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"),) if loopback else ()),
    ):
        os.environ.setdefault(name, value)


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` names this machine's loopback."""
    host = address.rpartition(":")[0]
    return host == "localhost" or host.startswith("127.")


def find_running(address: str) -> str:
    """The ``host:port`` of the running cluster that ``address`` (``auto`` or ``host:port``) means.

    Raises OptionError if there is none, or nothing answers there within seconds. Ray's own search for ``auto`` also
    takes any cluster whose processes it sees, among them the private ones of other runs: not done here.
    """
    asked = "--ray-address " + address
    if address == "auto":
        asked = f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}"
        address = os.environ.get("RAY_ADDRESS") or ""
        if address in ("", "auto", "local"):
            note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
            asked = f"the cluster noted in {note}"
            with contextlib.suppress(OSError):
                address = note.read_text().strip()
            if address in ("", "auto", "local"):
                raise OptionError(f"--ray-address auto found no running Ray cluster. {_START_ONE}")
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise OptionError(
            f"{asked} is not an address. It must be auto, local or the host:port that `ray start --head` printed "
            "(port 6379, if not chosen otherwise); the Ray client (ray://) is not supported: run simtool on a "
            "machine of the cluster."
        )
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise OptionError(f"nothing answers at {address} ({asked}): {error}. {_START_ONE}") from error
    return address


def require_cluster(address: str, explicit: bool) -> bool:
    """Raise OptionError if what listens at ``address`` is no Ray cluster, or wants a token that Ray was not told to send.

    Asked in a process of its own, as Ray cannot be interrupted while it waits for an answer. ``explicit``: the user
    named the address; for one that it finds itself Ray sends the user's token. Returns whether the cluster wants it:
    sent to one that does not, it makes the workers' calls to this process fail.
    """
    question = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", question, address],
            timeout=CLUSTER_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,  # anything but silence and a refusal is judged by ray.init, which says more
        )
    except subprocess.TimeoutExpired as error:
        raise OptionError(
            f"what listens at {address} did not answer as a Ray cluster within {CLUSTER_SECONDS:.0f} s. Pass the "
            f"host:port that `ray start --head` printed. {_START_ONE}"
        ) from error
    wants_token = b"AuthenticationError" in asked.stderr
    if explicit and wants_token:
        raise OptionError(
            f"the Ray cluster at {address} asks for its token, and none or another one was sent. Set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where the token is not where Ray looks for it."
        )
    return wants_token


_ROOT = Path(__file__).parents[3]
# Not -m: modules in the folder of the call would come before Python's own.
_KEEPER = "import sys; sys.path.append(sys.argv.pop(1)); from simtool.engines.ray.keeper import main; main()"


class PrivateCluster:
    """A Ray cluster of one node on loopback that ends with this process, also if that is killed with -9.

    It has a token of its own: other users of the machine can reach its ports, but not use it.
    """

    def __init__(self, cpus: int, mapped: bool) -> None:
        """Begin to start it; :meth:`wait` before it is used."""
        self._replaced: dict[str, str | None] = {}
        base = tempfile.gettempdir()
        self._folder = tempfile.mkdtemp(
            prefix="simray-", dir=base if len(base) + 16 <= _LONGEST_FOLDER else "/tmp"
        )
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = worker_environment() | token
        environment.pop("RAY_ADDRESS", None)
        store = _SMALL_STORE if mapped else 0
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-c", _KEEPER, str(_ROOT), str(cpus), self._folder, str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._token = token
        self.address = ""

    def wait(self) -> None:
        """Return when it is there, ``address`` known; raises WorkerError if Ray cannot start it."""
        try:
            assert self._keeper.stdout is not None
            line = self._keeper.stdout.readline()
            answer = json.loads(line) if line else {"error": f"it ended with code {self._keeper.wait()}"}
            if "error" in answer:
                raise WorkerError(
                    f"the private Ray cluster could not be started ({answer['error']}). Use --engine process, which "
                    "needs no cluster, or connect to a running one with --ray-address."
                )
        except BaseException:
            self.close()
            raise
        self.address = str(answer["address"])
        self._replaced = {name: os.environ.get(name) for name in self._token}
        _set_token(self._token)

    def close(self) -> None:
        """End every process of the cluster and remove its files; safe to call twice."""
        _set_token(self._replaced)
        keeper = self._keeper
        if keeper.stdin is not None:
            keeper.stdin.close()
        try:
            keeper.wait()
        finally:  # a second Ctrl-C leaves the keeper at its work
            if keeper.stdout is not None:
                keeper.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _set_token(variables: Mapping[str, str | None]) -> None:
    """Put ``variables`` (None: remove) into the environment, and make a ray that is loaded already read them again."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if variables and "ray" in sys.modules:
        core: Any = importlib.import_module("ray._raylet")
        with contextlib.suppress(AttributeError):  # a ray from before there were tokens
            core.Config.initialize("")
            core.AuthenticationTokenLoader.instance().reset_cache()
