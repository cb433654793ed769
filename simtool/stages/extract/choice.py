"""What of a network is stored: which blocks of states, and which layers with columns of their own."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import scipy.sparse as sp

from simtool.blocks import BIAS, INPUT, Block
from simtool.errors import InputError, OptionError
from simtool.networks import Network
from simtool.networks.formable import require_formable
from simtool.rescale import Form

_log = logging.getLogger("simtool")
# States of a network that has rows of shared weights anyway are stored up to so many bytes, unless --blocks asks for them.
STATES_BYTES = 4 * 2**30
NO_BLOCKS = "none"


@dataclass(frozen=True)
class Choice:
    """The blocks that are stored, tiling the states anew.

    Attributes
    ----------
    blocks, output_parents : of the stored states; parents that are not stored are left out
    kept : (n,) indices of the stored states among all of the graph's
    whole : these are all states, and ``form`` is the network's A, B, C, D; else None
    """

    blocks: tuple[Block, ...]
    output_parents: tuple[str, ...]
    kept: np.ndarray
    whole: bool
    form: Form | None

    @property
    def states(self) -> int:
        return int(self.kept.size)

    def teacher(self, inputs: int, outputs: int) -> Form:
        """The network's operators where they are known, else matrices without entries; ``inputs`` counts the bias."""
        if self.form is not None:
            return self.form
        n = self.states
        shapes = ((n, n), (n, inputs), (outputs, n), (outputs, inputs))
        return Form(*(sp.csr_array(shape, dtype=np.float64) for shape in shapes))


def choose(network: Network, globs: tuple[str, ...] | None, samples: int, has_layers: bool) -> Choice:
    """Which blocks of ``network`` are stored.

    All of them by default; of a network that ``has_layers`` of shared weights, none if they are very large or it has no graph.
    Raises OptionError for globs that match nothing, UnsupportedOperator or InputError where the states cannot be had.
    """
    none = Choice((), (), np.arange(0), False, None)
    if globs == (NO_BLOCKS,) or (globs is None and network.outline.whole is None and has_layers):
        if not has_layers:
            raise OptionError(
                f"--blocks {NO_BLOCKS} stores the layers of shared weights alone, and this network has none. Leave it out."
            )
        return none
    graph = network.graph
    if globs is None:
        size = 8 * graph.states * samples
        if has_layers and size > STATES_BYTES:
            _log.info(
                "the %d states on %d samples would take %.1f GiB and are not stored; layered rows do not need them. "
                "--blocks GLOB stores those that `dag` and `free` shall use (--blocks '*' all of them).",
                graph.states,
                samples,
                size / 2**30,
            )
            return none
        if has_layers:
            try:
                require_formable(graph, str(network.description["network"]))
            except InputError as error:
                _log.info("%s Its states are not stored; layered rows do not need them.", error)
                return none
        chosen = list(graph.blocks)
    else:
        chosen = [b for b in graph.blocks if any(fnmatchcase(b.name, glob) for glob in globs)]
        if not chosen:
            names = ", ".join(block.name for block in graph.blocks)
            raise OptionError(
                f"--blocks {' '.join(globs)} matches no block. There are {names}, or {NO_BLOCKS}."
            )
    if len(chosen) == len(graph.blocks):
        require_formable(graph, str(network.description["network"]))
        m = graph.matrices()
        return Choice(
            graph.blocks, graph.output_parents, np.arange(graph.states), True, Form(m.A, m.B, m.C, m.D)
        )
    known = {BIAS, INPUT, *(block.name for block in chosen)}
    blocks, offset = [], 0
    for block in chosen:
        parents = tuple(name for name in block.parents if name in known)
        blocks.append(replace(block, offset=offset, parents=parents))
        offset += block.size
    outputs = tuple(name for name in graph.output_parents if name in known)
    kept = np.concatenate([np.arange(block.rows.start, block.rows.stop) for block in chosen])
    return Choice(tuple(blocks), outputs, kept, False, None)
