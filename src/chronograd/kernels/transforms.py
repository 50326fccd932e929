"""A layer under the transforms of ``torch.func``: ``grad``, ``vjp``, ``jacrev``, ``vmap`` and what is made
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

from .cells import CELLS
from .compiled import Call
from .plain import kernels_of
from .reference import not_twice

__all__ = ["run"]

State = tuple[Tensor, ...]


def run(call: Call) -> State:
    """The states after every step, (T, B, H) each."""
    out = _Layer.apply(*call.flat)
    return out[: CELLS[call.kind].parts]  # pyright: ignore[reportOptionalSubscript]


class _Layer(Function):
    """``Call.flat`` -> (*path, kept)."""

    @staticmethod
    def forward(*flat: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        call = Call.of(*flat)
        path, kept = kernels_of(call.kind).forward(call, keep=True)
        return (*path, kept) if kept is not None else path

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: State) -> None:
        call = Call.of(*inputs).remembered
        ctx.kind, ctx.parts = call.kind, CELLS[call.kind].parts
        ctx.mark_non_differentiable(*output[ctx.parts :])
        ctx.set_materialize_grads(False)  # nobody wants zeros as large as what is kept
        ctx.save_for_backward(*output, *call.flat[1:])

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None):
        wanted = ctx.needs_input_grad[1:6]
        given, outputs = given[: ctx.parts], len(given)
        found = iter(_Back.apply(wanted, outputs, ctx.kind, *given, *ctx.saved_tensors))  # pyright: ignore
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
    """(wanted, number of outputs of ``_Layer``, kind, *given, *outputs, *rest of ``Call.flat``) -> gradients."""

    @staticmethod
    def forward(wanted: Sequence[bool], outputs: int, kind: str, *rest: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = CELLS[kind].parts
        given, path, kept = rest[:parts], rest[parts : 2 * parts], rest[2 * parts : parts + outputs]
        call = Call.of(kind, *rest[parts + outputs :])
        found = kernels_of(kind).back(call, path, kept[0] if kept else None, given, wanted)
        return (*(part for part, want in zip(found[:5], wanted) if want), *found.states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: State) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *given: Tensor):
        raise not_twice()

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
