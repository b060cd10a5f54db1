"""torch's recurrent layers, written out.

Its own take other kernels by device and type: oneDNN's, of float32 on a CPU, has no backward pass
in a transform of `torch.func`, cuDNN's no double backward, none of them a rule for `vmap`, and the
dropout between layers draws anew on the way back. Here a step is two matrix products and the
activations, exact in every order and under every transform.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
"""The hidden state `[B, H]`, and of an LSTM the cell's `[B, C]`."""

Gates = Callable[[Tensor, Tensor, State], State]
"""(what the input, what the hidden state adds to the gates `[B, G * C]`, state) -> the next one."""

Drop = Callable[[Tensor, float], Tensor]
"""(what a layer hands to the next, probability) -> the same after dropout."""


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    entry, forget, cell, leave = (x + h).chunk(4, -1)
    c = forget.sigmoid() * state[1] + entry.sigmoid() * cell.tanh()
    return leave.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x.chunk(3, -1), h.chunk(3, -1)
    update = (x_update + h_update).sigmoid()
    new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
    return (new + update * (state[0] - new),)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


def _cell(gates: Gates) -> Callable[..., Any]:
    """`torch.lstm_cell` and its like: one step for `input` `[B, D]`."""

    def cell(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        after = gates(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return after[0] if len(after) == 1 else after

    return cell


class _Hidden(NamedTuple):
    """What one direction of a layer does with its hidden state. project: of an LSTM, or None."""

    gates: Gates
    weight: Tensor
    bias: Tensor | None
    project: Tensor | None

    def __call__(self, x: Tensor, state: State) -> State:
        state = self.gates(x, F.linear(state[0], self.weight, self.bias), state)
        return state if self.project is None else (F.linear(state[0], self.project), *state[1:])


def _forwards(step: _Hidden, inputs: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """The outputs of every step, and the state of every example after its last one. A later step
    may have fewer examples: those of a packed sequence stand with the longest first."""
    outputs, ended = [], []
    for x in inputs:
        if len(x) < len(state[0]):
            ended.append(tuple(t[len(x) :] for t in state))
            state = tuple(t[: len(x)] for t in state)
        state = step(x, state)
        outputs.append(state[0])
    return outputs, _joined(state, *reversed(ended))


def _backwards(step: _Hidden, inputs: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """As `_forwards`, from every example's last step to the first."""
    outputs, now = [], tuple(t[: len(inputs[-1])] for t in state)
    for x in reversed(inputs):
        if len(x) > len(now[0]):
            now = _joined(now, tuple(t[len(now[0]) : len(x)] for t in state))
        now = step(x, now)
        outputs.append(now[0])
    return outputs[::-1], now


def _joined(*parts: State) -> State:
    """States of some examples and of others."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def _layer(gates: Gates) -> Callable[..., Any]:
    """`torch.lstm` and its like, of sequences `[L, B, D]`, `[B, L, D]` or packed ones."""

    def layer(drop: Drop, input: Tensor, *args: Any) -> Any:
        packed = not isinstance(args[2], bool)
        sizes = args[0].tolist() if packed else None
        hx, params, biases, layers, dropout, train, bidirectional, *rest = args[packed:]
        batch_first = bool(rest and rest[0])
        hx = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        directions = 2 if bidirectional else 1
        each = len(params) // (layers * directions)
        y = input.transpose(0, 1) if batch_first else input
        ends: list[State] = []
        for number in range(layers):
            if number and train and dropout:
                y = drop(y, dropout)
            outputs = []
            for at in range(number * directions, (number + 1) * directions):
                w_ih, w_hh, *more = params[at * each : (at + 1) * each]
                b_ih, b_hh = more[:2] if biases else (None, None)
                project = more[-1] if len(more) % 2 else None
                x = F.linear(y, w_ih, b_ih)
                inputs = x.unbind() if sizes is None else x.split(sizes)
                walk = _backwards if at % directions else _forwards
                step = _Hidden(gates, w_hh, b_hh, project)
                found, end = walk(step, inputs, tuple(t[at] for t in hx))
                outputs.append(torch.stack(found) if sizes is None else torch.cat(found))
                ends.append(end)
            y = torch.cat(outputs, -1) if bidirectional else outputs[0]
        y = y.transpose(0, 1) if batch_first else y
        return y, *map(torch.stack, zip(*ends, strict=True))

    return layer


LAYERS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layer(_lstm),
    torch.gru: _layer(_gru),
    torch.rnn_tanh: _layer(_tanh),
    torch.rnn_relu: _layer(_relu),
}
"""By torch's function: the same, with a `Drop` before its own arguments."""

CELLS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: _cell(_lstm),
    torch.gru_cell: _cell(_gru),
    torch.rnn_tanh_cell: _cell(_tanh),
    torch.rnn_relu_cell: _cell(_relu),
}
"""By torch's function: the same."""
