"""Fewer states, the same outputs: what nothing reads is removed, what never changes becomes part of the biases (IDL section 5.2).

IDL states it for zero columns of (A; C) and zero rows of (A, B). Both are taken to their end here:

dead      a state from which no path of non-zeros leads to an output. No other state or output depends on it.
constant  a state to which no path leads from an input (the bias is none). It has one value c for every sample, so that
          a_ij x_j = a_ij c_j belongs to the bias of row i. Without a bias column only c_j = 0 can be taken out.

A cycle of such states has one value where it is proven well-posed; an unproven one is kept, and all that depends on it.
Every activation acts on its state alone (max-pooling is relu states here), so states can go one by one; an activation that
coupled the states of a block would have to keep or lose them together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from simtool.blocks import BIAS, INPUT, Block
from simtool.errors import ConvergenceError
from simtool.model.certificates import CertificateTable
from simtool.model.forward import FixedPoint
from simtool.model.implicit import ImplicitModel
from simtool.row_status import RowStatus

_PRECISE = FixedPoint(tolerance=1e-15)  # iterates until all that is left is rounding


@dataclass(frozen=True, eq=False)
class Compacted:
    """What :func:`compact_model` made.

    Attributes
    ----------
    model : with the states ``kept``, and the same outputs for the same inputs
    kept, dead, constant : states of the model given, sorted; together they are all of it
    changed : rows of the new M whose bias took constants in, sorted
    unread : inputs that no state and no output of ``model`` reads, as places in a flattened sample. They stay part
        of the sample, so that the same data fit
    """

    model: ImplicitModel
    kept: np.ndarray
    dead: np.ndarray
    constant: np.ndarray
    changed: np.ndarray
    unread: np.ndarray


def compact_model(model: ImplicitModel, *, fold_constants: bool = True) -> Compacted:
    """``model`` without states that nothing reads and, with ``fold_constants``, without those that are constant.

    Blocks, scaling, baseline and fingerprints stay what they are, for the states that are left; ``scale`` and the verdict of
    well-posedness are found anew. Rows that lost dead features keep their certificates, those of ``changed`` rows say that
    nothing is proven (their problem was posed in the states' samples, where the teacher's states need not be constant).
    A model that also holds the sparse layers of its network holds them, and the certificates of their rows, no longer, unless
    nothing was removed: layers are tied to the network's shapes. ``header_extra["compact"]`` says which states are left.

    Raises ConvergenceError where constant states overflow: so does the model for every input.
    """
    everything = np.arange(model.n)
    alive = _read(model.A, model.C)
    fixed, values = _constant(model, alive) if fold_constants else (everything[:0], np.zeros(0))
    if not model.has_bias:
        fixed, values = fixed[values == 0.0], values[values == 0.0]
    keep = alive.copy()
    keep[fixed] = False
    # without a bias column a constant may be kept, and nothing may read it any more
    rest = np.flatnonzero(keep)
    keep[rest] = _read(_part(model.A, rest, rest), sparse.csr_array(model.C[:, rest]))
    kept = np.flatnonzero(keep)
    gone = np.setdiff1d(np.flatnonzero(~keep), fixed)
    if kept.size == model.n:
        return Compacted(model, kept, gone, fixed, everything[:0], _unread(model))
    reading = [_part(model.A, kept, fixed), sparse.csr_array(model.C[:, fixed])]
    changed = np.flatnonzero(np.concatenate([np.diff(matrix.indptr) for matrix in reading]))
    smaller = _without(model, kept, fixed, values, changed)
    return Compacted(smaller, kept, gone, fixed, changed, _unread(smaller))


def _part(matrix: sparse.csr_array, rows: np.ndarray, columns: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(matrix[rows][:, columns])


def _reached(matrix: sparse.csr_array, start: np.ndarray) -> np.ndarray:
    """Where paths from ``start`` lead, (n,) bool, start included; row i of ``matrix`` holds what follows i."""
    found = np.zeros(matrix.shape[0], dtype=bool)
    frontier = np.unique(start)
    while frontier.size:
        found[frontier] = True
        following = np.unique(matrix[frontier].indices)
        frontier = following[~found[following]]
    return found


def _read(a: sparse.csr_array, c: sparse.csr_array) -> np.ndarray:
    """The states that an output depends on, (n,) bool."""
    return _reached(a, c.indices)


def _inputs(model: ImplicitModel) -> int:
    return model.p - int(model.has_bias)


def _constant(model: ImplicitModel, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states among ``alive`` that no input moves, and the value of each."""
    unproven = [c.rows for c in model.well_posedness().components if c.by is None]
    cyclic = [c.rows for c in model.components if c.cyclic]
    for uncertain in (unproven, cyclic):
        driven = np.flatnonzero(np.diff(sparse.csr_array(model.B[:, : _inputs(model)]).indptr))
        moved = _reached(sparse.csr_array(model.A.T), np.concatenate([driven, *uncertain]))
        fixed = np.flatnonzero(~moved & alive)
        try:
            return fixed, _values(model, fixed)
        except ConvergenceError:
            if len(uncertain) == len(cyclic):
                raise
    raise AssertionError("the last try returns or raises")


def _values(model: ImplicitModel, fixed: np.ndarray) -> np.ndarray:
    """x of the states ``fixed``, which read the bias and each other only."""
    bias = int(model.has_bias)
    alone = ImplicitModel(
        A=_part(model.A, fixed, fixed),
        B=model.B[fixed][:, _inputs(model) :],
        C=sparse.csr_array((0, fixed.size)),
        D=sparse.csr_array((0, bias)),
        blocks=tuple(replace(block, parents=()) for block in _blocks(model.blocks, fixed)),
        has_bias=model.has_bias,
        input_shape=(0,),
    )
    return alone.forward(np.ones((bias, 1)), _PRECISE).X[:, 0]


def _blocks(blocks: tuple[Block, ...], kept: np.ndarray) -> tuple[Block, ...]:
    """The blocks of the states ``kept``, renumbered; those that are empty now are gone, also as parents."""
    result: list[Block] = []
    offset = 0
    for block in blocks:
        low, high = np.searchsorted(kept, [block.offset, block.offset + block.size])
        size = int(high - low)
        if size:
            shape = block.shape if size == block.size else (size,)
            result.append(replace(block, offset=offset, size=size, shape=shape))
            offset += size
    left = {block.name for block in result}
    return tuple(replace(block, parents=_left(block.parents, left)) for block in result)


def _left(parents: tuple[str, ...], names: set[str]) -> tuple[str, ...]:
    return tuple(parent for parent in parents if parent in names or parent in (INPUT, BIAS))


def _with_bias(parents: tuple[str, ...], takes: bool) -> tuple[str, ...]:
    return (*parents, BIAS) if takes and BIAS not in parents else parents


def _folded(
    left: sparse.csr_array, right: sparse.csr_array, fixed: np.ndarray, values: np.ndarray, bias: bool
) -> sparse.csr_array:
    """``right`` (rows of B or D) with ``left`` (those of A or C) times the constants added to its last column."""
    extra = sparse.csr_array(left[:, fixed]) @ values
    if not bias or not extra.any():
        return right
    column = sparse.csr_array(extra.reshape(-1, 1))
    empty = sparse.csr_array((right.shape[0], right.shape[1] - 1))
    return sparse.csr_array(right + sparse.hstack([empty, column], format="csr"))


def _without(
    model: ImplicitModel, kept: np.ndarray, fixed: np.ndarray, values: np.ndarray, changed: np.ndarray
) -> ImplicitModel:
    states = changed[changed < kept.size]
    blocks = _blocks(model.blocks, kept)
    if model.has_bias:
        blocks = tuple(
            replace(
                x, parents=_with_bias(x.parents, bool(((states >= x.offset) & (states < x.rows.stop)).any()))
            )
            for x in blocks
        )
    parents = _left(model.output_parents, {block.name for block in blocks})
    result = replace(
        model,
        A=_part(model.A, kept, kept),
        B=_folded(
            sparse.csr_array(model.A[kept]), sparse.csr_array(model.B[kept]), fixed, values, model.has_bias
        ),
        C=sparse.csr_array(model.C[:, kept]),
        D=_folded(model.C, model.D, fixed, values, model.has_bias),
        blocks=blocks,
        output_parents=_with_bias(parents, model.has_bias and changed.size > states.size),
        scaling=None if model.scaling is None else model.scaling[kept],
        scale=None,
        certificates=_certificates(model, kept, changed),
        header_extra={**model.header_extra, "compact": _origin(model, kept)},
        parameters_nnz=None,
        layers=None,
    )
    return replace(result, scale=result.rescaling(), parameters_nnz=_parameters(model, result, changed.size))


def _parameters(model: ImplicitModel, result: ImplicitModel, changed: int) -> int | None:
    """Non-zero explicit parameters where rows share them: at most those there were, and the biases that differ now."""
    if model.parameters_nnz is None or model.parameters_nnz == model.nnz:
        return None
    return min(result.nnz, model.parameters_nnz + changed)


def _certificates(model: ImplicitModel, kept: np.ndarray, changed: np.ndarray) -> CertificateTable | None:
    """Those of the rows that are left, with nothing proven of ``changed`` rows: their coefficients are not those that were judged.

    The dual bound of such a row's problem stays true. Its primal value is not known, infinite, and the relative gap is then 1, the
    most that it can be for objectives that are not negative.
    """
    table = model.certificates
    if table is None:
        return None
    rows = np.concatenate([kept, np.arange(model.n, model.n + model.q)])
    columns = {name: getattr(table, name)[rows] for name in CertificateTable.columns()}
    columns["certified"][changed] = False
    columns["status"][changed] = RowStatus.GAP.code
    columns["primal"][changed] = np.inf
    columns["relative_gap"][changed] = 1.0
    columns["kappa_slack"][changed] = np.inf
    columns["multiplier"][changed] = 0.0
    return CertificateTable(**columns)


def _origin(model: ImplicitModel, kept: np.ndarray) -> dict[str, Any]:
    """Which states of the model first compacted are left, as [first, last] of each run of them; and what was proven of the layers
    that are no longer here."""
    before = model.header_extra.get("compact")
    result: dict[str, Any] = dict(before) if isinstance(before, dict) else {"states": model.n}
    if isinstance(before, dict):
        known = [np.arange(low, high + 1) for low, high in before["kept"]]
        kept = np.concatenate([np.zeros(0, dtype=np.int64), *known])[kept]
    starts = np.flatnonzero(np.diff(kept, prepend=-2) != 1)
    ends = np.append(starts[1:], kept.size)[: starts.size] - 1
    result["kept"] = [[int(kept[i]), int(kept[j])] for i, j in zip(starts, ends, strict=True)]
    if model.layers is not None and model.layers.certificates is not None:
        table = model.layers.certificates
        result["layers"] = {
            "rows": len(table),
            "certified": int(table.certified.sum()),
            "max_relative_gap": table.max_relative_gap,
        }
    return result


def _unread(model: ImplicitModel) -> np.ndarray:
    used = np.zeros(model.p, dtype=bool)
    used[model.B.indices] = True
    used[model.D.indices] = True
    return np.flatnonzero(~used[: _inputs(model)])
