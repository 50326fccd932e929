"""The segment replayer: run a stretch again from its stored start, with the random numbers it drew.

A ``Piece`` holds inputs, what happened on its edges, and the state of torch's generators when it first ran.
Everything that runs a stretch a second time does it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.states import detach, leaves, tree_map
from chronograd.streamed import Streamed

__all__ = [
    "device_of",
    "edges_of",
    "fill_padding",
    "in_memory",
    "loaded",
    "merge",
    "ran",
    "replay",
    "reset_gates",
    "restore",
    "snapshot",
    "split",
    "split_at",
    "stack_pieces",
    "steps_of",
    "streams",
]


def snapshot() -> list[Tensor]:
    """The states of torch's generators: the CPU's, then each CUDA device's that is in use."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def restore(states: Sequence[Tensor]) -> None:
    """Set torch's generators to a ``snapshot``."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


def device_of(piece: Piece) -> torch.device:
    """The device of a piece's inputs."""
    return next((leaf.device for leaf in leaves(piece.inputs)), torch.device("cpu"))


def reset_gates(reset: Tensor | None) -> Tensor | None:
    """Gates that cut at resets and nowhere else, float64; None where there are no resets."""
    return None if reset is None or not bool(reset.any()) else torch.where(reset, 0.0, 1.0).to(torch.float64)


def edges_of(piece: Piece, state: Any) -> Edges:
    """The edges of a piece that begins with ``state``, on the device of its inputs.

    Where nothing flows back into the state, the first gates do not matter and stay 1: a piece with no other edges runs
    as the model itself.
    """
    gates = piece.gates
    if not any(leaf.requires_grad for leaf in leaves(state)):
        gates = gates.clone()
        gates[0] = 1.0 if piece.reset is None else ~piece.reset[0]
    return Edges(gates, piece.reset, piece.valid).to(device_of(piece))


def ran(piece: Piece, before: list[Tensor], after: list[Tensor] | None = None) -> Piece:
    """A piece that has run: with the random state it began with, or none where it drew nothing; it is over now, or left
    the generators in the states ``after``.
    """
    now = snapshot() if after is None else after
    drew = len(now) != len(before) or any(not torch.equal(a, b) for a, b in zip(now, before))
    return replace(piece, random=before if drew else [])


def merge(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, with neighbours that drew nothing as one: a stream of single steps is run again in one call."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and not piece.random and not merged[-1].random and not streams([piece.inputs, merged[-1].inputs]):
            merged[-1] = stack_pieces([merged[-1], piece])
        else:
            merged.append(piece)
    return merged


def split_at(pieces: Sequence[Piece], step: int) -> list[Piece]:
    """The pieces, one of them in two where ``step`` lies inside a piece that drew nothing."""
    parts: list[Piece] = []
    for piece in pieces:
        inside = 0 < step < piece.steps and not piece.random
        parts += split(piece, step) if inside else [piece]
        step -= piece.steps
    return parts


def split(piece: Piece, step: int) -> tuple[Piece, Piece]:
    """A piece that has not run yet, in two; the random state of the second is set when it runs."""

    def part(steps: slice) -> Piece:
        return Piece(
            steps_of(piece.inputs, steps),
            piece.gates[steps],
            None if piece.reset is None else piece.reset[steps],
            None if piece.valid is None else piece.valid[steps],
            piece.random,
            steps_of(piece.targets, steps),
            None if piece.weights is None else piece.weights[steps],
        )

    return part(slice(0, step)), part(slice(step, None))


def steps_of(tree: Any, steps: Any) -> Any:
    """Some steps (or any index) of a nesting of tensors (T, B, ...) and of streams."""
    if isinstance(tree, Tensor | Streamed):
        return tree[steps]
    if not streams(tree):
        return tree_map(lambda x: x[steps], tree)
    return pytree.tree_map(lambda x: x[steps] if isinstance(x, Tensor | Streamed) else x, tree)


def streams(tree: Any) -> list[Streamed]:
    """The streams among the leaves of a nesting."""
    if isinstance(tree, Streamed):
        return [tree]
    if tree is None or isinstance(tree, Tensor):
        return []
    if type(tree) in (tuple, list):  # by hand, as in ``leaves``: every call asks
        return [stream for part in tree for stream in streams(part)]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Streamed)]


def in_memory(tree: Any) -> Any:
    """A nesting whose streams are read."""
    if not streams(tree):
        return tree
    return pytree.tree_map(lambda x: x.load() if isinstance(x, Streamed) else x, tree)


def loaded(piece: Piece) -> Piece:
    """A piece whose inputs and targets are in memory, padding filled with values that a valid step has."""
    if not streams([piece.inputs, piece.targets]):
        return piece
    inputs = in_memory(piece.inputs)
    if piece.valid is not None:
        inputs = fill_padding(inputs, piece.valid)
    return replace(piece, inputs=inputs, targets=in_memory(piece.targets))


def fill_padding(inputs: Any, valid: Tensor) -> Any:
    """Inputs (T, B, ...) with the first ``valid`` (T, B) entry in place of all others; zeros where there is none."""
    found = valid.nonzero()

    def fill(x: Tensor) -> Tensor:
        mask = valid.to(x.device).reshape(*valid.shape, *[1] * (x.dim() - 2))
        good = x[tuple(found[0])] if len(found) else torch.zeros_like(x[0, 0])
        return torch.where(mask, x, good.detach())

    return tree_map(fill, inputs)


def replay(recurrence: Recurrence, pieces: Sequence[Piece], state: Any) -> tuple[list[Any], Any]:
    """Run pieces again from ``state``, with gradients.

    Returns:
        The state before each piece (without graph), and the final state (with it). The generators are left as they
        were found.
    """
    if not pieces:
        return [], state
    before, now = [], snapshot()
    try:
        for piece in map(loaded, pieces):
            before.append(detach(state))
            if piece.random:
                restore(piece.random)
            _, state = recurrence.run(piece.inputs, state, edges_of(piece, state))
    finally:
        restore(now)
    return before, state


def stack_pieces(pieces: Sequence[Piece]) -> Piece:
    """Pieces one after the other as one; only its inputs and edges have a meaning."""
    pieces = [loaded(piece) for piece in pieces]
    if len(pieces) == 1:
        return pieces[0]
    kept = all(piece.weights is not None for piece in pieces)
    return Piece(
        tree_map(lambda *parts: torch.cat(parts), *(piece.inputs for piece in pieces)),
        torch.cat([piece.gates for piece in pieces]),
        _cat([(piece.reset, piece.gates) for piece in pieces], False),
        _cat([(piece.valid, piece.gates) for piece in pieces], True),
        next((piece.random for piece in pieces if piece.random), []),
        tree_map(lambda *parts: torch.cat(parts), *(piece.targets for piece in pieces)) if kept else None,
        torch.cat([piece.weights for piece in pieces if piece.weights is not None]) if kept else None,
    )


def _cat(masks: Sequence[tuple[Tensor | None, Tensor]], otherwise: bool) -> Tensor | None:
    """Masks (T, B) one after the other, each with a tensor of its shape; None says ``otherwise`` everywhere."""
    if all(mask is None for mask, _ in masks):
        return None
    return torch.cat([torch.full_like(x, otherwise, dtype=torch.bool) if mask is None else mask for mask, x in masks])
