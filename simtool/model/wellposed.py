"""Is there exactly one state for every input? The theorems, tried from the cheapest to the widest.

For each strongly connected component of A's graph, with L the Lipschitz constants of its activations:
``norm`` ||diag(L)|A| ||_inf < 1; ``perron-frobenius`` (IDL section 2.4) the largest eigenvalue of diag(L)|A| is
below 1, proven by Collatz and Wielandt's bound max_i (Mv)_i / v_i for one positive v; ``mu-inf`` (slides)
max_i a_ii + sum_{j != i} |a_ij| < 1, for activations whose slopes lie in [0, 1]. Sums are rounded upwards by
their worst-case error, so that a verdict is a proof in floating-point arithmetic too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from simtool.blocks import Block, lipschitz
from simtool.model.levels import Component, solve_inner

THEOREMS = ("acyclic", "norm", "perron-frobenius", "mu-inf")
_EPS = float(np.finfo(np.float64).eps)
_POWER_STEPS = 200


@dataclass(frozen=True, eq=False)
class ComponentVerdict:
    """What holds for one cyclic component.

    ``rows`` are its states, ``blocks`` the names of their blocks. ``norm``, ``pf`` (upper bound) and ``mu`` are
    the three numbers (mu is None where an activation has slopes outside [0, 1]); ``by`` is the first theorem that
    holds, or None. ``factor`` is the contraction factor it proves.
    """

    rows: np.ndarray
    blocks: tuple[str, ...]
    norm: float
    pf: float
    mu: float | None
    by: str | None
    factor: float | None


@dataclass(frozen=True, eq=False)
class Verdict:
    """The verdict on a model; ``by`` is the widest theorem that any component needed.

    ``components`` lists the cyclic components only: all other states follow by substitution.
    """

    well_posed: bool
    by: str | None
    components: tuple[ComponentVerdict, ...]
    explanation: str


def _sum_error(matrix: sparse.csr_array) -> np.ndarray:
    """A factor that bounds the rounding of a row sum of non-negative terms, (k,)."""
    return 1.0 + 2.0 * _EPS * (np.diff(matrix.indptr) + 4)


def perron_frobenius(matrix: sparse.csr_array) -> float:
    """A proven upper bound of the spectral radius of ``matrix`` >= 0 (k, k), irreducible; tight unless it is near 1.

    Power iteration on I + M (which has no periodic cycles) until the bound is below 1, or the lower bound
    min_i (Mv)_i / v_i is at least 1, or both meet. If still undecided, v = (I - M)^-1 1 decides: it is positive
    exactly when the eigenvalue is below 1.
    """
    v = np.ones(matrix.shape[0])
    error = _sum_error(matrix)
    best = np.inf
    for step in range(_POWER_STEPS):
        image = matrix @ v
        ratio = image / v
        best = min(best, float((ratio * error).max()))
        low = float(ratio.min())
        if low >= 1.0 or best - low <= 1e-6 * best or (best < 0.99 and step >= 20):
            break
        v = np.maximum((v + image) / float((v + image).max()), 1e-250)
    if best >= 1.0 and low < 1.0:
        v_direct = solve_inner(matrix, np.ones(matrix.shape[0]))
        if v_direct is not None and (v_direct > 0).all():
            best = min(best, float((matrix @ v_direct / v_direct * error).max()))
    return best


def _matrix_measure(matrix: sparse.csr_array) -> float:
    diagonal = matrix.diagonal()
    absolute = np.asarray(abs(matrix).sum(axis=1))
    error = (_sum_error(matrix) - 1.0) * absolute
    return float((absolute - np.abs(diagonal) + diagonal + 2.0 * error).max())


def judge_component(component: Component, blocks: Sequence[Block], constants: np.ndarray) -> ComponentVerdict:
    """Try the three theorems on one cyclic component; ``constants`` (n,) are all Lipschitz constants."""
    rows = component.rows
    inner = component.inner
    weighted = sparse.csr_array(sparse.diags_array(constants[rows]) @ abs(inner))
    norm = float((np.asarray(weighted.sum(axis=1)) * _sum_error(weighted)).max())
    involved = [b for b in blocks if ((rows >= b.offset) & (rows < b.offset + b.size)).any()]
    mu = _matrix_measure(inner) if all(b.activation.unit_slopes for b in involved) else None
    pf = min(norm, perron_frobenius(weighted))
    by: str | None = None
    factor: float | None = None
    if norm < 1.0:
        by, factor = "norm", norm
    elif pf < 1.0:
        by, factor = "perron-frobenius", pf
    elif mu is not None and mu < 1.0:
        by, factor = "mu-inf", max(mu, 0.0)
    return ComponentVerdict(rows, tuple(b.name for b in involved), norm, pf, mu, by, factor)


def _describe(verdict: ComponentVerdict) -> str:
    mu = "not applicable (an activation has slopes outside [0, 1])"
    if verdict.mu is not None:
        mu = f"{verdict.mu:.6g}"
    names = ", ".join(verdict.blocks[:6]) + (", ..." if len(verdict.blocks) > 6 else "")
    return (
        f"{len(verdict.rows)} states in {names}: ||diag(L)|A| ||_inf = {verdict.norm:.6g}, "
        f"Perron-Frobenius eigenvalue <= {verdict.pf:.6g}, mu_inf = {mu}"
    )


def judge(components: Sequence[Component], blocks: Sequence[Block]) -> Verdict:
    """The verdict on a model with these ``components`` (from :func:`simtool.model.levels.order`)."""
    cyclic = [component for component in components if component.cyclic]
    if not cyclic:
        return Verdict(
            True,
            "acyclic",
            (),
            "A's graph has no cycle: every state follows by substitution, for any values.",
        )
    constants = lipschitz(blocks)
    verdicts = tuple(judge_component(component, blocks, constants) for component in cyclic)
    unproven = [verdict for verdict in verdicts if verdict.by is None]
    if unproven:
        lines = "; ".join(_describe(verdict) for verdict in unproven[:3])
        more = f"; and {len(unproven) - 3} more" if len(unproven) > 3 else ""
        return Verdict(
            False,
            None,
            verdicts,
            f"no theorem proves a unique state for {len(unproven)} of {len(verdicts)} cyclic components "
            f"(one of these numbers must be below 1): {lines}{more}. "
            "Use a smaller kappa (below 1 / the largest Lipschitz constant), or a layered or dag structure.",
        )
    widest = max(verdicts, key=lambda verdict: THEOREMS.index(str(verdict.by)))
    return Verdict(True, widest.by, verdicts, f"proven by {widest.by}: {_describe(widest)}.")
