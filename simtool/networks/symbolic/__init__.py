"""The meaning of a program: every tensor is an affine form of the input and of the activations before it.

Reading order: ``value`` (a tensor as a form), ``interpreter`` (the loop), then the rules by kind of operator: ``affine``, ``layers``,
``shape``, ``pool``, ``piecewise``.
"""

from simtool.networks.symbolic.interpreter import Interpreter

__all__ = ["Interpreter"]
