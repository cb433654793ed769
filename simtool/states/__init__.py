"""states.h5: what a network computed on the extraction data, U, Z, X, Y with samples as columns, and the columns of its layers.

Written in batches of columns and atomically: the file appears when it is complete. Read through :func:`open_states`.
"""

from simtool.states.first import first
from simtool.states.header import StatesHeader
from simtool.states.reading import LayerStates, States, open_states
from simtool.states.writing import StatesLayout, StatesWriter, create_states

__all__ = [
    "LayerStates",
    "States",
    "StatesHeader",
    "StatesLayout",
    "StatesWriter",
    "create_states",
    "first",
    "open_states",
]
