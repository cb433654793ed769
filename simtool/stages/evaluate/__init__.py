"""Evaluate a model on data: accuracy, agreement with its baseline, sparsity, robustness and cheap bounds."""

from simtool.stages.evaluate.attacks import Attack, make_attack
from simtool.stages.evaluate.sparse_network import Model, SparseNetwork, load_runnable
from simtool.stages.evaluate.stage import measure_model

__all__ = ["Attack", "Model", "SparseNetwork", "load_runnable", "make_attack", "measure_model"]
