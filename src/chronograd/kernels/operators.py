"""A layer as operators of torch, for what sees operators only: ``torch.compile``, fake tensors, tracers, modes.

``chronograd::layer`` runs a layer forward, ``chronograd::layer_back`` walks it back; both are opaque to the compiler.
Plain eager calls take ``fused`` instead: the same two calls, without the 130 microseconds that an operator whose kernel
and way back are in Python adds to each. Known gaps: no second derivatives (a clear error says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cells import CELLS
from .compiled import Call, Crossings
from .plain import kernels_of
from .reference import not_twice

__all__ = ["run"]

State = tuple[Tensor, ...]


def run(call: Call) -> State:
    """The states after every step, (T, B, H) each."""
    # A trace is replayed with gradients and without.
    keep = torch.is_grad_enabled() or torch.jit.is_tracing()
    out = torch.ops.chronograd.layer(*call[:6], list(call.states), *call.crossings, keep)
    return tuple(out[: CELLS[call.kind].parts])


@torch.library.custom_op("chronograd::layer", mutates_args=(), device_types="cpu")
def layer(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    states: list[Tensor],
    gates: Tensor | None,
    reset: Tensor | None,
    valid: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """The path, and what the way back needs beside it."""
    call = Call(kind, x, weight_ih, bias_ih, weight, bias, Crossings(gates, reset, valid), tuple(states))
    path, kept = kernels_of(kind).forward(call, keep)
    return [*path] if kept is None else [*path, kept]


@torch.library.custom_op("chronograd::layer_back", mutates_args=(), device_types="cpu")
def layer_back(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    states: list[Tensor],
    gates: Tensor | None,
    reset: Tensor | None,
    valid: Tensor | None,
    path: list[Tensor],
    kept: Tensor | None,
    given: list[Tensor],
    wanted: list[bool],
) -> list[Tensor]:
    """The wanted gradients of x, weight_ih, bias_ih, weight and bias, then those of the states."""
    call = Call(kind, x, weight_ih, bias_ih, weight, bias, Crossings(gates, reset, valid), tuple(states))
    found = kernels_of(kind).back(call, tuple(path), kept, given, wanted)
    return [part for part, want in zip(found[:5], wanted) if want and part is not None] + list(found.states)


@layer.register_fake
def _(kind, x, weight_ih, bias_ih, weight, bias, states, gates, reset, valid, keep):  # type: ignore[no-untyped-def]
    steps, rows, size = x.shape[0], x.shape[1], states[0].shape[-1]
    path = [weight.new_empty(steps, rows, size) for _ in range(CELLS[kind].parts)]
    return path + ([weight.new_empty(steps, rows, CELLS[kind].kept * size)] if keep and CELLS[kind].kept else [])


@layer_back.register_fake
def _(kind, x, weight_ih, bias_ih, weight, bias, states, gates, reset, valid, path, kept, given, wanted):  # type: ignore[no-untyped-def]
    across = weight.shape[0]
    found = (
        lambda: x.new_empty(x.shape),
        lambda: weight_ih.new_empty(weight_ih.shape),
        lambda: weight.new_empty(across),
        lambda: weight.new_empty(weight.shape),
        lambda: weight.new_empty(across),
    )
    return [make() for make, want in zip(found, wanted) if want] + [part.new_empty(part.shape) for part in states]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    kind, *given, states, gates, reset, valid, ctx.keep = inputs
    call = Call.of(kind, *given, gates, reset, valid, *states).remembered
    ctx.kind = kind
    ctx.set_materialize_grads(False)  # nobody wants zeros as large as what is kept
    ctx.save_for_backward(*output, *call.flat[1:])


def _walk_back(ctx: Any, given: Sequence[Tensor | None]) -> tuple[Any, ...]:
    parts, needs = CELLS[ctx.kind].parts, ctx.needs_input_grad
    if CELLS[ctx.kind].kept and not ctx.keep:
        raise RuntimeError("chronograd::layer was called with keep=False and cannot be walked back; call it with True")
    saved = ctx.saved_tensors
    outputs = parts + bool(CELLS[ctx.kind].kept)
    path, kept = list(saved[:parts]), saved[parts] if CELLS[ctx.kind].kept else None
    call = Call.of(ctx.kind, *saved[outputs:])
    wanted = [needs[number] for number in (1, 2, 3, 4, 5)]
    cotangents = [torch.zeros_like(p) if part is None else part for part, p in zip(given, path)]
    found = iter(
        torch.ops.chronograd.layer_back(*call[:6], list(call.states), *call.crossings, path, kept, cotangents, wanted)
    )
    return None, *(next(found) if want else None for want in wanted), list(found), None, None, None, None


layer.register_autograd(_walk_back, setup_context=_remember)


def _no_second(ctx: Any, given: Sequence[Tensor | None]) -> None:
    raise not_twice()


# Reached only where the way back is itself differentiated.
layer_back.register_autograd(_no_second, setup_context=lambda ctx, inputs, output: None)
