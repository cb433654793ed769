"""What the laws of composition share: matrices stacked, blocks renamed, parents found, the bias column kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from simtool.blocks import BIAS, INPUT, Block
from simtool.errors import InputError
from simtool.model.implicit import ImplicitModel

Weight: TypeAlias = float | np.ndarray | sparse.sparray  # a multiple of the identity, a diagonal or a matrix


def input_size(model: ImplicitModel) -> int:
    """Rows of U without the bias."""
    return model.p - int(model.has_bias)


def operator(weight: Weight, size: int, name: str, *, rows: bool = False) -> sparse.csr_array:
    """``weight`` as a matrix with ``size`` columns (``rows``: with ``size`` rows).

    A number is a multiple of the identity, a vector of length ``size`` a diagonal.
    """
    matrix: Any = weight if sparse.issparse(weight) else np.asarray(weight, dtype=np.float64)
    if matrix.ndim == 0:
        return sparse.csr_array(sparse.diags_array(np.full(size, float(matrix))))
    if matrix.ndim == 1 and matrix.shape == (size,):
        return sparse.csr_array(sparse.diags_array(np.asarray(matrix)))
    if matrix.ndim == 2 and matrix.shape[0 if rows else 1] == size:
        return sparse.csr_array(matrix, dtype=np.float64)
    wanted = f"({size}, any)" if rows else f"(any, {size})"
    raise InputError(
        f"{name} has shape {matrix.shape}; it must be a number, a vector of length {size} or a matrix of shape {wanted}."
    )


def plain(model: ImplicitModel, part: str, strip_output_map: bool) -> ImplicitModel:
    """``model``, whose Y is about to be used by another part; refused where Y is not what the model prints."""
    if model.output_map is None:
        return model
    if not strip_output_map:
        raise InputError(
            f"the model {part!r} has the output map {model.output_map!r}, which is not part of C and D, so that what it prints "
            "cannot enter another model. Pass strip_output_map=True to connect its outputs before that map."
        )
    return replace(model, output_map=None)


def split(matrix: sparse.csr_array, model: ImplicitModel) -> tuple[sparse.csr_array, sparse.csr_array]:
    """The columns of B or D that inputs meet, and the bias column (rows, 1), 0 where the model has none."""
    if not model.has_bias:
        return matrix, sparse.csr_array((matrix.shape[0], 1))
    return sparse.csr_array(matrix[:, :-1]), sparse.csr_array(matrix[:, [-1]])


def stack(*rows: Sequence[sparse.csr_array]) -> sparse.csr_array:
    """Rows of matrices, any of them empty, put together."""
    return sparse.csr_array(
        sparse.vstack([sparse.hstack(list(row), format="csr") for row in rows], format="csr")
    )


def _parents(
    left: sparse.csr_array, right: sparse.csr_array, blocks: Sequence[Block], has_bias: bool
) -> tuple[str, ...]:
    """What these rows of (A, B) or of (C, D) really use."""
    starts = np.array([block.offset for block in blocks], dtype=np.int64)
    used = np.unique(np.searchsorted(starts, np.unique(left.indices), side="right") - 1)
    names = [blocks[i].name for i in used]
    bias = right.shape[1] - 1 if has_bias else right.shape[1]
    columns = np.unique(right.indices)
    return (
        *names,
        *([INPUT] if (columns < bias).any() else []),
        *([BIAS] if (columns == bias).any() else []),
    )


def assemble(
    matrices: dict[str, sparse.csr_array],
    parts: Sequence[tuple[str, ImplicitModel]],
    *,
    has_bias: bool,
    input_shape: tuple[int, ...],
    output_map: str | None = None,
    closed: bool = False,
) -> ImplicitModel:
    """The model with ``matrices`` whose states are those of the named ``parts``, in this order.

    ``structure`` is that of the parts where they agree, else ``dag`` or ``free``; ``closed`` says that a loop was closed,
    which leaves no other. The baseline is the sum of the parts' where all of them that have states know theirs.
    """
    matrices = {name: sparse.csr_array(matrix, dtype=np.float64) for name, matrix in matrices.items()}
    for matrix in matrices.values():
        matrix.eliminate_zeros()
    blocks: list[Block] = []
    for name, model in parts:
        prefix, offset = f"{name}/" if name else "", blocks[-1].rows.stop if blocks else 0
        blocks += [replace(b, name=prefix + b.name, offset=offset + b.offset) for b in model.blocks]
    names = [block.name for block in blocks]
    if len(set(names)) < len(names):
        raise InputError(
            f"two blocks of the composed model would have the same name: {sorted({x for x in names if names.count(x) > 1})}. "
            f"Pass different names for its parts, got {[name for name, _ in parts]}."
        )
    a, b = matrices["A"], matrices["B"]
    blocks = [replace(x, parents=_parents(a[x.rows], b[x.rows], blocks, has_bias)) for x in blocks]
    with_states = [model for _, model in parts if model.n]
    known = all(model.baseline_nnz for model in with_states)
    scaling = None
    if any(model.scaling is not None for model in with_states):
        ones = [np.ones(model.n) if model.scaling is None else model.scaling for model in with_states]
        scaling = np.concatenate(ones)
    result = ImplicitModel(
        **matrices,
        blocks=tuple(blocks),
        output_parents=_parents(matrices["C"], matrices["D"], blocks, has_bias),
        output_map=output_map,
        has_bias=has_bias,
        input_shape=input_shape,
        scaling=scaling,
        fingerprints={
            f"{name}/{key}" if name else key: value
            for name, model in parts
            for key, value in model.fingerprints.items()
        },
        baseline_nnz=sum(model.baseline_nnz for model in with_states) if known else 0,
        baseline_bytes=sum(model.baseline_bytes for model in with_states) if known else 0,
    )
    structures = {model.structure for model in with_states}
    if not closed and len(structures) == 1 and (known or structures != {"exact"}):
        return replace(result, structure=structures.pop())
    acyclic = not any(component.cyclic for component in result.components)
    return replace(result, structure="dag" if acyclic else "free")
