"""Scores of outputs against labels, accumulated over batches: what is asked (the task) and how it is measured."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, softmax

from simtool.errors import InputError

CLASSIFICATION = "classification"
REGRESSION = "regression"


def decide_task(labels: np.ndarray | None, q: int, output_map: str | None) -> str:
    """Integer labels are classes (for one output only if they are 0 and 1); floating ones are targets.

    One-hot rows mean classes, too (:func:`checked_labels` refuses that form). Ask with the labels of all samples, so
    that the task does not depend on which of them are chosen. Without labels, several outputs or an output map mean classes.
    """
    if labels is None:
        return CLASSIFICATION if q > 1 or output_map is not None else REGRESSION
    if is_one_hot(labels, q):
        return CLASSIFICATION
    if labels.dtype.kind == "f":
        return REGRESSION
    if q > 1 or output_map is not None:
        return CLASSIFICATION
    return CLASSIFICATION if np.isin(labels, (0, 1)).all() else REGRESSION


def is_one_hot(labels: np.ndarray, q: int) -> bool:
    """Whether ``labels`` (m, q), q > 1, hold a single 1 in each row and 0 elsewhere."""
    if q < 2 or labels.ndim != 2 or labels.shape[1] != q or not len(labels):
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())


def checked_labels(labels: np.ndarray | None, task: str, q: int) -> np.ndarray | None:
    """Classes as int64 (m,), targets as float64 (q, m); raises InputError where they do not fit ``q`` outputs."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if task == CLASSIFICATION:
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if is_one_hot(array, q):
            raise InputError(
                f"the labels are one-hot rows, shape {array.shape}; class labels must be one integer a sample. "
                "Store the class numbers instead, labels.argmax(axis=1)."
            )
        if array.ndim != 1:
            raise InputError(
                f"class labels must be one integer a sample, got shape {array.shape}. "
                "Pass class indices, or floating-point targets for regression."
            )
        classes = max(q, 2)
        if array.size and (array.min() < 0 or array.max() >= classes):
            raise InputError(
                f"labels lie in {int(array.min())}..{int(array.max())}, but the model has {q} outputs, classes "
                f"0..{classes - 1}. Check that the data belong to this model."
            )
        return array.astype(np.int64)
    targets = array.astype(np.float64).reshape(len(array), -1)
    if targets.shape[1] != q:
        raise InputError(
            f"the targets have {targets.shape[1]} numbers a sample, the model has {q} outputs. "
            "Check that the data belong to this model; class labels must be stored as integers."
        )
    if not np.isfinite(targets).all():
        raise InputError("the targets hold NaN or Inf. Remove or repair those samples.")
    return np.ascontiguousarray(targets.T)


def classes_of(y: np.ndarray) -> np.ndarray:
    """The predicted class of each column of Y (q, k), before any output map (all maps keep the order)."""
    return np.argmax(y, axis=0) if y.shape[0] > 1 else (y[0] > 0).astype(np.int64)


def loss_gradient(task: str, y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """dL/dY (q, k) of the cross-entropy (classes) or of half the squared error (targets)."""
    if task == REGRESSION:
        return y - labels
    if y.shape[0] == 1:
        return expit(y) - labels[None, :]
    gradient = np.asarray(softmax(y, axis=0))
    gradient[labels, np.arange(y.shape[1])] -= 1.0
    return gradient


class Score:
    """Accuracy and macro F1 of a classifier, mean squared error of a regression; None where undefined."""

    def __init__(self, task: str, q: int) -> None:
        self._task = task
        classes = max(q, 2)
        self._confusion = np.zeros((classes, classes), dtype=np.int64) if task == CLASSIFICATION else None
        self._squares = 0.0
        self._values = 0

    def add(self, y: np.ndarray, labels: np.ndarray | None) -> None:
        """Count a batch of outputs (q, k); without labels nothing is counted."""
        if labels is None:
            return
        if self._confusion is not None:
            np.add.at(self._confusion, (labels, classes_of(y)), 1)
        else:
            self._squares += float(np.square(y - labels).sum())
            self._values += y.size

    @property
    def accuracy(self) -> float | None:
        """Share of samples whose predicted class is the label."""
        if self._confusion is None or not self._confusion.sum():
            return None
        return float(np.trace(self._confusion) / self._confusion.sum())

    @property
    def f1(self) -> float | None:
        """Mean over the classes that occur (as label or prediction) of 2 tp / (2 tp + fp + fn)."""
        if self._confusion is None or not self._confusion.sum():
            return None
        hits = np.diag(self._confusion)
        seen = self._confusion.sum(axis=0) + self._confusion.sum(axis=1)
        return float(np.mean(2.0 * hits[seen > 0] / seen[seen > 0]))

    @property
    def mse(self) -> float | None:
        """Mean over samples and outputs of the squared error."""
        return self._squares / self._values if self._values else None


class Relative:
    """||a - b||_F / ||b||_F over batches; None where b vanishes."""

    def __init__(self) -> None:
        self._difference = 0.0
        self._reference = 0.0

    def add(self, value: np.ndarray, reference: np.ndarray) -> None:
        """Count a batch; both of one shape."""
        self._difference += float(np.square(value - reference).sum())
        self._reference += float(np.square(reference).sum())

    @property
    def value(self) -> float | None:
        """The quotient."""
        return float(np.sqrt(self._difference / self._reference)) if self._reference > 0 else None
