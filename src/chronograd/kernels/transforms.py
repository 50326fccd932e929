"""The compiled kernels under the transforms of ``torch.func``: ``grad``, ``vjp``, ``jacrev``, ``vmap`` and what is made
of them, such as a gradient for each example.

``vmap`` lays what it maps over as rows where only inputs and states are mapped; where weights or gates are, or on the
way back (each mapped call has weight gradients of its own), the calls run one after the other. Known gaps: no second
derivatives (a clear error says so), no forward mode (torch's error).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import compiled
from .cells import CELLS
from .compiled import Crossings
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
) -> State:
    """The states after every step, (T, B, H) each; arguments of ``compiled.forward``."""
    out = _Layer.apply(kind, x, weight_ih, bias_ih, weight, bias, *crossings, *states)
    return out[: CELLS[kind].parts]  # pyright: ignore[reportOptionalSubscript]


class _Layer(Function):
    """(kind, x, weight_ih, bias_ih, weight, bias, gates, reset, valid, *states) -> (*path, kept)."""

    @staticmethod
    def forward(kind: str, *given: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_ih, bias_ih, weight, bias = given[:5]
        crossings, states = Crossings(*given[5:8]), given[8:]
        path, kept = compiled.forward(kind, x, weight_ih, bias_ih, weight, bias, states, crossings, keep=True)
        return (*path, kept) if kept is not None else path

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: State) -> None:
        kind, x, weight_ih, _, weight, _, *crossings_and_states = inputs
        ctx.kind, ctx.parts = kind, CELLS[kind].parts
        ctx.states = len(crossings_and_states) - 3
        ctx.mark_non_differentiable(*output[ctx.parts :])
        ctx.save_for_backward(x, weight_ih, weight, *crossings_and_states, *output)

    @staticmethod
    def backward(ctx: Any, *given: Tensor):
        x, weight_ih, weight, *rest = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:6]
        found = iter(_Back.apply(ctx.kind, wanted, ctx.states, x, weight_ih, weight, *rest, *given[: ctx.parts]))  # pyright: ignore
        return None, *(next(found) if want else None for want in wanted), None, None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], kind: str, *given: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        dims, many = in_dims[1:], info.batch_size
        x, weights, crossings, states = given[0], given[1:5], given[5:8], given[8:]
        if any(dim is not None for dim in dims[1:8]) or any(part is not None for part in crossings):
            return _one_by_one(_Layer, info, in_dims, kind, *given)

        def as_rows(part: Tensor, dim: int | None, at: int) -> Tensor:
            """The mapped dimension beside the rows, which are dimension ``at`` of a tensor that is not mapped."""
            if dim is None:
                part = part.unsqueeze(at).expand(*part.shape[:at], many, *part.shape[at:])
            else:
                part = part.movedim(dim, at)
            return part.flatten(at, at + 1)

        spread = (as_rows(part, dim, 0) for part, dim in zip(states, dims[8:]))
        out = _Layer.apply(kind, as_rows(x, dims[0], 1), *weights, *crossings, *spread)
        return tuple(part.unflatten(1, (many, -1)) for part in out), (1,) * len(out)  # pyright: ignore


class _Back(Function):
    """(kind, wanted, states, x, weight_ih, weight, gates, reset, valid, *states, *path, kept, *given) -> gradients."""

    @staticmethod
    def forward(kind: str, wanted: Sequence[bool], states: int, x: Any, weight_ih: Any, weight: Any, *given: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = CELLS[kind].parts
        crossings, rest = Crossings(*given[:3]), given[3:]
        path, after = rest[states : states + parts], rest[states + parts :]
        kept, cotangents = after[0] if len(after) > parts else None, after[-parts:]
        found = compiled.back(kind, x, weight_ih, weight, rest[:states], crossings, path, kept, cotangents, wanted)
        return (*(part for part, want in zip(found[:5], wanted) if want), *found.states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: State) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *given: Tensor):
        with torch.enable_grad():
            refuse_twice()

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *given: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _one_by_one(_Back, info, in_dims, *given)


def _one_by_one(function: type[Function], info: Any, in_dims: Sequence[Any], *given: Any):  # type: ignore[no-untyped-def]
    found = []
    for number in range(info.batch_size):
        one = (
            part.select(dim, number) if isinstance(part, Tensor) and dim is not None else part
            for part, dim in zip(given, in_dims)
        )
        found.append(function.apply(*one))
    stacked = tuple(torch.stack(parts) for parts in zip(*found))
    return stacked, (0,) * len(stacked)
