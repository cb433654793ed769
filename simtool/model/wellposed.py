"""Is there exactly one state for every input? The theorems, tried from the cheapest to the widest.

For each strongly connected component of A's graph, with L the Lipschitz constants of its activations:
``norm`` ||diag(L)|A| ||_inf < 1; ``perron-frobenius`` (IDL section 2.4) the largest eigenvalue of diag(L)|A| is
below 1, proven by Collatz and Wielandt's bound max_i (Mv)_i / v_i for one positive v; ``mu-inf`` (slides)
max_i a_ii + sum_{j != i} |a_ij| < 1, for activations whose slopes lie in [0, 1]. Sums are rounded upwards by
their worst-case error, so that a verdict is a proof in floating-point arithmetic too.

What proves one state also bounds the distance to it: see :class:`Majorant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from simtool.blocks import Block, lipschitz
from simtool.model.levels import Component, solve_inner

THEOREMS = ("acyclic", "norm", "perron-frobenius", "mu-inf")
_EPS = float(np.finfo(np.float64).eps)
_POWER_STEPS = 200
_ABSORBED = ("relu", "identity")
DIRECT_STATES = 2000  # up to this size a cyclic component may be factorised densely


@dataclass(frozen=True, eq=False)
class Majorant:
    """The matrix P >= 0 that bounds errors of x = phi(A x + b) within one component, for any x:

        |x* - x| <= (I - P)^-1 |phi(A x + b) - x|,     P = diag(L) T,    T = |A|,

    since x* - x = S A (x* - x) + (phi(A x + b) - x) with slopes |S| <= L. Where all slopes lie in [0, 1] a self loop
    a_ii < 0 only helps, 1 - s a_ii >= 1, and T leaves it out. The transpose bounds the adjoint v = r + A^T S v alike.

    ``vector`` v > 0 with P v <= ``factor`` v and factor < 1 proves that (I - P)^-1 >= 0 exists (Collatz and
    Wielandt); ``factor`` is None where no such vector is known. ``terms`` is T, ``damping`` 1 - min(a_ii, 0) where
    T leaves a_ii out and 1 elsewhere, ``constants`` are L.
    """

    terms: sparse.csr_array
    constants: np.ndarray
    damping: np.ndarray
    vector: np.ndarray
    factor: float | None

    @cached_property
    def inverse(self) -> np.ndarray:
        """(I - P)^-1 >= 0, dense, computed as D (I - D^-1 P D)^-1 D^-1 with D = diag(v), dominant in any units."""
        v = self.vector
        balanced = (self.constants / v)[:, None] * self.terms.toarray() * v
        return np.asarray(v[:, None] * np.maximum(np.linalg.inv(np.eye(len(v)) - balanced), 0.0) / v)

    def relative_error(
        self, residual: np.ndarray, scale: np.ndarray, *, image: bool = False, transposed: bool = False
    ) -> np.ndarray:
        """The largest proven error of a state over its ``scale``, (m,), for |phi(A x + b) - x| = ``residual`` (k, m).

        ``image`` asks for the error of phi(A x + b) instead of x's. All of it is invariant under a diagonal scaling of
        the states. Above DIRECT_STATES states errors and scales are compared in one norm: weighted by 1/v, or, for the
        transpose, in the dual one, sum_i v_i |e_i|.
        """
        if self.factor is None:
            raise ValueError("nothing is proven here, so nothing bounds an error.")
        v = self.vector[:, None]
        if len(self.vector) > DIRECT_STATES:
            gain = 1.0 / (1.0 - self.factor)
            if transposed:
                return quotient((v * residual).sum(axis=0) * gain, (v * scale).sum(axis=0))
            error = (residual / v).max(axis=0) * (gain + float(image))
            return quotient(error, (scale / v).max(axis=0))
        if transposed:
            return quotient(self.inverse.T @ residual, scale).max(axis=0)
        error = self.inverse @ residual
        if image:
            # |x* - phi(A x + b)| <= |x* - x| + residual; without damping also <= P (I - P)^-1 residual
            error = error + residual if (self.damping > 1.0).any() else np.maximum(error - residual, 0.0)
        return quotient(error, scale).max(axis=0)


def quotient(error: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """error / scale, 0 where both vanish, infinite where only the scale does."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(np.where(error == 0.0, 0.0, error / scale))


def majorant(
    inner: sparse.csr_array,
    constants: np.ndarray,
    unit_slopes: bool,
    known: tuple[float, np.ndarray] | None = None,
) -> Majorant:
    """The bound on the fixed point of ``inner`` (k, k) with Lipschitz ``constants`` (k,), see :class:`Majorant`.

    ``known`` is what :func:`collatz_wielandt` says of diag(L)|A|, which is P where no self loop is left out.
    """
    terms = sparse.csr_array(abs(inner))
    damping = np.ones(len(constants))
    loops = inner.diagonal()
    if unit_slopes and (loops < 0.0).any():
        damping = 1.0 - np.minimum(loops, 0.0)
        terms = sparse.csr_array(terms - sparse.diags_array(np.maximum(-loops, 0.0)))
        terms.eliminate_zeros()
    weighted = sparse.csr_array(sparse.diags_array(constants) @ terms)
    factor, vector = row_norm(weighted), np.ones(len(constants))
    if factor >= 1.0:
        whole = known if (damping == 1.0).all() else None
        factor, vector = whole or collatz_wielandt(weighted)
    if factor >= 1.0:
        return Majorant(terms, constants, damping, np.ones(len(constants)), None)
    return Majorant(terms, constants, damping, vector, factor)


@dataclass(frozen=True, eq=False)
class ComponentVerdict:
    """What holds for one cyclic component.

    ``rows`` are its states, ``blocks`` the names of their blocks. ``norm``, ``pf`` (upper bound) and ``mu`` are
    the three numbers (mu is None where an activation has slopes outside [0, 1]); ``by`` is the first theorem that
    holds, or None. ``factor`` is the contraction factor it proves. ``majorant`` bounds errors of
    x = phi(A x + b); ``absorbed`` does so for the equation whose self loops are absorbed (see :func:`absorbed`),
    where that is possible.
    """

    rows: np.ndarray
    blocks: tuple[str, ...]
    norm: float
    pf: float
    mu: float | None
    by: str | None
    factor: float | None
    majorant: Majorant
    absorbed: Majorant | None


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


def row_norm(matrix: sparse.csr_array) -> float:
    """||matrix||_inf of ``matrix`` >= 0, rounded upwards."""
    return float((np.asarray(matrix.sum(axis=1)) * _sum_error(matrix)).max())


def collatz_wielandt(matrix: sparse.csr_array) -> tuple[float, np.ndarray]:
    """f and v > 0 with ``matrix`` v <= f v, so that f bounds the spectral radius of ``matrix`` >= 0 (k, k).

    Power iteration on I + M (which has no periodic cycles) until the bound is below 1, or the lower bound
    min_i (Mv)_i / v_i is at least 1, or both meet. If still undecided, v = (I - M)^-1 1 decides: it is positive
    exactly when the eigenvalue is below 1.
    """
    v = np.ones(matrix.shape[0])
    error = _sum_error(matrix)
    best, vector = np.inf, v
    for step in range(_POWER_STEPS):
        image = matrix @ v
        ratio = image / v
        high = float((ratio * error).max())
        if high < best:
            best, vector = high, v
        low = float(ratio.min())
        if low >= 1.0 or best - low <= 1e-6 * best or (best < 0.99 and step >= 20):
            break
        v = np.maximum((v + image) / float((v + image).max()), 1e-250)
    if best >= 1.0 and low < 1.0:
        v_direct = solve_inner(matrix, np.ones(matrix.shape[0]))
        if v_direct is not None and (v_direct > 0).all():
            high = float((matrix @ v_direct / v_direct * error).max())
            if high < best:
                best, vector = high, v_direct
    return best, vector


def _matrix_measure(matrix: sparse.csr_array) -> float:
    diagonal = matrix.diagonal()
    absolute = np.asarray(abs(matrix).sum(axis=1))
    error = (_sum_error(matrix) - 1.0) * absolute
    return float((absolute - np.abs(diagonal) + diagonal + 2.0 * error).max())


def local_blocks(rows: np.ndarray, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks of the sorted states ``rows``, renumbered so that they tile ``range(len(rows))``."""
    result: list[Block] = []
    for block in blocks:
        low, high = np.searchsorted(rows, [block.offset, block.offset + block.size])
        if high > low:
            size = int(high - low)
            result.append(Block(block.name, block.activation, int(low), size, (size,), block.parents))
    return tuple(result)


def absorbable(component: Component, blocks: Sequence[Block]) -> bool:
    """Diagonal absorption is exact: every self loop is below 1 and sits on a relu or identity state."""
    diagonal = component.inner.diagonal()
    local = local_blocks(component.rows, blocks)
    return bool((diagonal < 1.0).all()) and all(
        b.activation.name in _ABSORBED or not diagonal[b.rows].any() for b in local
    )


def absorbed(inner: sparse.csr_array) -> sparse.csr_array:
    """(I - diag A)^-1 (A - diag A)."""
    diagonal = inner.diagonal()
    off = sparse.csr_array(inner - sparse.diags_array(diagonal))
    return sparse.csr_array(sparse.diags_array(1.0 / (1.0 - diagonal)) @ off)


def judge_component(component: Component, blocks: Sequence[Block], constants: np.ndarray) -> ComponentVerdict:
    """Try the three theorems on one cyclic component; ``constants`` (n,) are all Lipschitz constants."""
    rows = component.rows
    inner = component.inner
    weighted = sparse.csr_array(sparse.diags_array(constants[rows]) @ abs(inner))
    norm = row_norm(weighted)
    involved = [b for b in blocks if ((rows >= b.offset) & (rows < b.offset + b.size)).any()]
    unit_slopes = all(b.activation.unit_slopes for b in involved)
    mu = _matrix_measure(inner) if unit_slopes else None
    known = collatz_wielandt(weighted)
    pf = min(norm, known[0])
    by: str | None = None
    factor: float | None = None
    if norm < 1.0:
        by, factor = "norm", norm
    elif pf < 1.0:
        by, factor = "perron-frobenius", pf
    elif mu is not None and mu < 1.0:
        by, factor = "mu-inf", max(mu, 0.0)
    without_loops = None
    if inner.diagonal().any() and absorbable(component, blocks):
        without_loops = majorant(absorbed(inner), constants[rows], unit_slopes)
    return ComponentVerdict(
        rows=rows,
        blocks=tuple(b.name for b in involved),
        norm=norm,
        pf=pf,
        mu=mu,
        by=by,
        factor=factor,
        majorant=majorant(inner, constants[rows], unit_slopes, known),
        absorbed=without_loops,
    )


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
