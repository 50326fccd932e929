"""The loop over time in plain torch: run forward, store the states once, walk back once.

One autograd node for a whole layer. The way back is the section's own::

    delta_t = dL/dh_t + xi_{t+1} J_{t+1}^T delta_{t+1}                      (E11 for the linear RNN)
    dL/dW_hh = sum_t (dL/d product_t) h_{t-1}^T              (E13), one matrix product over all steps and rows

Where all rows are cut at the same steps the stretches between are rows of one batch (``order``): k sequential steps
instead of T.

This file is the reference that faster kernels are tested against. Cost: T small products forward, T (or k) backward,
then one large one for the weights. Known gaps: it cannot be differentiated twice (a clear error says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cells import CELLS, Cell, fold_biases
from .edges import Edges
from .walk import walk_back

__all__ = ["Back", "back", "not_twice", "refuse_twice", "run_layer", "start_anew", "states_before", "walk_forward"]

State = tuple[Tensor, ...]


def run_layer(
    kind: str,
    drive: Tensor,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
) -> State:
    """Run one layer over time.

    Args:
        kind: a name in ``CELLS``.
        drive: (T, B, G), the projected inputs; T is at least 1.
        initial: the state before the first step, (B, H) each.
        weight: (G, H) recurrent weight ((G,) for element-wise kinds); ``bias`` (G,) or None is added to its product.
        edges: gates, resets and frozen rows.
        fresh: the initial states of the rows that start anew, (R, H) each, in the order of
            ``edges.reset.nonzero()``; None is zeros.

    Returns:
        The states after every step, (T, B, H) each.

    >>> import torch
    >>> drive, h, weight = torch.ones(3, 1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.5)
    >>> run_layer("linear", drive, (h,), weight, None, Edges())[0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    cell = CELLS[kind]
    drive, bias = fold_biases(kind, drive, bias)
    device = drive.device.type
    states = (*initial, *(fresh or ()))
    if torch.is_autocast_enabled(device):
        # Sums over many steps are kept in the precision of the weights.
        drive, states = drive.to(weight.dtype), tuple(part.to(weight.dtype) for part in states)
        with torch.autocast(device, enabled=False):
            out = _Layer.apply(cell, edges, True, drive, weight, bias, *states)
    else:
        out = _Layer.apply(cell, edges, torch.is_grad_enabled(), drive, weight, bias, *states)
    return out if cell.parts > 1 else (out,)  # pyright: ignore[reportReturnType]


def not_twice() -> RuntimeError:
    """The refusal to differentiate a way back, naming the remedy."""
    return RuntimeError(
        "a recurrent layer of chronograd, or one of torch under gates, cannot be differentiated twice "
        "(create_graph=True); cells in a loop can: cg.Recurrent(torch.nn.GRUCell(d, H))"
    )


def refuse_twice() -> None:
    """Raise ``not_twice`` where a way back is recorded to be itself differentiated."""
    if torch.is_grad_enabled():
        raise not_twice()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        edges: Edges,
        keep: bool,
        drive: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *states: Tensor,
    ):
        path, kept = walk_forward(cell, edges, keep, drive, weight, bias, states)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.edges, ctx.has_bias = cell, edges, bias is not None
        ctx.save_for_backward(weight, kept, *path, *states)
        return path if cell.parts > 1 else path[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        weight, kept, *saved = ctx.saved_tensors
        parts = ctx.cell.parts
        wanted = (ctx.needs_input_grad[4], ctx.has_bias and ctx.needs_input_grad[5])
        found = back(ctx.cell, ctx.edges, weight, kept, tuple(saved[:parts]), tuple(saved[parts:]), cotangents, wanted)
        return None, None, None, found.drive, found.weight, found.bias, *found.states


def walk_forward(
    cell: Cell, edges: Edges, keep: bool, drive: Tensor, weight: Tensor, bias: Tensor | None, states: State
) -> tuple[State, Tensor]:
    """The states after every step, (T, B, H) each, and what the cell kept, (T, B, kept H); without ``keep`` that of the
    last step.

    Args:
        states: the initial ones, (B, H) each, then the fresh ones, (R, H) each, where there are any.
    """
    initial, fresh = states[: cell.parts], states[cell.parts :]
    steps, rows = drive.shape[:2]
    size = initial[0].shape[-1]
    path = tuple(drive.new_empty(steps, rows, size) for _ in initial)
    kept = drive.new_empty(steps if keep else 1, rows, cell.kept * size)
    resets, frozen = edges.reset_steps(), edges.frozen_steps()
    numbers = edges.fresh_rows() if fresh else None
    views = zip(*(part.unbind(0) for part in cell.views(drive, kept.expand(steps, -1, -1))))
    state, ready = initial, cell.ready(weight)
    for t, (view, new) in enumerate(zip(views, zip(*(part.unbind(0) for part in path)))):
        if edges.reset is not None and resets[t]:
            state = start_anew(state, edges.reset[t], fresh, None if numbers is None else numbers[t])
        cell.forward(view, state, ready, bias, new)
        if edges.valid is not None and frozen[t]:
            still = ~edges.valid[t].unsqueeze(-1)
            for after, was in zip(new, state):
                after.copy_(torch.where(still, was, after))
        state = new
    return path, kept


class Back(NamedTuple):
    """Gradients of what ``walk_forward`` took; those of weight and bias are None where they are not wanted."""

    drive: Tensor
    weight: Tensor | None
    bias: Tensor | None
    states: State


def back(
    cell: Cell,
    edges: Edges,
    weight: Tensor,
    kept: Tensor,
    path: State,
    states: State,
    given: Sequence[Tensor | None],
    wanted: tuple[bool, bool],
) -> Back:
    """Walk back over all steps.

    Args:
        kept: and ``path``, from ``walk_forward``; ``states`` as it took them.
        given: cotangents of the path, (T, B, H) each, None for 0.
        wanted: whether the gradients of the weight and of a bias on its product are wanted.
    """
    initial, fresh = states[: cell.parts], states[cell.parts :]
    before = states_before(initial, path, edges, fresh)
    found = walk_back(cell, weight, edges, tuple(given), kept, before, path, tuple(map(torch.zeros_like, fresh)))
    product = found.product.flatten(0, 1)
    dweight = cell.weight_back(product, before[0].flatten(0, 1)) if wanted[0] else None
    dbias = product.sum(0) if wanted[1] else None
    return Back(found.drive, dweight, dbias, (*found.initial, *found.fresh))


def start_anew(state: State, reset: Tensor, fresh: State, numbers: Tensor | None) -> State:
    """Replace the state of the rows that reset by their own initial state."""
    mask = reset.unsqueeze(-1)
    if numbers is None:
        return tuple(torch.where(mask, 0, part) for part in state)
    return tuple(torch.where(mask, new[numbers.clamp(min=0)], part) for new, part in zip(fresh, state))


def states_before(initial: State, path: State, edges: Edges, fresh: State) -> State:
    """The state each step was taken from, (T, B, H)."""
    before = tuple(torch.cat((first.unsqueeze(0), part[:-1])) for first, part in zip(initial, path))
    if edges.reset is None:
        return before
    return start_anew(before, edges.reset, fresh, edges.fresh_rows() if fresh else None)
