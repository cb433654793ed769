"""Many sparsifications of the same states, over grids of hyper-parameters, each an ordinary run; measured side by side.

Read in this order: grid (what may be swept, and the points of it), presets (the papers' grids), points (one point: its run,
then its measurement), stage (the whole, resumable).
"""

from simtool.stages.sweep.grid import AXES, Axis, Grid, Point
from simtool.stages.sweep.points import Measure
from simtool.stages.sweep.presets import PRESETS, Preset
from simtool.stages.sweep.stage import run_sweep

__all__ = ["AXES", "PRESETS", "Axis", "Grid", "Measure", "Point", "Preset", "run_sweep"]
