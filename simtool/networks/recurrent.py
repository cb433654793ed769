"""Recurrent layers of PyTorch written out step by step, so that their matrices are linear layers with one use for each step; and einsum.

The states start from what the network passes, and the samples stay on the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# One step: (projected input (B, gates), states, projection of the last output) to the new states, the output first.
_Cell = Callable[[Tensor, tuple[Tensor, ...], Callable[[Tensor], Tensor]], tuple[Tensor, ...]]


def _rnn(activation: Callable[[Tensor], Tensor]) -> _Cell:
    def cell(
        given: Tensor, states: tuple[Tensor, ...], recur: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        return (activation(given + recur(states[0])),)

    return cell


def _lstm(given: Tensor, states: tuple[Tensor, ...], recur: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    h, c = states
    take, keep, new, give = (given + recur(h)).chunk(4, dim=1)
    c = torch.sigmoid(keep) * c + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(c), c


def _gru(given: Tensor, states: tuple[Tensor, ...], recur: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    (h,) = states
    given_reset, given_keep, given_new = given.chunk(3, dim=1)
    own_reset, own_keep, own_new = recur(h).chunk(3, dim=1)
    keep = torch.sigmoid(given_keep + own_keep)
    new = torch.tanh(given_new + torch.sigmoid(given_reset + own_reset) * own_new)
    return ((h - new) * keep + new,)


def _unrolled(
    cell: _Cell,
    x: Tensor,
    hidden: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The outputs of the last layer and the final states of every layer and direction, as torch's operators give them."""
    x = x if batch_first else x.transpose(0, 1)
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    final: list[list[Tensor]] = [[] for _ in hidden]
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            states = tuple(state[at] for state in hidden)
            outputs.append(
                _direction(cell, x, states, params[at * each : (at + 1) * each], has_biases, direction, final)
            )
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=2)
    x = x if batch_first else x.transpose(0, 1)
    return (x, *(torch.stack(states) for states in final))


def _direction(
    cell: _Cell,
    x: Tensor,
    states: tuple[Tensor, ...],
    params: Sequence[Tensor],
    has_biases: bool,
    backwards: int,
    final: list[list[Tensor]],
) -> Tensor:
    own, bias = params[1], params[3] if has_biases else None
    # A long short-term memory may project its output (proj_size): the last of its matrices.
    last = params[-1] if len(params) in (3, 5) else None
    steps = range(x.shape[1])
    outputs = []
    for step in reversed(steps) if backwards else steps:
        given = functional.linear(x[:, step], params[0], params[2] if has_biases else None)
        output, *rest = cell(given, states, lambda h: functional.linear(h, own, bias))
        output = output if last is None else functional.linear(output, last)
        states = (output, *rest)
        outputs.append(output)
    for found, state in zip(final, states, strict=True):
        found.append(state)
    return torch.stack(outputs[::-1] if backwards else outputs, dim=1)


def _one_state(cell: _Cell) -> Callable[..., tuple[Tensor, ...]]:
    def operator(
        x: Tensor,
        hidden: Tensor,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        return _unrolled(cell, x, [hidden], params, has_biases, num_layers, bidirectional, batch_first)

    return operator


def _lstm_operator(
    x: Tensor,
    hidden: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    return _unrolled(_lstm, x, hidden, params, has_biases, num_layers, bidirectional, batch_first)


def _one_step(cell: _Cell) -> Callable[..., Any]:
    """A cell that the network itself calls for each step."""

    def operator(
        x: Tensor,
        hidden: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        states = (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
        given = functional.linear(x, w_ih, b_ih)
        found = cell(given, states, lambda h: functional.linear(h, w_hh, b_hh))
        return found if len(found) > 1 else found[0]

    return operator


def _einsum(equation: str, operands: Sequence[Tensor], path: Any = None) -> Any:
    """A linear layer on the last axis (as ``bti,io->bto``) is written as one; any other equation stays."""
    sides = equation.replace(" ", "").split("->")
    if len(sides) != 2 or len(operands) != 2 or operands[1].dim() != 2:
        return NotImplemented
    letters, result = sides[0].split(","), sides[1]
    lead, summed = letters[0][:-1], letters[0][-1]
    other = letters[1].replace(summed, "")
    if len(other) != 1 or other in lead or summed in lead or result != lead + other:
        return NotImplemented
    weight = operands[1] if letters[1][1] == summed else operands[1].t()
    return functional.linear(operands[0], weight)


_ATEN = torch.ops.aten
# What torch.export is told to write out instead of its own operators.
TABLE: Mapping[Any, Callable[..., Any]] = {
    _ATEN.rnn_tanh.input: _one_state(_rnn(torch.tanh)),
    _ATEN.rnn_relu.input: _one_state(_rnn(torch.relu)),
    _ATEN.gru.input: _one_state(_gru),
    _ATEN.lstm.input: _lstm_operator,
    _ATEN.rnn_tanh_cell.default: _one_step(_rnn(torch.tanh)),
    _ATEN.rnn_relu_cell.default: _one_step(_rnn(torch.relu)),
    _ATEN.gru_cell.default: _one_step(_gru),
    _ATEN.lstm_cell.default: _one_step(_lstm),
    _ATEN.einsum.default: _einsum,
}
