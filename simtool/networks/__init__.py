"""Networks as one graph of linear operators and activations, whether read from PyTorch, ONNX or a model file.

Reading order: ``operators`` and ``graph`` (the result), ``program`` (what a reader writes down), ``patterns`` and ``symbolic`` (from
the one to the other), ``layouts``, ``layers`` and ``layer_search`` (rows of any network, with or without a graph), ``outline`` (both),
``torch_reader`` and ``onnx_reader``, ``loading``.
"""

from simtool.networks.graph import Graph, Node
from simtool.networks.loading import load_network
from simtool.networks.network import Network, NetworkSpec, Recorded

__all__ = ["Graph", "Network", "NetworkSpec", "Node", "Recorded", "load_network"]
