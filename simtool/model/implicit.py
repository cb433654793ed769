"""The implicit model x = phi(A x + B u), y = C x + D u with sparse A, B, C, D, and what can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import expit, log_softmax, softmax

from simtool import blocks as blocks_module
from simtool.blocks import Block
from simtool.errors import ConvergenceError, FormatError, InputError
from simtool.model import forward as forward_module
from simtool.model import levels, scaling, wellposed
from simtool.model.certificates import CertificateTable
from simtool.model.forward import FixedPoint, Forward
from simtool.model.layered import SparseLayers
from simtool.model.levels import Component
from simtool.model.wellposed import Verdict

OUTPUT_MAPS = ("softmax", "log_softmax", "sigmoid")
STRUCTURES = ("layered", "dag", "free", "exact")


def canonical(matrix: Any, name: str) -> sparse.csr_array:
    """``matrix`` as a float64 CSR array with sorted indices, no duplicates and no stored zeros (a copy)."""
    result = sparse.csr_array(matrix, dtype=np.float64, copy=True)
    if not np.isfinite(result.data).all():
        raise InputError(
            f"the matrix {name} of an implicit model holds NaN or infinite values; all must be finite."
        )
    result.sum_duplicates()
    result.eliminate_zeros()
    result.sort_indices()
    result.indices = result.indices.astype(np.int32, copy=False)
    result.indptr = result.indptr.astype(np.int32 if result.nnz < 2**31 else np.int64, copy=False)
    return result


def apply_output_map(name: str | None, y: np.ndarray) -> np.ndarray:
    """What the network prints for Y (q, m): the map acts on columns."""
    if name is None:
        return y
    if name == "softmax":
        return np.asarray(softmax(y, axis=0))
    if name == "log_softmax":
        return np.asarray(log_softmax(y, axis=0))
    if name == "sigmoid":
        return np.asarray(expit(y))
    raise FormatError(f"unknown output map {name!r}; known are {', '.join(OUTPUT_MAPS)} and none.")


@dataclass(frozen=True, eq=False)
class ImplicitModel:
    """An implicit model with everything needed to run it and to judge it.

    Attributes
    ----------
    A (n, n), B (n, p), C (q, n), D (q, p) : float64 CSR, canonical (made so on construction)
    blocks : the blocks that tile the n states; ``output_parents`` what the network feeds into Y
    output_map : applied to Y outside C and D ("softmax", "log_softmax", "sigmoid" or None)
    has_bias : the last row of U is the constant 1; its columns of B and D are the bias
    input_shape : one sample as the network takes it; its product plus the bias is p
    structure : "layered", "dag", "free" or "exact"
    scaling : (n,) g of the states file, X = diag(g) X_network; None where the states are the network's own
    scale : (n,) the rescaling under which ||A||_inf < 1 (see :func:`simtool.model.scaling.rescaling`), or None
    certificates : one line per row of M, or None
    fingerprints : sha256 of what the model was made from
    baseline_nnz, baseline_bytes : non-zero explicit parameters of the baseline, and 4 bytes a parameter
    header_extra : more JSON about how the model was made (objective, kappa, input_range)
    parameters_nnz : non-zero explicit parameters where rows repeat them (weights shared over positions); None: those of M
    layers : the sparse layers of the network that this is the implicit form of, where rows were fitted for those

    Raises InputError or FormatError where these do not fit together.
    """

    A: sparse.csr_array
    B: sparse.csr_array
    C: sparse.csr_array
    D: sparse.csr_array
    blocks: tuple[Block, ...]
    output_parents: tuple[str, ...] = ()
    output_map: str | None = None
    has_bias: bool = True
    input_shape: tuple[int, ...] = ()
    scaling: np.ndarray | None = None
    scale: np.ndarray | None = None
    certificates: CertificateTable | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    baseline_nnz: int = 0
    baseline_bytes: int = 0
    structure: str = "free"
    header_extra: dict[str, Any] = field(default_factory=dict)
    parameters_nnz: int | None = None
    layers: SparseLayers | None = None

    def __post_init__(self) -> None:
        for name in "ABCD":
            object.__setattr__(self, name, canonical(getattr(self, name), name))
        n, p, q = self.A.shape[0], self.D.shape[1], self.D.shape[0]
        shapes = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise FormatError(
                    f"{name} has shape {getattr(self, name).shape}; with n = {n} states, p = {p} inputs and q = {q} "
                    f"outputs it must be {shape}."
                )
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "output_parents", tuple(self.output_parents))
        blocks_module.check(self.blocks, n, self.output_parents)
        if not self.input_shape:
            object.__setattr__(self, "input_shape", (p - int(self.has_bias),))
        object.__setattr__(self, "input_shape", tuple(int(size) for size in self.input_shape))
        if prod(self.input_shape) + int(self.has_bias) != p:
            raise FormatError(
                f"the input shape {self.input_shape} {'with a bias ' if self.has_bias else ''}needs "
                f"{prod(self.input_shape) + int(self.has_bias)} rows of U, B has {p} columns."
            )
        if self.output_map is not None and self.output_map not in OUTPUT_MAPS:
            raise FormatError(
                f"output map {self.output_map!r} is unknown; known are {', '.join(OUTPUT_MAPS)}."
            )
        if self.structure not in STRUCTURES:
            raise FormatError(f"structure {self.structure!r} is unknown; known are {', '.join(STRUCTURES)}.")
        for name in ("scaling", "scale"):
            vector = getattr(self, name)
            if vector is not None:
                vector = np.ascontiguousarray(vector, dtype=np.float64)
                if vector.shape != (n,) or not np.isfinite(vector).all() or not (vector > 0).all():
                    raise FormatError(
                        f"{name} must hold {n} positive finite numbers, got shape {vector.shape}."
                    )
                object.__setattr__(self, name, vector)
        if self.certificates is not None and len(self.certificates) != n + q:
            raise FormatError(
                f"{len(self.certificates)} certificates for {n + q} rows; one is needed for each."
            )

    # --- sizes -----------------------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """States."""
        return int(self.A.shape[0])

    @property
    def p(self) -> int:
        """Rows of U, the bias included."""
        return int(self.D.shape[1])

    @property
    def q(self) -> int:
        """Outputs."""
        return int(self.D.shape[0])

    @property
    def nnz(self) -> int:
        """Non-zeros of M = [A B; C D], biases counted."""
        return int(self.A.nnz + self.B.nnz + self.C.nnz + self.D.nnz)

    @property
    def proofs(self) -> CertificateTable | None:
        """The certificates of the rows that were fitted: those of M, or those of the layers whose form this is."""
        return self.certificates if self.layers is None else self.layers.certificates

    @property
    def parameters(self) -> int:
        """Non-zero explicit parameters: those of M, or fewer where its rows share them."""
        return self.nnz if self.parameters_nnz is None else self.parameters_nnz

    @property
    def sparsity(self) -> float:
        """1 - parameters / baseline_nnz; negative where the model is larger; NaN without a baseline."""
        return 1.0 - self.parameters / self.baseline_nnz if self.baseline_nnz else float("nan")

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices (into n + p columns) and values of row ``i`` of M; rows n .. n+q-1 are Y's."""
        if not 0 <= i < self.n + self.q:
            raise InputError(
                f"row must be in 0..{self.n + self.q - 1} ({self.n} states, {self.q} outputs), got {i}."
            )
        left, right, k = (self.A, self.B, i) if i < self.n else (self.C, self.D, i - self.n)
        one, two = slice(*left.indptr[k : k + 2]), slice(*right.indptr[k : k + 2])
        indices = np.concatenate([left.indices[one], right.indices[two] + self.n])
        return indices.astype(np.int64), np.concatenate([left.data[one], right.data[two]])

    # --- running ---------------------------------------------------------------------------------------------------

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The strongly connected components of A's graph in the order of evaluation."""
        return levels.order(self.A)

    def forward(self, U: np.ndarray, options: FixedPoint = FixedPoint()) -> Forward:  # noqa: B008 (frozen)
        """States and outputs for ``U`` (p, m), the bias row included.

        Raises InputError for a wrong shape, a bias row that is not 1, NaN or Inf; ConvergenceError where a fixed
        point diverges, runs out of iterations, or a value overflows.
        """
        u = self._checked_inputs(U)
        m = u.shape[1]
        z, x = np.zeros((self.n, m)), np.zeros((self.n, m))
        iterations = np.zeros(m, dtype=np.int64)
        driven = self.B @ u
        cyclic = iter(self.well_posedness().components)
        with np.errstate(over="ignore", invalid="ignore"):
            for component in self.components:
                rows = component.rows
                outside = component.incoming @ x + driven[rows]
                if component.cyclic:
                    outside, used = forward_module.solve_component(
                        component, next(cyclic), self.blocks, outside, options
                    )
                    np.maximum(iterations, used, out=iterations)
                z[rows] = outside
                for block in forward_module.local_blocks(rows, self.blocks):
                    x[rows[block.rows]] = block.activation(outside[block.rows])
            y = self.C @ x + self.D @ u
        self._refuse_overflow(x, y)
        return Forward(z, x, y, iterations, np.ones(m, dtype=bool))

    def states_inputs(self, inputs: np.ndarray) -> np.ndarray:
        """U (p, k), float64, for ``inputs`` (k, *input_shape) (or any shape of the same size), with the bias row."""
        array = np.asarray(inputs)
        size = self.p - int(self.has_bias)
        if array.ndim == 0 or int(np.prod(array.shape[1:])) != size:
            raise InputError(
                f"a sample has shape {array.shape[1:]}, the model takes {self.input_shape} ({size} numbers). "
                "Pass data of that size."
            )
        flat = array.reshape(len(array), size)
        u = np.ones((self.p, len(array)))
        u[:size] = flat.T
        return u

    def predict(self, inputs: np.ndarray, options: FixedPoint = FixedPoint()) -> np.ndarray:  # noqa: B008 (frozen)
        """Outputs (k, q) after the output map, for ``inputs`` (k, *input_shape)."""
        y = self.forward(self.states_inputs(inputs), options).Y
        return np.ascontiguousarray(apply_output_map(self.output_map, y).T)

    def _checked_inputs(self, U: np.ndarray) -> np.ndarray:
        u = np.asarray(U, dtype=np.float64)
        if u.ndim != 2 or u.shape[0] != self.p:
            raise InputError(f"U must have shape ({self.p}, m), one column per sample, got {u.shape}.")
        bad = ~np.isfinite(u).all(axis=0)
        if bad.any():
            raise InputError(
                f"U holds NaN or Inf in column {int(np.argmax(bad))}. Remove or repair that sample."
            )
        if self.has_bias and not (u[-1] == 1.0).all():
            raise InputError(
                "the last row of U is the bias and must be 1 everywhere. Build U with states_inputs(), which adds it."
            )
        return u

    def _refuse_overflow(self, x: np.ndarray, y: np.ndarray) -> None:
        for block in self.blocks:
            if not np.isfinite(x[block.rows]).all():
                raise ConvergenceError(
                    f"the states of block {block.name!r} overflow double precision. The model is not usable as it is: "
                    "make it with a smaller kappa or check the inputs' range."
                )
        if not np.isfinite(y).all():
            raise ConvergenceError("the outputs overflow double precision. Check the inputs' range and C, D.")

    # --- judging ---------------------------------------------------------------------------------------------------

    @cached_property
    def _verdict(self) -> Verdict:
        return wellposed.judge(self.components, self.blocks)

    def well_posedness(self) -> Verdict:
        """Is there exactly one state for every input, and by which theorem (see simtool.model.wellposed)."""
        return self._verdict

    @cached_property
    def _rescaling(self) -> np.ndarray | None:
        return scaling.rescaling(self.A, self.components, self.blocks, self._verdict)

    def rescaling(self) -> np.ndarray | None:
        """``scale`` (n,), positive, with ||diag(scale) A diag(scale)^-1||_inf < 1, or None where none is known."""
        return None if self._rescaling is None else self._rescaling.copy()

    def rescaled(self) -> ImplicitModel | None:
        """The same function with ||A||_inf < 1, or None where no rescaling exists. Certificates do not carry over."""
        scale = self.scale if self.scale is not None else self._rescaling
        if scale is None:
            return None
        return ImplicitModel(
            A=scaling.scaled(self.A, scale, scale),
            B=scaling.scaled(self.B, scale, None),
            C=scaling.scaled(self.C, None, scale),
            D=self.D,
            blocks=self.blocks,
            output_parents=self.output_parents,
            output_map=self.output_map,
            has_bias=self.has_bias,
            input_shape=self.input_shape,
            scaling=scale if self.scaling is None else scale * self.scaling,
            fingerprints=self.fingerprints,
            baseline_nnz=self.baseline_nnz,
            baseline_bytes=self.baseline_bytes,
            structure=self.structure,
            header_extra=self.header_extra,
            parameters_nnz=self.parameters_nnz,
            layers=self.layers,
        )

    @property
    def norm_a_inf_raw(self) -> float:
        """||A||_inf as stored."""
        return scaling.norm_inf(self.A)

    @property
    def norm_a_inf(self) -> float:
        """||A||_inf, rescaled where a rescaling exists."""
        scale = self.scale if self.scale is not None else self._rescaling
        return (
            self.norm_a_inf_raw if scale is None else scaling.norm_inf(scaling.scaled(self.A, scale, scale))
        )

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write model.h5; the bytes depend on the model alone. Raises OutputError."""
        from simtool.model.files import save_model

        return save_model(self, Path(path), overwrite)
