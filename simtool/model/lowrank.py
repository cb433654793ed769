"""A = L R^T + S with k columns in L and R: the fixed point at the cost of k n and the non-zeros of S (IDL section 5.3).

    z = R^T x,    x = phi(L z + S x + B u)

Without S the state that is iterated is z, of k numbers: z = R^T phi(L z + B u). An iteration costs 2 n k + nnz(S)
products instead of those of A. The model that results, A' = L R^T + S, is another one than the model given; how far its states
and outputs can be from those of A is bounded by :mod:`simtool.model.perturbation`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from simtool import blocks as blocks_module
from simtool.blocks import lipschitz
from simtool.errors import ConvergenceError, InputError, OptionError
from simtool.model.forward import FixedPoint
from simtool.model.implicit import ImplicitModel
from simtool.model.perturbation import PerturbationBound, perturbation_bound

_DENSE_STATES = 1500  # up to this size all singular values are computed
_CERTAIN_STATES = 2000  # up to this size A' is formed once to find in which norm it contracts
_EPS = float(np.finfo(np.float64).eps)
_NEGLIGIBLE = 1e-14  # of the largest entry: rounding of the decomposition where A has no entries at all


def low_rank(model: ImplicitModel, rank: int, *, sparse_entries: int = 0, rounds: int = 50) -> LowRank:
    """A of ``model`` as L R^T of ``rank`` columns plus at most ``sparse_entries`` entries of their own.

    Without these, L R^T is the truncated singular value decomposition, the closest matrix of that rank (Eckart and Young), with
    the singular values shared evenly by L and R. With them, L R^T is that of A - S, and S takes the largest entries of
    A - L R^T, in turns; each turn brings ||A - L R^T - S||_F down, until it falls by less than 1e-6 of itself or ``rounds`` are
    over. That is a local minimum: the better one is kept of two, found from L R^T first and from S first. Nothing is fitted to states: rows keep no certificates.

    A rank below the number of states makes a triangular A cyclic; the layers of a chain (each fed by the one before) stay apart.
    Needs n x n numbers of memory with ``sparse_entries``. Raises OptionError.
    """
    n = model.n
    for name, value, most in (
        ("rank", rank, n),
        ("sparse_entries", sparse_entries, n * n),
        ("rounds", rounds, None),
    ):
        if value != int(value) or value < 0 or (most is not None and value > most):
            raise OptionError(
                f"{name} must be a whole number {'of at least 0' if most is None else f'in 0..{most}'}, got {value!r}."
            )
    if not sparse_entries:
        return LowRank(model, *_truncated(model.A, rank), sparse.csr_array((n, n)))
    whole = model.A.toarray()
    starts = (_truncated(model.A, rank), _truncated(_rest(whole, _largest(whole, sparse_entries)), rank))
    found = [_in_turns(whole, start, sparse_entries, rounds) for start in starts]
    _, left, right, rest = min(found, key=lambda item: item[0])
    return LowRank(model, left, right, rest)


def _in_turns(
    whole: np.ndarray, factors: tuple[np.ndarray, np.ndarray], entries: int, rounds: int
) -> tuple[float, np.ndarray, np.ndarray, sparse.csr_array]:
    """||A - L R^T - S||_F, L, R and S from the ``factors`` L and R to begin with."""
    rank = factors[0].shape[1]
    before = np.inf
    for _ in range(rounds + 1):
        product = factors[0] @ factors[1].T
        rest = _largest(whole - product, entries)
        error = float(np.linalg.norm(whole - product - rest.toarray()))
        best = (error, *factors, rest)
        if not error < (1.0 - 1e-6) * before:
            break
        before = error
        factors = _truncated(_rest(whole, rest), rank)
    return best


def _rest(whole: np.ndarray, part: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(whole - part.toarray())


def _truncated(matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """L and R of the closest matrix of ``rank``."""
    n = matrix.shape[0]
    if rank == 0 or matrix.nnz == 0:
        return np.zeros((n, rank)), np.zeros((n, rank))
    if n <= _DENSE_STATES or 4 * rank > n:
        u, s, vt = np.linalg.svd(matrix.toarray())
    else:
        u, s, vt = linalg.svds(matrix, k=rank, v0=np.ones(n), tol=0)
        u, s, vt = u[:, ::-1], s[::-1], vt[::-1]
    root = np.sqrt(s[:rank])
    return _clean(u[:, :rank] * root), _clean(vt[:rank].T * root)


def _clean(matrix: np.ndarray) -> np.ndarray:
    """Without what is only the rounding of the decomposition."""
    return np.where(np.abs(matrix) > _NEGLIGIBLE * np.abs(matrix).max(initial=0.0), matrix, 0.0)


def _largest(matrix: np.ndarray, count: int) -> sparse.csr_array:
    """The ``count`` entries of ``matrix`` largest in modulus; the first of equal ones."""
    order = np.argsort(-np.abs(matrix), axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, matrix.shape)
    return sparse.csr_array(sparse.coo_array((matrix[rows, columns], (rows, columns)), shape=matrix.shape))


@dataclass(frozen=True, eq=False)
class LowRank:
    """An implicit model whose A is ``left`` ``right``^T + ``rest``.

    Attributes
    ----------
    source : the model this stands for; its B, C, D, blocks and output map are used, its A only for the error
    left, right (n, k) : L and R
    rest (n, n) : S, possibly without entries
    """

    source: ImplicitModel
    left: np.ndarray
    right: np.ndarray
    rest: sparse.csr_array

    def __post_init__(self) -> None:
        n = self.source.n
        for name in ("left", "right"):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if array.ndim != 2 or array.shape[0] != n or not np.isfinite(array).all():
                raise InputError(
                    f"{name} must be a finite matrix of {n} rows, one for each state, got shape {array.shape}."
                )
            object.__setattr__(self, name, array)
        if self.left.shape != self.right.shape:
            raise InputError(
                f"left and right must have as many columns, got {self.left.shape[1]} and {self.right.shape[1]}."
            )
        rest = sparse.csr_array(self.rest, dtype=np.float64)
        if rest.shape != (n, n) or not np.isfinite(rest.data).all():
            raise InputError(f"rest must be a finite matrix of shape ({n}, {n}), got shape {rest.shape}.")
        rest.eliminate_zeros()
        object.__setattr__(self, "rest", rest)

    @property
    def rank(self) -> int:
        """k."""
        return int(self.left.shape[1])

    @property
    def a_parameters(self) -> int:
        """Numbers that A' takes: those of L and R, zeros included, and the non-zeros of S."""
        return 2 * self.left.shape[0] * self.rank + int(self.rest.nnz)

    @property
    def parameters(self) -> int:
        """Numbers that the whole model takes: those of A', and the non-zeros of B, C and D."""
        return self.a_parameters + int(self.source.B.nnz + self.source.C.nnz + self.source.D.nnz)

    def assembled(self) -> ImplicitModel:
        """The model with A' = L R^T + S written out; certificates, layers and scale are those of other rows and are left out."""
        full = sparse.csr_array(self.left @ self.right.T + self.rest.toarray())
        return replace(
            self.source,
            A=full,
            certificates=None,
            layers=None,
            parameters_nnz=None,
            scale=None,
            structure="free",
        )

    def errors(self) -> sparse.csr_array:
        """E = |A - L R^T - S|, entry by entry."""
        return sparse.csr_array(
            np.abs(self.source.A.toarray() - self.left @ self.right.T - self.rest.toarray())
        )

    def error_bound(self, U: np.ndarray) -> PerturbationBound:
        """How far states and outputs can be from those of the source, for each input of ``U`` (p, m).

        By Theorem 5.1 with E = |A - L R^T - S|; raises InputError where the eigenvalue of |A| + E is not proven to be below 1.
        """
        return perturbation_bound(self.source, self.errors(), U=U)

    @cached_property
    def contraction(self) -> tuple[float, np.ndarray] | None:
        """f < 1 and v > 0 with diag(L) |A'| v <= f v, so that errors shrink by f in the norm max_i |x_i| / v_i; None if none is known.

        Of |A'| itself up to 2000 states; else of |L||R|^T + |S| >= |A'|, without forming either. For S = 0 the second is IDL's
        condition that |R|^T |L| has an eigenvalue below 1.
        """
        constants = lipschitz(self.source.blocks)
        if self.source.n <= _CERTAIN_STATES:
            matrix = np.abs(self.left @ self.right.T + self.rest.toarray())

            def image(v: np.ndarray) -> np.ndarray:
                return np.asarray(constants * (matrix @ v))

        else:
            left, right, rest = np.abs(self.left), np.abs(self.right), abs(self.rest)

            def image(v: np.ndarray) -> np.ndarray:
                return np.asarray(constants * (left @ (right.T @ v) + rest @ v))

        rounding = 1.0 + 4.0 * _EPS * (self.source.n + self.rank + 4)
        v = np.ones(self.source.n)
        best: tuple[float, np.ndarray] = (np.inf, v)
        for step in range(1000):
            moved = image(v)
            factor = float((moved / v).max(initial=0.0)) * rounding
            if factor < best[0]:
                best = (factor, v)
            if best[0] < 0.9 or (best[0] < 1.0 and step >= 100):
                break
            # what nothing feeds (a triangular A) must not vanish
            v = np.maximum(v + moved, 1e-200)
            v = np.maximum(v / v.max(), 1e-200)
        return best if best[0] < 1.0 else None

    def states(
        self,
        U: np.ndarray,
        options: FixedPoint = FixedPoint(tolerance=1e-13),  # noqa: B008 (frozen)
    ) -> tuple[np.ndarray, np.ndarray]:
        """X (n, m) and the iterations (m,) for ``U`` (p, m), the bias row included; A' is not formed.

        The error is at most ``tolerance`` times the largest state, in the norm of :attr:`contraction`, or rounding.
        Raises InputError for inputs that do not fit and where no contraction is proven (``assembled().forward`` tries what it
        can then), ConvergenceError after max_iterations.
        """
        model = self.source
        u = model._checked_inputs(U)
        proof = self.contraction
        if proof is None:
            raise InputError(
                f"the low-rank model of rank {self.rank} is not proven to have one state for every input: the Perron-Frobenius eigenvalue of "
                "diag(L) |L R^T + S| may be 1 or more. Use a larger rank or more sparse entries, or run assembled().forward(U)."
            )
        factor, v = proof[0], proof[1][:, None]
        driven = np.asarray(model.B @ u)
        m = u.shape[1]
        x, iterations = np.zeros((model.n, m)), np.zeros(m, dtype=np.int64)
        active, now, z = np.arange(m), np.zeros((model.n, m)), np.zeros((self.rank, m))
        for count in range(1, options.max_iterations + 1):
            reached = blocks_module.apply(model.blocks, self._times(z, now) + driven[:, active])
            if not np.isfinite(reached).all():
                raise ConvergenceError(
                    "the states of the low-rank model overflow double precision. Check the inputs' range."
                )
            change = (np.abs(reached - now) / v).max(axis=0, initial=0.0)
            size = (np.abs(reached) / v).max(axis=0, initial=0.0)
            now, z = reached, self.right.T @ reached
            # |x* - x| <= f / (1 - f) |change|; steps of the size of rounding lead nowhere
            done = factor * change <= (1.0 - factor) * options.tolerance * size
            near = np.flatnonzero(~done & (change <= 1e-9 * size))
            if near.size:
                noise = self._rounding(now[:, near], driven[:, active[near]])
                done[near] = change[near] <= (noise / v).max(axis=0)
            x[:, active[done]], iterations[active[done]] = now[:, done], count
            active, now, z = active[~done], now[:, ~done], z[:, ~done]
            if not active.size:
                return x, iterations
        raise ConvergenceError(
            f"the low-rank fixed point did not converge in {options.max_iterations} iterations (contraction factor {factor:.6g}, "
            f"tolerance {options.tolerance:g}). Raise max_iterations or the tolerance."
        )

    def outputs(
        self,
        U: np.ndarray,
        options: FixedPoint = FixedPoint(tolerance=1e-13),  # noqa: B008 (frozen)
    ) -> np.ndarray:
        """Y (q, m) before the output map; raises as :meth:`states` does."""
        x, _ = self.states(U, options)
        return np.asarray(self.source.C @ x + self.source.D @ np.asarray(U, dtype=np.float64))

    def _times(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A' x with z = R^T x."""
        product = self.left @ z
        return product + self.rest @ x if self.rest.nnz else product

    def _rounding(self, x: np.ndarray, driven: np.ndarray) -> np.ndarray:
        """How far rounding alone may move phi(A' x + b) from one iteration to the next, (n, m)."""
        terms = np.abs(self.left) @ (np.abs(self.right).T @ np.abs(x)) + abs(self.rest) @ np.abs(x)
        slopes = np.maximum(lipschitz(self.source.blocks), 1.0)[:, None]
        width = 8.0 + np.sqrt(self.source.n + self.rank)
        return np.asarray(_EPS * width * slopes * (terms + np.abs(driven)))
