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
from .compiled import AUTO, Call, Choice
from .reference import refuse_twice

__all__ = ["run"]

State = tuple[Tensor, ...]


def run(call: Call, choice: Choice = AUTO) -> State:
    """The states after every step, (T, B, H) each."""
    path = _Fused.apply(choice, torch.is_grad_enabled(), *call.flat)
    return path if CELLS[call.kind].parts > 1 else (path,)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, choice: Choice, keep: bool, *flat: Any):
        call = Call.of(*flat)
        keep = keep and any(ctx.needs_input_grad)
        path, kept = compiled.forward(call, keep, choice)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.kind, ctx.choice = call.kind, choice
            ctx.save_for_backward(kept, *path, *call.remembered.flat[1:])
        return path if len(path) > 1 else path[0]  # pyright: ignore[reportGeneralTypeIssues]

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        kept, *rest = ctx.saved_tensors
        path, call = tuple(rest[: len(given)]), Call.of(ctx.kind, *rest[len(given) :])
        found = compiled.back(call, path, kept, given, ctx.needs_input_grad[3:8], ctx.choice)
        return None, None, None, *found[:5], None, None, None, *found.states
