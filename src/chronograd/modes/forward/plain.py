"""Built-in layers as plain operations of torch, which every transform of ``torch.func`` follows, twice too.

For single steps: kernels are faster over many. Kinds that are not known here run as they do otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from chronograd.kernels import Edges
from chronograd.kernels.cells import fold_biases
from chronograd.recurrence.sequence import LayerWeights, Path, Sequential, run_layers

__all__ = ["STEPS", "Plain", "run_plain"]

State = tuple[Tensor, ...]


class Plain(Sequential):
    """Runs the loops of layers so, without resets and frozen rows."""

    def layers(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path:
        run = run_plain if kind in STEPS and edges.plain else None
        return run_layers(kind, inputs, initial, weights, dropout, edges, fresh, **({"run": run} if run else {}))


def run_plain(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None,
) -> State:
    bias_ih, bias = fold_biases(kind, bias_ih, bias)
    state, path = initial, []
    for drive in linear(inputs, weight_ih, bias_ih).unbind(0):
        product = linear(state[0], weight, bias) if weight.dim() > 1 else weight * _repeated(state[0], weight)
        state = STEPS[kind](drive, product, state)
        path.append(state)
    return tuple(torch.stack(parts) for parts in zip(*path))


def _repeated(h: Tensor, weight: Tensor) -> Tensor:
    """Once for each block of an element-wise layer's weight."""
    blocks = weight.shape[0] // h.shape[-1]
    return h if blocks == 1 else torch.cat([h] * blocks, -1)


def _gru(drive: Tensor, product: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = drive.chunk(3, -1), product.chunk(3, -1)
    z = (xz + hz).sigmoid()
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + z * (state[0] - n),)


def _elstm(drive: Tensor, product: Tensor, state: State) -> State:
    z, f = (drive + product).chunk(2, -1)
    z, f = z.tanh(), f.sigmoid()
    return (z + f * (state[0] - z),)


def _lstm(drive: Tensor, product: Tensor, state: State) -> State:
    i, f, g, o = (drive + product).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "tanh": lambda drive, product, state: ((drive + product).tanh(),),
    "relu": lambda drive, product, state: ((drive + product).relu(),),
    "linear": lambda drive, product, state: (drive + product,),
    "diagonal": lambda drive, product, state: (drive + product,),
    "elstm": _elstm,
    "gru": _gru,
    "lstm": _lstm,
}
