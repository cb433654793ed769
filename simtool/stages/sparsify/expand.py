"""Sparse layers to the implicit model of the whole network, where it is an affine graph."""

from __future__ import annotations

import logging
from dataclasses import replace

from simtool.errors import UnsupportedOperator
from simtool.model import ImplicitModel, SparseLayers
from simtool.networks.formable import MOST_STORED
from simtool.networks.stored import StoredProgram
from simtool.stages.convert import implicit_form

_log = logging.getLogger("simtool")


def implicit_of(layers: SparseLayers, stored: StoredProgram | None) -> ImplicitModel | None:
    """The implicit form x = phi(Ax + Bu), y = Cx + Du of the network with ``layers`` in it; None where ``stored`` is."""
    if stored is None:
        return None
    try:
        graph = stored.graph(layers.layers, layers.matrices)
    except UnsupportedOperator as error:  # weights that are all zero may leave an output without its input
        _log.warning("the model file holds the layers alone, no implicit form: %s", error)
        return None
    if graph.entries > MOST_STORED:
        _log.info(
            "the implicit form would have %d non-zeros (at most %d are written); the model file holds the layers alone",
            graph.entries,
            MOST_STORED,
        )
        return None
    model = replace(
        implicit_form(graph, layers.fingerprints),
        baseline_nnz=layers.baseline_nnz,
        baseline_bytes=layers.baseline_bytes,
        structure="layered",
        header_extra=layers.header_extra,
        parameters_nnz=layers.nnz,
        layers=layers,
    )
    return replace(model, scale=model.rescaling())
