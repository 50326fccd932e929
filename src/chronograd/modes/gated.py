"""Reverse mode under gates: run the open segment again, go on through the new steps, walk back once.

Where all rows are cut at the same step, what lies before and after is differentiated by itself: in groups of
stretches whose stored states stay within ``GROUP_BYTES`` for layers that lay stretches side by side, stretch by
stretch for the others. So regular truncation keeps the memory of a chunk, not of the whole call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.kernels.order import ROWS_TOGETHER
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.states import detach, tree_map

from .losses import Losses
from .replay import device_of, edges_of, ran, replay, snapshot, split
from .tally import Tally, saved_bytes

__all__ = ["GROUP_BYTES", "NewSteps", "gated_gradient", "gated_unroll"]

GROUP_BYTES = 128 * 2**20
STEPS = 128


@dataclass(frozen=True)
class NewSteps:
    """The steps of a call and their ``losses``, in one piece or split where the carry will begin: at step
    ``open_from``, beyond their end where nothing stays open.

    Before the steps ``gated`` some gate is not 1, before the ``cuts`` among them every row is cut; both ascending.
    """

    parts: Sequence[Piece]
    open_from: int
    gated: Sequence[int]
    cuts: Sequence[int]
    losses: Losses


def gated_gradient(
    recurrence: Recurrence,
    history: Sequence[Piece],
    state: Any,
    new: NewSteps,
    scale: float,
    tally: Tally,
) -> tuple[list[Any], Any, list[Piece]]:
    """Add the gradient of the new steps' losses to ``tally``.

    Args:
        history: pieces whose steps the losses can still reach, with ``state`` before them.
        new: the steps to take the losses of.

    Returns:
        The states before every piece of history and of the new steps, the final state, and the new pieces, those that
        stay open with their random states.
    """
    before, state = replay(recurrence, history, state)
    done, offset, pending = [], 0, None
    silent = new.losses.silent(new.cuts)
    for part in new.parts:
        random = snapshot() if new.open_from < offset + part.steps else None
        before.append(detach(state))
        starts = {cut - offset for cut in new.cuts if 0 <= cut - offset < part.steps}
        for begin, end, count in _groups(recurrence, starts, part.steps, part.rows, silent - offset):
            if begin in starts:  # no row looks back from here: what came before is differentiated, and its graph freed
                tally.add(pending, scale)
                pending, state = None, detach(state)
            piece = _steps(part, begin, end)
            first, last = offset + begin + (begin in starts), offset + end
            plain = piece.reset is None and bisect_left(new.gated, first) == bisect_left(new.gated, last)
            edges = Edges(None, None, piece.valid).to(device_of(piece)) if plain else edges_of(piece, state)
            with count:
                outputs, state = recurrence.run(piece.inputs, state, edges)
                loss = _losses(new.losses, offset + begin, offset + end).sum(outputs)
                del outputs  # the graph holds what it needs of them
            pending = loss if pending is None else pending if loss is None else pending + loss
        done.append(part if random is None else ran(part, random))
        offset += part.steps
    tally.add(pending, scale)
    return before, detach(state), done


def _groups(
    recurrence: Recurrence, starts: set[int], steps: int, rows: int, silent: int
) -> Iterator[tuple[int, int, Any]]:
    """Begin and end of the groups of steps to run at once, none across ``silent``, and a counter of stored bytes for
    the first.
    """
    bounds = sorted({0, *starts, steps})
    at = [0, bounds.index(silent), len(bounds) - 1] if silent in bounds[1:-1] else [0, len(bounds) - 1]
    for begin, end in zip(at[:-1], at[1:]):
        yield from _grouped(recurrence, bounds[begin : end + 1], rows)


def _grouped(recurrence: Recurrence, bounds: list[int], rows: int) -> Iterator[tuple[int, int, Any]]:
    """The same of the stretches between ``bounds``. More rows side by side than ``ROWS_TOGETHER`` are no faster, and
    fewer steps than ``STEPS`` at a time are slower.
    """
    if len(bounds) == 2 or not recurrence.folds:
        yield from ((begin, end, nullcontext()) for begin, end in zip(bounds[:-1], bounds[1:]))
        return
    count, at = saved_bytes(), 0
    if len(bounds) > 3:
        yield bounds[0], bounds[1], count
        at = 1
    longest = max(end - begin for begin, end in zip(bounds[:-1], bounds[1:]))
    per_step = count.total / max(1, bounds[1] - bounds[0])
    useful = max(-(-ROWS_TOGETHER // rows), -(-STEPS // longest))
    together = max(1, min(useful, int(GROUP_BYTES // max(1.0, per_step * longest))))
    while at < len(bounds) - 1:
        upto = min(len(bounds) - 1, at + together)
        yield bounds[at], bounds[upto], nullcontext()
        at = upto


def _steps(part: Piece, begin: int, end: int) -> Piece:
    if begin == 0 and end == part.steps:
        return part
    return split(split(part, end)[0], begin)[1]


def _losses(losses: Losses, begin: int, end: int) -> Losses:
    return losses if begin == 0 and end == len(losses.weights) else losses[begin:end]


def gated_unroll(
    recurrence: Recurrence, history: Sequence[Piece], state: Any, parts: Sequence[Piece]
) -> tuple[Any, list[Any], Any, list[Piece]]:
    """Outputs (T, B, ...) with the gates in their graph; otherwise as ``gated_gradient``."""
    before, state = replay(recurrence, history, state)
    done, outputs = [], []
    for part in parts:
        random = snapshot()
        before.append(detach(state))
        out, state = recurrence.run(part.inputs, state, edges_of(part, state))
        done.append(ran(part, random))
        outputs.append(out)
    return tree_map(lambda *each: torch.cat(each), *outputs), before, detach(state), done
