"""Fast forward passes of sparse implicit models, and how few bytes such a model needs.

:class:`InferencePlan` compiles a model once and then runs it on one sample or on many; :mod:`.compressed` stores CSR
matrices compactly. ``ImplicitModel.predict`` stays the reference: it is in float64 and needs no compiler.
"""

from simtool.inference.compressed import Compressed, Sizes, compress, decompress, sizes
from simtool.inference.plan import InferencePlan

__all__ = ["Compressed", "InferencePlan", "Sizes", "compress", "decompress", "sizes"]
