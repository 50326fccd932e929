"""Reverse mode over spans: windows, and stretches between common cuts, are rows of a batch.

Given the states of one forward pass, windows do not depend on one another, and neither does what lies between two
steps at which every row is cut. So the stretch runs forward once without graphs, stopping by at every span's start,
and then all spans run side by side, as rows, in as many sequential steps as the longest has; in tiles of no more rows
than pay, whose stored states stay within ``TILE_BYTES``.

Cost: one forward pass, and the steps of all spans forward and backward (k2 / k1 times the stretch for windows, once
for cuts). Within a budget of bytes the forward pass keeps the states of no more windows than run together, and a window
that does not fit by itself is recomputed in segments (``recompute``). A model that draws random numbers (dropout) draws
new ones in each window; stretches between cuts are then left to ``gated``, which runs every step once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.kernels.order import ROWS_TOGETHER
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.states import detach, tree_map

from .course import Course
from .losses import Losses
from .recompute import Walk
from .replay import device_of, edges_of, reset_gates
from .step_bytes import Budget
from .tally import Tally, saved_bytes

__all__ = ["TILE_BYTES", "Reach", "between_cuts", "span_gradient", "spans_within", "visit_states"]

TILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Reach:
    """The losses of the steps ``first..last`` reach back to ``start``; all counted from the start of the history."""

    start: int
    first: int
    last: int


def between_cuts(whole: Piece, history: int) -> list[Reach] | None:
    """What lies between the steps at which every row is cut, as spans of the losses after ``history`` steps.

    None where a gate does anything else than to cut all rows, beside the resets.
    """
    cuts = (whole.gates == 0).all(1)
    other = whole.gates != 1 if whole.reset is None else (whole.gates != 1) & ~whole.reset
    if bool((other.any(1) & ~cuts).any()):
        return None
    starts = sorted({0, *cuts.nonzero().flatten().tolist()})
    spans = [Reach(start, max(start, history), end - 1) for start, end in zip(starts, [*starts[1:], whole.steps])]
    return [span for span in spans if span.last >= history]


def visit_states(recurrence: Recurrence, whole: Piece, state: Any, visits: Sequence[int]) -> tuple[dict[int, Any], Any]:
    """Run forward without graphs: the states before the steps ``visits`` (ascending), and the final one."""
    asked = sorted(set(visits))
    with torch.no_grad():
        edges = Edges(None, whole.reset, whole.valid).to(device_of(whole))
        _, final, states = recurrence.run_and_visit(whole.inputs, state, edges, asked)
    return {step: detach(found) for step, found in zip(asked, states)}, detach(final)


def span_gradient(
    recurrence: Recurrence,
    whole: Piece,
    states: dict[int, Any],
    spans: Sequence[Reach],
    losses: Losses,
    history: int,
    scale: float,
    tally: Tally,
) -> None:
    """Add the gradient of all spans to ``tally``.

    Args:
        whole: history and new steps in one piece; ``history`` says how many of its steps came before the new ones.
        states: the state before each span's start.
        losses: of the new steps.
    """
    useful = max(1, ROWS_TOGETHER // whole.rows)
    for group in _alike(spans, states):
        count, at, together = saved_bytes(), 0, max(1, useful // 2)
        while at < len(group):
            tile = group[at : at + together]
            try:
                with count if at == 0 else nullcontext():
                    loss = _run_tile(recurrence, whole, states, tile, losses, history)
            except Exception:
                if len(tile) == 1:
                    raise
                useful = together = 1  # a model made for one batch size: what else is wrong is wrong for one span too
                continue
            tally.add(loss, scale)
            if at == 0:
                together = max(1, min(useful, int(TILE_BYTES // max(1, count.total // len(tile)))))
            at += len(tile)


def spans_within(
    recurrence: Recurrence,
    course: Course,
    state: Any,
    visits: Sequence[int],
    spans: Sequence[Reach],
    losses: Losses,
    history: int,
    scale: float,
    tally: Tally,
    budget: Budget,
) -> tuple[dict[int, Any], Any]:
    """The same within a budget of bytes, with ``state`` before the first step of ``course``: add the gradient of all
    spans (ascending); the states before the steps ``visits``, and the final one.

    Raises:
        ValueError: where so few bytes cannot work, with the smallest number that can.
    """
    forward = Walk(recurrence, course, losses, history, scale, tally, cut_at_resets, replays=False)
    each = budget.measure(forward, state)
    longest = max(span.last - span.start + 1 for span in spans)
    plan = each.plan(longest, budget.limit)
    tally.again = True
    together = 1 if plan.advances else max(1, int((budget.limit - each.fixed) // (longest * each.step + each.state)))
    states: dict[int, Any] = {0: state}
    at = 0

    def go_to(step: int) -> None:
        nonlocal at, state
        if step > at:
            state = forward.advance(at, step, state)
            at = step

    waiting = sorted(set(visits))
    for begin in range(0, len(spans), together):
        tile = spans[begin : begin + together]
        found: dict[int, Any] = {}
        for span in tile:
            for step in [*(step for step in waiting if step <= span.start), span.start]:
                go_to(step)
                found[step] = state if step else states[0]
            states |= {step: found[step] for step in waiting if step <= span.start}
            waiting = [step for step in waiting if step > span.start]
        if plan.advances:
            (span,) = tile
            new = losses[max(0, span.first - history) : span.last + 1 - history]
            walk = Walk(recurrence, course, new, span.first, scale, tally, cut_at_resets, replays=False)
            steps = span.last + 1 - span.start
            walk.stretch(span.start, span.last + 1, found[span.start], each.plan(steps, budget.limit))
            continue
        low, high = tile[0].start, tile[-1].last + 1
        shifted = [Reach(span.start - low, span.first - low, span.last - low) for span in tile]
        span_gradient(
            recurrence,
            course.piece(low, high),
            {step - low: known for step, known in found.items()},
            shifted,
            losses[max(0, low - history) : high - history].in_memory(),
            max(0, history - low),
            scale,
            tally,
        )
    for step in [*waiting, course.steps]:
        go_to(step)
        states[step] = state
    return states, state


def cut_at_resets(piece: Piece, state: Any) -> Edges:
    """The edges of a piece of a window: nothing is cut inside but at resets."""
    gates = reset_gates(piece.reset)
    gates = torch.ones_like(piece.gates) if gates is None else gates
    return edges_of(replace(piece, gates=gates), state)


def _alike(spans: Sequence[Reach], states: dict[int, Any]) -> list[list[Reach]]:
    """Spans that can be rows of one batch: of about one length, and those that begin with the model's own initial
    state apart.
    """
    groups: dict[tuple[bool, int], list[Reach]] = {}
    for span in spans:
        groups.setdefault((states[span.start] is None, (span.last - span.start + 1).bit_length()), []).append(span)
    return list(groups.values())


def _run_tile(
    recurrence: Recurrence, whole: Piece, states: dict[int, Any], tile: Sequence[Reach], losses: Losses, history: int
) -> Tensor | None:
    start, first, last = (torch.tensor([getattr(span, name) for span in tile]) for name in ("start", "first", "last"))
    index = torch.minimum(
        start + torch.arange(int((last - start).max()) + 1).unsqueeze(1), last
    )  # (k, W); past its end a window repeats its last step

    def lay(x: Tensor) -> Tensor:
        return x[index.to(x.device)].flatten(1, 2)

    inputs = tree_map(lay, whole.inputs)
    reset, valid = tree_map(lay, (whole.reset, whole.valid))
    edges = Edges(reset_gates(reset), reset, valid).to(device_of(whole))
    begin = [states[span.start] for span in tile]
    state = None if begin[0] is None else recurrence.dims.join(begin) if len(begin) > 1 else begin[0]
    outputs, _ = recurrence.run(inputs, state, edges)

    windows, rows = len(tile), whole.rows
    offset = torch.arange(int((last - first).max()) + 1).unsqueeze(1)
    inside = offset <= last - first  # (n, W)
    at_output = torch.minimum(first - start + offset, last - start)
    at_target = torch.minimum(first + offset, last) - history
    column = torch.arange(windows)

    def pick_output(x: Tensor) -> Tensor:
        return x.unflatten(1, (windows, rows))[at_output.to(x.device), column.to(x.device)].flatten(1, 2)

    def pick(x: Tensor) -> Tensor:
        return x[at_target.to(x.device)].flatten(1, 2)

    used = inside.repeat_interleave(rows, 1)
    if losses.used is not None:
        used = used & pick(losses.used)
    return Losses(losses.loss_fn, tree_map(pick, losses.targets), pick(losses.weights), used).sum(
        tree_map(pick_output, outputs)
    )
