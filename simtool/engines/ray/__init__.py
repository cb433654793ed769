"""Ray: tasks on a private cluster of this machine, or on the nodes of a running one. Ray itself is imported when it is used."""

from __future__ import annotations

from simtool.engines.ray.engine import RayEngine

__all__ = ["RayEngine"]
