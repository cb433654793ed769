"""simtool: turn a trained network into a sparse, certified implicit model without retraining it."""

__version__ = "0.1.0"
