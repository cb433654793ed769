"""Rescaled states (SIM section 3 and theorem 2.4; IDL 2.5): x' = diag(g) x makes ||A'||_inf < 1, y stays the same.

With positively homogeneous activations, A' = diag(g) A diag(g)^-1, B' = diag(g) B (the bias column too), C' = C diag(g)^-1 and
D' = D describe the same function. Modes:

``uniform``  every layer's weights are divided by c = gamma * max_l ||W_l||_inf, so g = c^-depth (SIM, the formula of section 3);
             c is at least 1, so that no weight grows: one that skips k layers is divided by c^(k+1)
``layer``    g is constant on a block, 1/t with t_l = 1 + sum_l' ||A_ll'||_inf t_l'
``neuron``   g = 1/t with t = (I - |A|)^-1 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from simtool.blocks import Block
from simtool.errors import OptionError

MODES = ("none", "uniform", "layer", "neuron")
DEFAULT_GAMMA = 1.1
_SMALLEST = 1e-30  # states are stored in float32


@dataclass(frozen=True)
class Rescale:
    """``mode`` of MODES; ``gamma`` > 1 is the margin of ``uniform`` and not used by the others."""

    mode: str = "none"
    gamma: float = DEFAULT_GAMMA

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"--rescale must be one of {', '.join(MODES)}, got {self.mode!r}.")
        if not 1.0 < self.gamma < np.inf:
            raise OptionError(
                f"--gamma must be above 1 (SIM section 3), got {self.gamma}. Leave it out for {DEFAULT_GAMMA}."
            )


@dataclass(frozen=True)
class Form:
    """The implicit form to rescale: A (n, n), B (n, p), C (q, n), D (q, p), CSR; the last column of B, D is the bias."""

    A: sp.csr_array
    B: sp.csr_array
    C: sp.csr_array
    D: sp.csr_array

    def scaled(self, g: np.ndarray) -> Form:
        """The same function on states multiplied by ``g`` (n,)."""
        left, right = sp.diags_array(g), sp.diags_array(1.0 / g)
        parts = (left @ self.A @ right, left @ self.B, self.C @ right, self.D)
        return Form(*(_sorted(sp.csr_array(part)) for part in parts))


def _sorted(matrix: sp.csr_array) -> sp.csr_array:
    matrix.sort_indices()
    return matrix


def scaling(rescale: Rescale, form: Form, blocks: Sequence[Block]) -> np.ndarray:
    """g (n,), positive; ones for the mode none.

    Raises OptionError where an activation is not positively homogeneous or no such rescaling exists.
    """
    n = form.A.shape[0]
    if rescale.mode == "none":
        return np.ones(n)
    stiff = sorted({block.activation.spec for block in blocks if not block.activation.homogeneous})
    if stiff:
        raise OptionError(
            f"--rescale {rescale.mode} needs positively homogeneous activations (relu, leaky_relu, identity); this network has "
            f"{', '.join(stiff)}. Use --rescale none; layered and dag structures need no rescaling."
        )
    choose = {"uniform": _uniform, "layer": _layer, "neuron": _neuron}[rescale.mode]
    g = choose(rescale, form, blocks)
    if not np.isfinite(g).all() or g.min() < _SMALLEST or g.max() > 1.0 / _SMALLEST:
        raise OptionError(
            f"--rescale {rescale.mode} would need factors from {g.min():.3g} to {g.max():.3g}, outside the range of float32. "
            "The network is too deep or its weights too large for it: use --rescale neuron or none."
        )
    return g


def _uniform(rescale: Rescale, form: Form, blocks: Sequence[Block]) -> np.ndarray:
    depth: dict[str, int] = {}
    by_name = {block.name: block for block in blocks}

    def visit(block: Block, path: tuple[str, ...]) -> int:
        if block.name in path:
            raise OptionError(
                "--rescale uniform counts layers, but this network is cyclic (an implicit model). Use --rescale neuron or none."
            )
        if block.name not in depth:
            feeding = [by_name[name] for name in block.parents if name in by_name]
            depth[block.name] = 1 + max((visit(parent, (*path, block.name)) for parent in feeding), default=0)
        return depth[block.name]

    g = np.empty(form.A.shape[0])
    # Execution order is the reverse of the stacking: parents are visited first, so the recursion stays shallow.
    for block in reversed(blocks):
        visit(block, ())
    hidden = abs(form.A).sum(axis=1) + abs(form.B[:, :-1]).sum(axis=1)
    output = abs(form.C).sum(axis=1) + abs(form.D[:, :-1]).sum(axis=1)
    c = rescale.gamma * max(float(np.max(hidden)), float(np.max(output)))
    if c <= 1.0:  # every row sum is at most 1 / gamma as it is
        return np.ones_like(g)
    with np.errstate(under="ignore", over="ignore"):
        for block in blocks:
            g[block.rows] = c ** float(-depth[block.name])
    return g


def _layer(rescale: Rescale, form: Form, blocks: Sequence[Block]) -> np.ndarray:
    size = len(blocks)
    norms = np.zeros((size, size))
    absolute = abs(form.A)
    for i, block in enumerate(blocks):
        rows = absolute[block.rows]
        for j, other in enumerate(blocks):
            norms[i, j] = np.max(rows[:, other.rows].sum(axis=1))
    t = _solve(sp.csr_array(norms), "layer")
    return np.concatenate([np.full(block.size, 1.0 / t[i]) for i, block in enumerate(blocks)])


def _neuron(rescale: Rescale, form: Form, blocks: Sequence[Block]) -> np.ndarray:
    return 1.0 / _solve(sp.csr_array(abs(form.A)), "neuron")


def _solve(matrix: sp.csr_array, mode: str) -> np.ndarray:
    """t >= 1 with t = 1 + matrix t; it exists exactly if the Perron-Frobenius eigenvalue is below 1."""
    n = matrix.shape[0]
    try:
        t = splu(sp.csc_array(sp.eye_array(n) - matrix)).solve(np.ones(n))
    except RuntimeError:
        t = np.full(n, -1.0)
    if not np.isfinite(t).all() or t.min() < 1.0 - 1e-9 or not np.allclose(t, 1.0 + matrix @ t, rtol=1e-6):
        raise OptionError(
            f"--rescale {mode} is not possible: the Perron-Frobenius eigenvalue of the network's |A| is not below 1 (theorem 2.4 of "
            "the SIM paper needs that). Use --rescale none."
        )
    return t
