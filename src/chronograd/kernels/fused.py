"""A layer on the compiled kernels as one node of autograd: two calls, where torch makes many small steps.

Known gaps: it cannot be differentiated twice (a clear error says so); only the CPU, float32, float64 and (diagonal)
their complex numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compiled
from .cells import CELLS
from .compiled import AUTO, Choice, Crossings
from .reference import refuse_twice

__all__ = ["run"]

State = tuple[Tensor, ...]


def run(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    states: State,
    crossings: Crossings,
    choice: Choice = AUTO,
) -> State:
    """The states after every step, (T, B, H) each; arguments of ``compiled.forward``."""
    keep = torch.is_grad_enabled()
    path = _Fused.apply(kind, crossings, choice, keep, x, weight_ih, bias_ih, weight, bias, *states)
    return path if CELLS[kind].parts > 1 else (path,)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: str,
        crossings: Crossings,
        choice: Choice,
        keep: bool,
        x: Tensor,
        weight_ih: Tensor,
        bias_ih: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *states: Tensor,
    ):
        keep = keep and any(ctx.needs_input_grad)
        path, kept = compiled.forward(kind, x, weight_ih, bias_ih, weight, bias, states, crossings, keep, choice)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.kind, ctx.choice = kind, choice
            ctx.save_for_backward(x, weight_ih, weight, kept, *crossings, *path, *states)
        return path if CELLS[kind].parts > 1 else path[0]

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        x, weight_ih, weight, kept, gates, reset, valid, *rest = ctx.saved_tensors
        path, states = tuple(rest[: len(given)]), tuple(rest[len(given) :])
        wanted = ctx.needs_input_grad[4:9]
        found = compiled.back(
            ctx.kind,
            x,
            weight_ih,
            weight,
            states,
            Crossings(gates, reset, valid),
            path,
            kept,
            given,
            wanted,
            ctx.choice,
        )
        return None, None, None, None, *found[:5], *found.states
