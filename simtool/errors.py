"""The exceptions a caller may meet, and the exit code each one means on the command line.

SimtoolError                  anything below; its message names the fault, the value seen, what is
 |                            allowed and what to do
 +-- InputError               a file, array or network that cannot be used as given
 |    +-- FormatError         a file that is foreign, truncated, tampered with or of a newer format
 |    +-- NoImplicitForm      a model file that holds sparse layers alone
 |    +-- UnsupportedOperator a network holds an operator that cannot become rows or activations
 +-- OptionError              an option or argument outside its allowed range
 |    +-- SpecChanged         a run folder belongs to another specification
 +-- SolverError              a solver could not be used at all (missing package, licence, infeasible row)
 +-- ConvergenceError         a fixed-point iteration diverged or ran out of iterations
 +-- OutputError              an output path that cannot be written, or exists already
 +-- WorkerError              a worker process failed or disappeared
"""

from __future__ import annotations


class SimtoolError(Exception):
    """Base of every error simtool raises on purpose; the command line prints it and exits with 1."""

    exit_code = 1


class InputError(SimtoolError):
    """A file, array or network that cannot be used as given."""


class FormatError(InputError):
    """A file that is foreign, truncated, tampered with, or written by a newer format."""


class NoImplicitForm(InputError):
    """A model file holds the sparse layers of a network, and no A, B, C, D."""


class UnsupportedOperator(InputError):
    """A network holds an operator that cannot be turned into rows and activations; ``refused`` lists them all."""

    def __init__(self, message: str, refused: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.refused = refused


class OptionError(SimtoolError):
    """An option or argument outside its allowed range."""


class SpecChanged(OptionError):
    """A run folder was started with another specification."""


class SolverError(SimtoolError):
    """A solver cannot be used at all: a missing package or licence, or an infeasible row."""


class ConvergenceError(SimtoolError):
    """A fixed-point iteration diverged, or ran out of iterations."""


class OutputError(SimtoolError):
    """An output path that cannot be written, or that exists already."""


class WorkerError(SimtoolError):
    """A worker process failed or disappeared."""
