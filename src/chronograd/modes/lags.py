"""How much gradient lies at which lag: ||dL_s/dh_{s-k}||, measured.

Sampled losses s become rows of a batch that runs step by step from the state ``depth`` steps before; one backward
pass gives the cotangent of every state on the way. Cost: ``depth`` steps forward and backward with (samples B) rows.

Known gaps: lag 0 of an opaque model is seen only where its outputs are computed from the state tensors it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.states import leaves, tree_map

from .losses import Losses
from .replay import device_of, reset_gates

__all__ = ["lag_cotangents"]


def lag_cotangents(
    recurrence: Recurrence, whole: Piece, states: dict[int, Any], sampled: Sequence[int], losses: Losses, depth: int
) -> list[Tensor]:
    """dL_s/dh_{s-k} for k = 0..depth-1, each (samples, B, n) with all state tensors of a row laid out flat.

    Args:
        whole: the steps to look at; ``losses`` are of the same steps.
        states: the state before the step s - depth + 1 of each sampled s.
        sampled: the steps s, each at least depth - 1.
    """
    rows = whole.rows
    start = torch.tensor([s - depth + 1 for s in sampled])
    index = start + torch.arange(depth).unsqueeze(1)

    def lay(x: Tensor) -> Tensor:
        return x[index.to(x.device)].flatten(1, 2)

    inputs, reset, valid = tree_map(lay, (whole.inputs, whole.reset, whole.valid))
    begin = [states[int(s)] for s in start]
    state = None if begin[0] is None else recurrence.dims.join(begin) if len(begin) > 1 else begin[0]
    seen: list[list[Tensor]] = []
    outputs = None
    with torch.enable_grad():
        for t in range(depth):
            step, anew, going = tree_map(lambda x, t=t: x[t : t + 1], (inputs, reset, valid))
            edges = Edges(reset_gates(anew), anew, going).to(device_of(whole))
            outputs, state, own = recurrence.run_step(step, state, edges)
            seen.append(own if t == depth - 1 else leaves(state))
        at = torch.tensor(list(sampled))

        def pick(x: Tensor) -> Tensor:
            return x[at.to(x.device)].flatten(0, 1).unsqueeze(0)

        last = Losses(losses.loss_fn, tree_map(pick, losses.targets), *tree_map(pick, (losses.weights, losses.used)))
        loss = last.sum(outputs)
        flat = [leaf for part in seen for leaf in part if leaf.requires_grad]
        grads = (
            torch.autograd.grad(loss, flat, allow_unused=True)
            if loss is not None and loss.requires_grad and flat
            else ()
        )
    found = iter(grads)
    dims = list(recurrence.dims.dims)
    result = []
    for part in seen:
        # A layer's own states are (1, B, H), a cell's (B, H): rows lie before the units.
        where = dims if part is not seen[-1] or recurrence.layout is None else [leaf.dim() - 2 for leaf in part]
        columns = []
        for leaf, dim in zip(part, where):
            grad = next(found, None) if leaf.requires_grad else None
            if dim is not None:
                flowed = torch.zeros_like(leaf) if grad is None else grad
                columns.append(flowed.movedim(dim, 0).reshape(len(sampled), rows, -1))
        result.append(columns)
    return [torch.cat(columns, -1) for columns in reversed(result)]
