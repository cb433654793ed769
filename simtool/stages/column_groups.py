"""Which inputs, or which states, a model needs at all: whole columns chosen by their norms, for all rows at once (IDL section 5.1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy import sparse

from simtool.errors import InputError, OptionError
from simtool.model import ImplicitModel
from simtool.model.compact import compact_model
from simtool.solvers.column_groups import CoupledRows, CoupledSolution, refit, solve
from simtool.stages.sparsify.structure import row_groups
from simtool.states import States, open_states

COLUMNS = ("inputs", "states")
STRUCTURES = ("layered", "dag")
_SEARCH_STEPS = 30
_SMALLEST_SHARE = 1e-6


def select_columns(
    states: str | Path,
    *,
    columns: str = "inputs",
    share: float | None = None,
    keep: int | None = None,
    structure: str = "layered",
    tolerance: float = 1e-6,
) -> tuple[ImplicitModel, dict[str, Any]]:
    """The model of a states file that reads few inputs (columns of (B; D)), or few states (columns of (A; C)).

    The columns are those that are not zero where the sum of their norms, times a weight, is added to the squared error of all
    rows that may use them; the coefficients are then least squares on what is left, so that nothing is shrunk. The weight is
    ``share`` of the smallest one at which no column is left, or the smallest one found by halving at which at most
    ``keep`` are. States that nothing reads are removed from the model; inputs stay part of a sample.

    Returns the model, without certificates of rows, and a dict with columns, kept (their indices), of, weight, share, certified and
    relative_gap of the coupled problem, rounds, nnz, states, seconds. The choice of columns is proven optimal for the norms
    (``certified``), not for the number of columns. Raises InputError for the states, OptionError.
    """
    started = perf_counter()
    _check(columns, share, keep, structure)
    with open_states(states) as source:
        if source.header.layers or not source.header.whole:
            raise InputError(
                f"{states} holds layers whose weights are shared over positions, or some blocks only: their columns are no columns of one "
                "matrix. Extract a network of linear layers, without --blocks."
            )
        model, solution, problem, chosen = _fit(source, columns, share, keep, structure, tolerance)
        found = replace(
            model,
            scale=model.rescaling(),
            fingerprints={
                "states": source.content_sha256(),
                "network": source.header.network_sha256,
                "data": source.header.data_sha256,
            },
        )
    kept = np.flatnonzero(solution.norms[problem.grouped])
    facts = {
        "columns": columns,
        "kept": kept.tolist(),
        "of": int(problem.grouped.sum()),
        "weight": chosen * problem.largest_weight,
        "share": chosen,
        "certified": solution.certificate.certified,
        "relative_gap": solution.certificate.relative_gap,
        "rounds": len(solution.history),
    }
    extra = {"options": {"objective": "column-norms", "structure": structure, **facts}}
    found = replace(found, header_extra={**found.header_extra, **extra})
    found = compact_model(found, fold_constants=False).model
    return found, facts | {
        "nnz": found.nnz,
        "states": found.n,
        "seconds": perf_counter() - started,
    }


def _check(columns: str, share: float | None, keep: int | None, structure: str) -> None:
    for name, value, known in (("columns", columns, COLUMNS), ("structure", structure, STRUCTURES)):
        if value not in known:
            raise OptionError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if (share is None) == (keep is None):
        raise OptionError(f"give either share or keep, got share {share!r} and keep {keep!r}.")
    if share is not None and not 0.0 < share <= 1.0:
        raise OptionError(
            f"share must be in (0, 1], got {share!r}: 1 leaves no column, small ones leave most."
        )
    if keep is not None and (keep != int(keep) or keep < 0):
        raise OptionError(f"keep must be a whole number of at least 0, got {keep!r}.")


def _fit(
    source: States, columns: str, share: float | None, keep: int | None, structure: str, tolerance: float
) -> tuple[ImplicitModel, CoupledSolution, CoupledRows, float]:
    header, n, p, q = source.header, source.n, source.p, source.q
    inputs = p - int(header.has_bias)
    allowed = np.zeros((n + q, n + p), dtype=bool)
    for group in row_groups(structure, header.blocks, header.output_parents, p, q, header.has_bias):
        allowed[slice(*group.rows)] |= np.isin(np.arange(n + p), group.features)
    grouped = np.zeros(n + p, dtype=bool)
    grouped[slice(n, n + inputs) if columns == "inputs" else slice(0, n)] = True
    design = np.vstack([source.X[()], source.U[()]]).astype(np.float64)
    targets = np.vstack([source.Z[()], source.Y[()]]).astype(np.float64)
    coupled = (allowed & grouped).any(axis=1)
    problem = CoupledRows(design, targets[coupled], grouped, allowed=allowed[coupled])
    if problem.largest_weight == 0.0:
        raise InputError(
            f"no row of {source.path} has anything to do with its {columns}: every column is zero already."
        )
    solution, chosen = _search(problem, share, keep, tolerance)
    whole = np.zeros((n + q, n + p))
    whole[coupled] = refit(problem, solution.coefficients)
    if not coupled.all():  # rows that may use none of these columns are least squares as they are
        alone = CoupledRows(design, targets[~coupled], grouped, allowed=allowed[~coupled])
        whole[~coupled] = refit(alone, np.zeros(((~coupled).sum(), n + p)))
    rows = sparse.csr_array(whole)
    model = ImplicitModel(
        A=rows[:n, :n],
        B=rows[:n, n:],
        C=rows[n:, :n],
        D=rows[n:, n:],
        blocks=header.blocks,
        output_parents=header.output_parents,
        output_map=header.output_map,
        has_bias=header.has_bias,
        input_shape=header.input_shape,
        scaling=np.asarray(source.scaling),
        baseline_nnz=header.baseline_nnz,
        baseline_bytes=header.baseline_bytes,
        structure=structure,
        header_extra={
            "samples": source.m,
            "input_range": list(header.input_range),
            "network_format": str(header.network.get("format", "")),
        },
    )
    return model, solution, problem, chosen


def _search(
    problem: CoupledRows, share: float | None, keep: int | None, tolerance: float
) -> tuple[CoupledSolution, float]:
    """The solution at ``share``, or at the smallest share found at which at most ``keep`` columns are left."""
    if share is not None:
        return solve(problem, share * problem.largest_weight, tolerance), share
    assert keep is not None
    low, high = _SMALLEST_SHARE, 1.0
    best = solve(problem, high * problem.largest_weight, tolerance)
    for _ in range(_SEARCH_STEPS):
        if np.count_nonzero(best.norms[problem.grouped]) == keep or high / low < 1.001:
            break
        middle = float(np.sqrt(low * high))
        found = solve(problem, middle * problem.largest_weight, tolerance)
        if np.count_nonzero(found.norms[problem.grouped]) <= keep:
            best, high = found, middle
        else:
            low = middle
    return best, high
