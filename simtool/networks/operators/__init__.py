"""Linear operators between blocks: what a layer does to what feeds it.

Each acts on flattened rows: ``apply`` maps (k, in_size) to (k, out_size), ``adjoint`` maps gradients back, and ``matrix`` is the
explicit (out_size, in_size) form that becomes a piece of A, B, C or D, formed only when asked for. Weights (``Dense``, ``SharedDense``,
``Convolution``, ``Sparse``) stay what they are; fixed parts (``Diagonal``, ``Gather``, ``Pool``) carry no parameters of the network.
"""

from simtool.networks.operators.base import LinearOperator, Shape
from simtool.networks.operators.chain import Chain
from simtool.networks.operators.compose import compose, merged
from simtool.networks.operators.convolution import Convolution
from simtool.networks.operators.dense import Dense, SharedDense
from simtool.networks.operators.pool import Pool, average
from simtool.networks.operators.select import Gather
from simtool.networks.operators.signature import signature
from simtool.networks.operators.sparse import Diagonal, Sparse, identity
from simtool.networks.operators.window import Window

__all__ = [
    "Chain",
    "Convolution",
    "Dense",
    "Diagonal",
    "Gather",
    "LinearOperator",
    "Pool",
    "Shape",
    "SharedDense",
    "Sparse",
    "Window",
    "average",
    "compose",
    "identity",
    "merged",
    "signature",
]
