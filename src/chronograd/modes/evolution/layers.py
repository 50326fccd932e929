"""Built-in layers and torch's cells under ``torch.func.vmap`` over their weights: all particles at once in plain torch.

The compiled kernels take one set of weights a call, and torch has no rules to map its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode

from chronograd.kernels import Edges, run_projected
from chronograd.modes.forward.plain import STEPS, run_plain
from chronograd.recurrence.sequence import LayerWeights, Path, run_cell, run_layers

__all__ = ["MappedCells", "MappedEngine"]

State = tuple[Tensor, ...]


class MappedCells(TorchFunctionMode):
    """Torch's cells mapped over their weights, wherever a model calls them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in CELLS or kwargs or len(args) != 6 or not (_mapped(args[2]) or _mapped(args[3])):
            return func(*args, **(kwargs or {}))
        x, hx, weight_ih, weight_hh, bias_ih, bias_hh = args
        kind = CELLS[func]
        drive = torch.nn.functional.linear(x, weight_ih, bias_ih)
        state = tuple(hx) if kind == "lstm" else (hx,)
        after = STEPS[kind](drive, torch.nn.functional.linear(state[0], weight_hh, bias_hh), state)
        return after if kind == "lstm" else after[0]


class MappedEngine:
    """An engine (``recurrence.sequence``) whose layers run mapped; there are no edges inside of it."""

    ways = ()
    cell = staticmethod(run_cell)

    @staticmethod
    def layers(
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path:
        """As ``sequence.run_layers``."""
        return run_layers(kind, inputs, initial, weights, dropout, edges, fresh, _layer)


def _layer(
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
    """As ``kernels.run_projected``."""
    if not _mapped(weight) and not _mapped(weight_ih):
        return run_projected(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh)
    return run_plain(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh)


def _mapped(tensor: Tensor) -> bool:
    return is_batchedtensor(tensor)


CELLS = {torch.rnn_tanh_cell: "tanh", torch.rnn_relu_cell: "relu", torch.gru_cell: "gru", torch.lstm_cell: "lstm"}
