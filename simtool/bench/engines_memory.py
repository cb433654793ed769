"""Memory and CPU time of a process and all its descendants, sampled from /proc while they work.

Private memory is RssAnon: what a process allocated itself, and not the files that all workers map.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

_PROC = Path("/proc")
_PSS_SECONDS = 1.0
_WATCH_SECONDS = 2.0
_TICK = float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0


@dataclass
class Sampler:
    """Samples of the process ``root`` and whatever descends from it; all empty on a system without /proc.

    Attributes
    ----------
    private : largest private bytes by process
    private_together, pss_together : the largest sum over all processes at one time; Pss counts a shared page by shares
    cpu : CPU seconds by process
    """

    root: int
    private: dict[int, int] = field(default_factory=dict)
    private_together: int = 0
    pss_together: int = 0
    cpu: dict[int, float] = field(default_factory=dict)
    _family: set[int] = field(default_factory=set)
    _strangers: set[int] = field(default_factory=set)
    _pss_at: float = 0.0

    def sample(self) -> None:
        """Look once. A process counts from the second look on: one just forked still shows its parent's memory."""
        now = {pid: held for pid in self._family if (held := _private(pid)) is not None}
        for pid, held in now.items():
            self.private[pid] = max(held, self.private.get(pid, 0))
            spent = _cpu(pid)
            if spent is not None:
                self.cpu[pid] = spent
        self._family &= {self.root, *now}
        self.private_together = max(self.private_together, sum(now.values()))
        if now and perf_counter() - self._pss_at >= _PSS_SECONDS:  # walks page tables: not every time
            self._pss_at = perf_counter()
            self.pss_together = max(self.pss_together, sum(_pss(pid) or 0 for pid in now))
        self._find()

    def _find(self) -> None:
        """Add new descendants: a process that was not one when it was first seen never becomes one."""
        self._family.add(self.root)
        try:
            here = {int(name) for name in os.listdir(_PROC) if name.isdecimal()}
        except OSError:
            return
        self._strangers &= here
        for pid in sorted(here - self._family - self._strangers):  # parents mostly come first
            parents, at = [pid], pid
            while at not in self._family and (parent := _parent(at)):
                parents.append(parent)
                at = parent
            if at in self._family:
                self._family.update(parents)
            else:
                self._strangers.add(pid)


@dataclass(frozen=True)
class Load:
    """How busy the machine is: the load average, and CPU seconds since it was started."""

    average: float
    busy: float | None
    at: float

    @classmethod
    def now(cls) -> Load:
        average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        return cls(average, _machine_busy(), perf_counter())

    def others_since(self, own: float) -> float | None:
        """Cores that others used on average from then to now, when we used ``own`` CPU seconds."""
        busy = _machine_busy()
        if busy is None or self.busy is None:
            return None
        return max(0.0, busy - self.busy - own) / max(1e-9, perf_counter() - self.at)


def await_idle(seconds: float, cores: float) -> None:
    """Wait until other programs use fewer than ``cores`` cores, for ``seconds`` at most."""
    ends = perf_counter() + seconds
    while perf_counter() < ends:
        before = Load.now()
        sleep(_WATCH_SECONDS)
        others = before.others_since(0.0)
        if others is None or others < cores:
            return


def _machine_busy() -> float | None:
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, _steal = (int(value) for value in fields)
    return (user + nice + system + irq + soft) / _TICK


def _stat(pid: int) -> list[str] | None:
    """The fields after the name, which may hold spaces."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _cpu(pid: int) -> float | None:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else None


def _private(pid: int) -> int | None:
    return _kilobytes(pid, "status", "RssAnon:")


def _pss(pid: int) -> int | None:
    return _kilobytes(pid, "smaps_rollup", "Pss:")


def _kilobytes(pid: int, file: str, name: str) -> int | None:
    try:
        text: Any = (_PROC / str(pid) / file).read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
