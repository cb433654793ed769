"""Whether the implicit form of a network can be formed at all: convolutions have many times more entries than weights."""

from __future__ import annotations

from simtool.environment import free_memory
from simtool.errors import InputError
from simtool.networks.graph import Graph

# Of the form of a network whose weights are shared, written beside its sparse layers: a convolution has rows for each position.
MOST_STORED = 20_000_000
MOST_ENTRIES = 2**31 - 1  # what 32-bit indices reach
# Values and indices of the pieces, of the whole before it is sorted, and of the result.
_BYTES_AN_ENTRY = 64


def require_formable(graph: Graph, network: str) -> None:
    """Raise InputError, before any work, where A, B, C and D together are too large for 32-bit indices or for the memory."""
    entries = graph.entries
    needed, free = _BYTES_AN_ENTRY * entries, free_memory()
    if entries > MOST_ENTRIES:
        limit = f"at most {MOST_ENTRIES} are possible"
    elif free is not None and needed > free:
        limit = (
            f"forming them takes about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
        )
    else:
        return
    raise InputError(
        f"the implicit form of {network} would have {entries} non-zeros ({graph.states} states, {graph.input_size} inputs, "
        f"{graph.output_size} outputs): {limit}. A convolution gives every position of its output a row of its own. Use smaller "
        "samples, or a part of the network."
    )
