"""Evaluate a model on data: accuracy, agreement with its baseline, sparsity, robustness and cheap bounds."""

from simtool.stages.evaluate.attacks import Attack, make_attack
from simtool.stages.evaluate.stage import evaluate

__all__ = ["Attack", "evaluate", "make_attack"]
