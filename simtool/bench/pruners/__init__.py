"""Other people's pruning of one layer after training, written from their papers, for ``simtool bench quality`` alone.

A peer gets a layer's weights (r, d) and the Gram matrix (d, d) of what the layer reads, and returns weights of which it
keeps a number that is given. It minimises, or stands for,

    || (W - W0) F ||_F^2 = trace( (W - W0) H (W - W0)^T ),     H = F F^T,     with ``keep`` non-zeros in W

``magnitude`` by |w| alone, ``wanda`` by |w| ||f_j||, ``sparsegpt``, ``obc`` and ``admm`` (ALPS) with other weights.
"""

from simtool.bench.pruners.layer import Layer
from simtool.bench.pruners.peers import BUDGETS, PEERS, Peer, by_name

__all__ = ["BUDGETS", "PEERS", "Layer", "Peer", "by_name"]
