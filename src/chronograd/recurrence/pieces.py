"""A model whose inside is not known, run in pieces between the steps where something happens to an edge.

Cost: one call of the model for each piece, and one more where rows start anew. Under gates drawn for each row the
pieces are single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chronograd.kernels import Edges

from .states import RowDims, leaves, tree_map

__all__ = ["run_pieces"]

Tree = Any


def run_pieces(
    call: Callable[[Tree, Tree], tuple[Tree, Tree]],
    dims: Callable[[], RowDims],
    inputs: Tree,
    state: Tree,
    edges: Edges,
    visits: Sequence[int],
) -> tuple[Tree, Tree, list[Tree], Tree]:
    """Run a stretch under ``edges``.

    Args:
        call: ``call(inputs, state) -> (outputs, state)``; ``dims()`` says where rows lie, where that is needed.
        visits: steps, ascending, before which the state is wanted.

    Returns:
        Outputs (T, B, ...), the final state, the states before ``visits``, and the state as the last call returned it.
    """
    steps = leaves(inputs)[0].shape[0]
    wanted = set(visits)
    bounds = sorted({0, *_bounds(edges, steps), *wanted})
    resets, frozen = edges.reset_steps(), edges.frozen_steps()
    outputs, states, returned = [], [], None
    for begin, end in zip(bounds, [*bounds[1:], steps]):
        if begin in wanted:
            states.append(state)
        piece = tree_map(lambda x, b=begin, e=end: x[b:e], inputs)
        if state is not None and edges.gates is not None:
            state = dims().gate(state, edges.gates[begin])
        out, new = call(piece, state)
        returned = new
        if resets and resets[begin] and state is not None:
            assert edges.reset is not None
            fresh_out, fresh = call(piece, None)
            going_on = ~edges.reset[begin]
            out = _choose_columns(going_on, out, fresh_out)
            new = dims().choose(going_on, new, fresh)
        if frozen and frozen[begin] and state is not None:
            assert edges.valid is not None
            new = dims().choose(edges.valid[begin], new, state)
        outputs.append(out)
        state = new
    return tree_map(lambda *parts: torch.cat(parts), *outputs), state, states, returned


def _choose_columns(mask: Tensor, yes: Tree, no: Tree) -> Tree:
    """Rows in dimension 1, as outputs have them."""
    return tree_map(lambda a, b: torch.where(mask.to(a.device).reshape(1, -1, *[1] * (a.dim() - 2)), a, b), yes, no)


def _bounds(edges: Edges, steps: int) -> set[int]:
    """The steps before which something happens to an edge, and those after a reset."""
    bounds: set[int] = set()
    if edges.gates is not None:
        bounds |= set((edges.gates != 1).any(1).nonzero().flatten().tolist())
    if edges.reset is not None:
        resets = edges.reset.any(1).nonzero().flatten().tolist()
        bounds |= set(resets) | {step + 1 for step in resets}
    if edges.valid is not None:
        bounds |= set(((edges.valid[1:] != edges.valid[:-1]).any(1).nonzero().flatten() + 1).tolist())
    return {step for step in bounds if step < steps}
