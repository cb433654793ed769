"""The order in which states can be computed: strongly connected components of A's graph, level by level.

State i depends on state j where a_ij is not 0. A component that is one state without a self loop is evaluated by
substitution; all such states of one level share one sparse product. Only the other components need a fixed point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

_DENSE_LIMIT = 3000  # above this size a cyclic component is factorised sparsely


@dataclass(frozen=True, eq=False)
class Component:
    """States that are computed together.

    ``rows`` (k,) are sorted; ``cyclic`` says whether a fixed point is needed. ``incoming`` (k, n) holds the
    entries of A that come from other components, ``inner`` (k, k) those within a cyclic one.
    """

    level: int
    rows: np.ndarray
    cyclic: bool
    incoming: sparse.csr_array
    inner: sparse.csr_array
    _matrix: sparse.csr_array

    @cached_property
    def outgoing(self) -> sparse.csr_array:
        """(k, n): the transpose of A's columns ``rows``, entries within the component left out."""
        columns = sparse.csr_array(self._matrix[:, self.rows].T)
        if not self.cyclic:
            return columns
        return _without_columns(columns, self.rows)


def _without_columns(matrix: sparse.csr_array, columns: np.ndarray) -> sparse.csr_array:
    dropped = np.zeros(matrix.shape[1], dtype=bool)
    dropped[columns] = True
    result = matrix.copy()
    result.data[dropped[result.indices]] = 0.0
    result.eliminate_zeros()
    return result


def _component_levels(matrix: sparse.csr_array, label: np.ndarray, count: int) -> np.ndarray:
    """The longest path that leads to each component, (count,)."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    source, target = label[matrix.indices], label[rows]
    between = source != target
    # feeds[s, t] != 0: component t uses component s
    feeds = sparse.csr_array(
        (np.ones(int(between.sum()), dtype=np.int8), (source[between], target[between])), shape=(count, count)
    )
    feeds.sum_duplicates()
    waiting = np.bincount(feeds.indices, minlength=count)
    level = np.zeros(count, dtype=np.int64)
    frontier = np.flatnonzero(waiting == 0)
    depth = 0
    while frontier.size:
        level[frontier] = depth
        reached = feeds[frontier].indices
        np.subtract.at(waiting, reached, 1)
        candidates = np.unique(reached)
        frontier = candidates[waiting[candidates] == 0]
        depth += 1
    return level


def order(matrix: sparse.csr_array) -> tuple[Component, ...]:
    """The components of ``matrix`` (n, n) in an order in which each uses only earlier ones (and itself)."""
    n = matrix.shape[0]
    if n == 0:
        return ()
    count, label = connected_components(matrix, directed=True, connection="strong")
    size = np.bincount(label, minlength=count)
    loop = np.zeros(count, dtype=bool)
    loop[label[matrix.diagonal() != 0]] = True
    cyclic = (size > 1) | loop
    level = _component_levels(matrix, label, count)
    state_level, state_cyclic = level[label], cyclic[label]
    empty = sparse.csr_array((0, 0))
    components: list[Component] = []
    for depth in range(int(level.max()) + 1):
        rows = np.flatnonzero((state_level == depth) & ~state_cyclic)
        if rows.size:
            components.append(Component(depth, rows, False, sparse.csr_array(matrix[rows]), empty, matrix))
        here = np.flatnonzero((state_level == depth) & state_cyclic)
        for name in np.unique(label[here]):
            rows = here[label[here] == name]
            own = sparse.csr_array(matrix[rows])
            inner = sparse.csr_array(own[:, rows])
            components.append(Component(depth, rows, True, _without_columns(own, rows), inner, matrix))
    return tuple(components)


def solve_inner(matrix: sparse.csr_array, right: np.ndarray) -> np.ndarray | None:
    """x with (I - matrix) x = right, or None where the system is singular; ``right`` is (k,) or (k, m)."""
    k = matrix.shape[0]
    try:
        if k <= _DENSE_LIMIT:
            solution = np.linalg.solve(np.eye(k) - matrix.toarray(), right)
        else:
            solution = sparse.linalg.splu(sparse.csc_array(sparse.eye_array(k) - matrix)).solve(right)
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    return solution if np.isfinite(solution).all() else None


def solve_nonnegative(
    components: Sequence[Component], weight: np.ndarray, right: np.ndarray
) -> np.ndarray | None:
    """t with t = diag(weight)|A| t + right for weight, right >= 0, by substitution along ``components``.

    None where no finite t >= 0 exists (a Perron-Frobenius eigenvalue of at least 1, or an overflow).
    """
    solution = np.zeros(len(right))
    with np.errstate(over="ignore", invalid="ignore"):
        for component in components:
            rows = component.rows
            value = right[rows] + weight[rows] * (abs(component.incoming) @ solution)
            if component.cyclic:
                inner = sparse.csr_array(sparse.diags_array(weight[rows]) @ abs(component.inner))
                inside = solve_inner(inner, value) if np.isfinite(value).all() else None
                if inside is None or (inside < value * (1 - 1e-9)).any():
                    return None
                value = inside
            if not np.isfinite(value).all():
                return None
            solution[rows] = value
    return solution
