"""What torch.export cannot trace, traced by running it on one batch of random samples: a program for batches of that size.

Which way a condition on the values goes is fixed by the example. So the trace is believed only where it gives what the module gives on
other random batches of other sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from simtool.errors import InputError
from simtool.importing import describe
from simtool.networks import recurrent
from simtool.networks.inputs import probe_batches
from simtool.networks.tracing import quiet_torch

log = logging.getLogger("simtool")
BATCH = 13  # a prime, so that the axis of the samples is known by its size
_CHECKS = (1, 5, 17)
_TOLERANCE = 1e-4
_SKIPPED = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten._assert")


def traced(
    module: torch.nn.Module, shape: tuple[int, ...], dtype: torch.dtype, network: str, reason: InputError
) -> torch.export.ExportedProgram:
    """A functional program for BATCH samples. Raises ``reason``, with what is wrong here added, where there is none."""
    example = _random(shape, dtype, BATCH, 0)
    record = make_fx(
        _called(module), tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False
    )
    try:
        with quiet_torch(), torch.no_grad():
            frozen = _with_own_tensors(record(dict(module.state_dict()), example), module)
            exported = torch.export.export(frozen, (example,), strict=False)
            exported = exported.run_decompositions(dict(recurrent.TABLE))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # torch raises many types, and the network's own code any
        raise InputError(
            f"{reason} Tracing it on an example fails as well: {describe(error)[:200]}."
        ) from error
    for seed, count in enumerate(_CHECKS, start=1):
        batch = _random(shape, dtype, count, seed)
        padded = torch.cat([batch, example])[:BATCH] if count < BATCH else batch
        with torch.no_grad():
            expected = module(batch)
            found = torch.cat([frozen(part) for part in _parts(padded, example)])[:count]
        apart = float((found - expected).abs().max()) if found.shape == expected.shape else np.inf
        if not apart <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(
                f"{reason} Traced on an example, it gives other outputs on {count} other random sample(s) (difference {apart:.3g})."
            )
    log.warning(
        "torch.export cannot trace %s: it was traced on %d random samples and agreed on %s others. Conditions on the values are "
        "taken as they were there.", network, BATCH, " + ".join(map(str, _CHECKS)),
    )  # fmt: skip
    return exported


def _random(shape: tuple[int, ...], dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    kind = np.dtype(np.float64 if dtype.is_floating_point else np.int64)
    pair = probe_batches(shape, kind, None, max(count, 2), seed)
    assert pair is not None
    return torch.from_numpy(pair[0][:count]).to(dtype)


def _parts(batch: torch.Tensor, filling: torch.Tensor) -> list[torch.Tensor]:
    """``batch`` in parts of BATCH samples, the last one filled up."""
    return [torch.cat([batch[at : at + BATCH], filling])[:BATCH] for at in range(0, len(batch), BATCH)]


def _called(module: torch.nn.Module) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    def run(tensors: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(module, tensors, (batch,))
        return result

    return run


def _with_own_tensors(traced_module: fx.GraphModule, module: torch.nn.Module) -> fx.GraphModule:
    """The traced graph with the module's tensors under their own names, and without what only looked at values."""
    for name, value in module.state_dict().items():
        _attach(traced_module, name, value)
    graph = traced_module.graph
    *own, batch = (node for node in graph.nodes if node.op == "placeholder")
    for node, name in zip(own, module.state_dict(), strict=True):
        with graph.inserting_before(node):
            tensor = graph.get_attr(name)
        node.replace_all_uses_with(tensor)
        graph.erase_node(node)
    batch.target = "x"
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and str(node.target).startswith(_SKIPPED):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())
    last = next(node for node in graph.nodes if node.op == "output")
    if isinstance(last.args[0], list | tuple) and len(last.args[0]) == 1:
        last.args = (last.args[0][0],)
    traced_module.recompile()
    return traced_module


def _attach(holder: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(holder, part):
            holder.add_module(part, torch.nn.Module())
        holder = getattr(holder, part)
    holder.register_buffer(last, value.detach())
