"""``extract``: run a network over data and store its states (SIM algorithm 1), in batches of constant memory.

Reading order: ``choice`` (what is stored), ``recording`` (batches to checked columns), ``layers`` (the columns of shared weights),
``stage`` (the command).
"""

from simtool.stages.extract.stage import extract

__all__ = ["extract"]
