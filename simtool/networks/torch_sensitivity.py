"""How much each value inside a PyTorch network moves its outputs, by reverse differentiation of its program."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


class Watched(fx.Interpreter):
    """Runs a functional graph with gradients towards the tensors ``names``."""

    def __init__(self, module: fx.GraphModule, names: frozenset[str]) -> None:
        super().__init__(module)
        self._names = names
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names:
            # Weights are constants here, so what a layer gives may have no gradient of its own yet.
            value = value.requires_grad_() if not value.requires_grad else value
            self.found[n.name] = value
        return value


def squared_gradients(
    module: fx.GraphModule,
    arguments: list[torch.Tensor],
    names: list[str],
    output: str,
    probes: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """An estimate of sum_k (dy_k / dt)^2 for every entry of the tensors ``names``, from ``probes`` random sums of the outputs.

    With v of random signs, E[(d(v'y)/dt)^2] is that sum (Hutchinson); signs are drawn from ``seed``, for every sample its own.
    """
    watched = Watched(module, frozenset([*names, output]))
    with torch.enable_grad():
        watched.run(*arguments)
        y, values = watched.found[output], [watched.found[name] for name in names]
        generator = torch.Generator().manual_seed(seed)
        total = [torch.zeros_like(value) for value in values]
        for _ in range(probes):
            signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
            found = torch.autograd.grad((y * signs).sum(), values, retain_graph=True, allow_unused=True)
            for sums, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    sums += gradient**2
    return {name: sums / probes for name, sums in zip(names, total, strict=True)}
