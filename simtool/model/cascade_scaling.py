"""A cascade that keeps the norm condition ||diag(L)|A| ||_inf < 1, and not only well-posedness (IDL section 2.5)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from simtool.blocks import lipschitz
from simtool.errors import InputError
from simtool.model.composition import cascade
from simtool.model.implicit import ImplicitModel
from simtool.model.scaling import scaled
from simtool.model.wellposed import row_norm

_SMALLEST_FACTOR = 1e-200


def scaled_cascade(
    outer: ImplicitModel,
    inner: ImplicitModel,
    *,
    names: tuple[str, str] = ("outer", "inner"),
    strip_output_map: bool = False,
) -> ImplicitModel:
    """The function of :func:`cascade` with ||diag(L)|A| ||_inf < 1, the stronger condition of IDL Remark 2.4.

    A plain cascade of two models of norm below 1 need not have it, since B2 C1 may be large. IDL section 2.5 gets it
    from a diagonal S with S^-1 A S small; here one factor is enough. With e in (0, 1] the states e x_outer obey

        e x_outer = phi(A2 (e x_outer) + e B2 C1 x_inner + e B2 D1 u),     y = (C2 / e) (e x_outer) + D2 C1 x_inner + ...

    where outer's activations are positively homogeneous; inner's need not be, which rescaling the whole would ask. Each
    row then has room: e is half of the largest factor that fits. A part whose own norm is 1 or more is rescaled first.

    Raises InputError where a part has no such rescaling, or outer would need the factor and is not homogeneous.
    """
    parts = [_contractive(model, name) for model, name in zip((outer, inner), names, strict=True)]
    whole = cascade(*parts, names=names, strip_output_map=strip_output_map)
    if _contracts(whole):
        return whole
    above = slice(0, outer.n)
    weighted = sparse.csr_array(sparse.diags_array(lipschitz(whole.blocks)[above]) @ abs(whole.A[above]))
    own = np.asarray(weighted[:, above].sum(axis=1))
    coupling = np.asarray(weighted[:, outer.n :].sum(axis=1))
    coupled = coupling > 0.0
    factor = float(((1.0 - own[coupled]) / coupling[coupled]).min())
    fixed = [block.name for block in outer.blocks if not block.activation.homogeneous]
    if fixed:
        raise InputError(
            f"the links from {names[1]!r} into {names[0]!r} would have to shrink by the factor {factor:.3g}, and the blocks "
            f"{', '.join(fixed[:5])} are not positively homogeneous, so that their states cannot be scaled. Use cascade(), "
            "which is well-posed all the same, or relu, leaky_relu or identity states."
        )
    if not factor > _SMALLEST_FACTOR:
        raise InputError(
            f"the links from {names[1]!r} into {names[0]!r} would have to shrink by the factor {factor:.3g}, below "
            f"{_SMALLEST_FACTOR:g}: C would overflow. Scale the weights of the models, or use cascade()."
        )
    scale = np.concatenate([np.full(outer.n, 0.5 * min(factor, 1.0)), np.ones(inner.n)])
    result = replace(
        whole,
        A=scaled(whole.A, scale, scale),
        B=scaled(whole.B, scale, None),
        C=scaled(whole.C, None, scale),
        scaling=scale if whole.scaling is None else scale * whole.scaling,
    )
    if not _contracts(result):
        raise InputError(f"with the factor {factor:.3g} the norm rounds to 1. Use cascade().")
    return result


def _contracts(model: ImplicitModel) -> bool:
    return (
        not model.n
        or row_norm(sparse.csr_array(sparse.diags_array(lipschitz(model.blocks)) @ abs(model.A))) < 1.0
    )


def _contractive(model: ImplicitModel, name: str) -> ImplicitModel:
    """``model``, rescaled where ||diag(L)|A| ||_inf >= 1; its own ``scale`` may know nothing of L."""
    if _contracts(model):
        return model
    result = replace(model, scale=None).rescaled()
    if result is None or not _contracts(result):
        raise InputError(
            f"{name!r} has ||diag(L)|A| ||_inf >= 1 and no rescaling below 1: that needs positively homogeneous activations and a "
            f"Perron-Frobenius eigenvalue below 1. {model.well_posedness().explanation}"
        )
    return result
