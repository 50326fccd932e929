"""How a stretch of steps advances a stream: its gradient is added up, and the next carry says what stays open.

Under gates the stretch runs as one, behind the open segment; where the step is known and all rows are cut together,
what lies between the cuts is taken as spans. Under spans it runs forward once and they are rows of a batch; an
adaptive truncation measures and decides on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .carry import Carry, Piece, Segment
from .modes.course import Course
from .modes.gated import NewSteps, gated_gradient
from .modes.lags import lag_cotangents
from .modes.losses import Losses
from .modes.recompute import Passage, Walk
from .modes.replay import merge, ran, restore, snapshot, split, split_at, stack_pieces
from .modes.step_bytes import Budget
from .modes.tally import Tally
from .modes.windows import Reach, between_cuts, span_gradient, spans_within, visit_states
from .recurrence.adapters import Recurrence
from .recurrence.quiet import keep_buffers
from .stretch import Stretch, begun_after
from .truncation import AdaptiveTruncation, Full, GatePlan, SpanPlan, Truncation
from .truncation.adaptive import LagStatistics

__all__ = ["Run", "advance_gated", "advance_spanned", "gate_parts", "handed_on", "under"]


@dataclass(frozen=True)
class Run:
    """What a call computes with: the model, its losses scaled by 1 / sum(w), the sum of gradients so far, and the bytes
    that may be kept on the way; ``ways`` are filled with what was done otherwise than the mode's name says.
    """

    recurrence: Recurrence
    losses: Losses
    scale: float
    tally: Tally
    budget: Budget | None = None
    ways: list[Any] = field(default_factory=list)


def advance_gated(run: Run, stretch: Stretch, truncation: Truncation) -> Carry:
    """Add the gradient of a stretch under gates; the carry after it."""
    plan = truncation.plan(stretch.place)
    assert isinstance(plan, GatePlan)
    if run.budget is not None:
        return _within(run, under(stretch, plan), plan, run.budget)
    if found := _between_cuts(run, stretch, plan):
        return found
    inner = plan.gated[1:] if plan.cuts[:1] == (0,) else plan.gated
    if plan.reach or inner:  # a cut before the first step needs no gate: the state is detached there
        stretch = under(stretch, plan)
    history, parts, keep = gate_parts(stretch, plan)
    # Modes that run a stretch at once have gates for its cuts; at its first step there is no gate but the cut itself.
    alone = (0, run.losses.silent(plan.cuts))
    cuts = plan.cuts if run.recurrence.engine is None else [cut for cut in plan.cuts if cut in alone]
    new = NewSteps(parts, keep - stretch.carry.stream.position, plan.gated, cuts, run.losses)
    before, final, done = gated_gradient(
        run.recurrence, history, stretch.carry.segment.state, new, run.scale, run.tally
    )
    return handed_on(stretch, plan.since, [*history, *done], before, final, keep)


def _between_cuts(run: Run, stretch: Stretch, plan: GatePlan) -> Carry | None:
    """The same as spans, where the step is known and few rows are cut at the same steps; None where that is not so.

    Chunks are windows (k, k). A model that draws random numbers is left to the gates, which run every step once.
    """
    several = any(cut > 0 for cut in plan.cuts)
    if not several or not run.recurrence.gains(stretch.piece.rows) or run.recurrence.draws:
        return None
    stretch = under(stretch, plan)
    segment = stretch.carry.segment
    whole = _whole(stretch)
    spans = between_cuts(whole, whole.steps - stretch.piece.steps)
    if spans is None:
        return None
    keep = _kept_from(stretch, plan) - segment.start
    visits = [visit for visit in [*(span.start for span in spans), keep] if visit < whole.steps]
    random = snapshot()
    with keep_buffers(run.recurrence.model):
        path = visit_states(run.recurrence, whole, segment.state, visits)
    if ran(whole, random).random:  # it draws after all, later than in its first steps
        restore(random)
        return None
    return _spanned(run, stretch, whole, spans, keep, plan.since, *path)


def _within(run: Run, stretch: Stretch, plan: GatePlan, budget: Budget) -> Carry:
    """The same within a budget of bytes."""
    segment = stretch.carry.segment
    history, parts, keep = gate_parts(stretch, plan)
    pieces = [*history, *parts]
    starts = list(accumulate((piece.steps for piece in pieces), initial=0))
    new = starts[len(history)]
    course = Course([*segment.pieces, stretch.piece], starts)
    walk = Walk(run.recurrence, course, run.losses, new, run.scale, run.tally)
    final = walk.within(budget, [new + cut for cut in plan.cuts], segment.state)
    passed = [*(walk.passed[start] for start in starts[:-1]), Passage(final, walk.ended.random)]
    done = [
        ran(piece, a.random, b.random) for piece, a, b in zip(parts, passed[len(history) :], passed[len(history) + 1 :])
    ]
    return handed_on(stretch, plan.since, [*history, *done], [p.state for p in passed[:-1]], final, keep)


def under(stretch: Stretch, plan: GatePlan) -> Stretch:
    """The stretch under the plan's gates."""
    return replace(stretch, piece=replace(stretch.piece, gates=plan.gates))


def gate_parts(stretch: Stretch, plan: GatePlan) -> tuple[list[Piece], list[Piece], int]:
    """The open segment and the new steps, split where the next segment begins under the plan; its position."""
    piece = stretch.piece
    keep = _kept_from(stretch, plan)
    at, segment = keep - stretch.carry.stream.position, stretch.carry.segment
    parts = list(split(piece, at)) if 0 < at < piece.steps else [piece]
    return split_at(segment.pieces, keep - segment.start), parts, keep


def _kept_from(stretch: Stretch, plan: GatePlan) -> int:
    """The first position that later losses can reach under the plan's gates."""
    return stretch.carry.stream.position + stretch.piece.steps - plan.reach


def handed_on(
    stretch: Stretch,
    since: Tensor,
    pieces: list[Piece],
    before: list[Any],
    final: Any,
    keep: int,
) -> Carry:
    """The carry after a stretch: what later losses can reach begins with the piece that holds the position ``keep``.

    ``pieces`` are those of the open segment and the stretch, ``before`` the state before each of them, ``final`` that
    after the last.
    """
    carry, steps = stretch.carry, stretch.piece.steps
    end = carry.stream.position + steps
    start, states = carry.segment.start, list(before)
    while pieces and start + pieces[0].steps <= keep:
        start += pieces[0].steps
        pieces, states = pieces[1:], states[1:]
    # A given initial state stays what it is, so that later calls can give its gradient.
    state = carry.segment.state if start == carry.segment.start else states[0] if pieces else final
    stream = replace(
        carry.stream,
        position=end,
        since=since,
        begun=stretch.begun,
        state=final,
        warned=carry.stream.warned or bool(carry.segment.pieces),
    )
    return replace(
        carry,
        stream=stream,
        segment=Segment(start, state, tuple(merge(pieces))),
    )


def advance_spanned(run: Run, stretch: Stretch, truncation: Truncation) -> Carry:
    """Add the gradient of a stretch under windows; the carry after it.

    An adaptive truncation decides its look-back at fixed positions; since a stream of calls equals one call, what
    lies between two of them is taken as a call of its own.
    """
    carry = stretch.carry
    if not isinstance(truncation, AdaptiveTruncation):
        plan = truncation.plan(stretch.place)
        assert isinstance(plan, SpanPlan)
        return _windows(run, stretch, plan)[0]
    begin, piece = 0, stretch.piece
    while begin < piece.steps:
        position = carry.stream.position
        decision = truncation.next_decision(position)
        end = min(piece.steps, begin + decision - position)
        steps = split(split(piece, end)[0], begin)[1] if (begin, end) != (0, piece.steps) else piece
        part = Stretch(carry, steps, begun_after(carry.stream, steps.valid))
        losses = run.losses[begin:end]
        # Measuring looks at past losses again, so their targets and weights stay with the steps.
        weights = losses.weights if losses.used is None else torch.where(losses.used, losses.weights, 0)
        part = replace(part, piece=replace(part.piece, targets=losses.targets, weights=weights))
        plan = truncation.plan(part.place, carry.truncation.get("look_back"))
        asks = truncation if begin + decision - position == end else None
        carry, statistics = _windows(replace(run, losses=losses), part, plan, asks)
        if statistics is not None:
            carry = replace(carry, truncation={"look_back": truncation.decide(statistics)})
        begin = end
    return carry


def _windows(
    run: Run, stretch: Stretch, plan: SpanPlan, measure: AdaptiveTruncation | None = None
) -> tuple[Carry, LagStatistics | None]:
    """Add the gradient of a plan's windows; the carry after it, and what was measured of the last window's lags."""
    segment = stretch.carry.segment
    pieces = [*segment.pieces, stretch.piece]
    steps = sum(piece.steps for piece in pieces)
    # After a cut of the carry, a window reaches no further than to the cut.
    spans = [
        Reach(max(0, span.start - segment.start), span.first - segment.start, span.last - segment.start)
        for span in plan.spans
    ]
    keep = max(0, plan.keep_from - segment.start)
    sampled: list[int] = []
    if measure is not None and steps >= measure.window:
        sampled = [steps - measure.window + step for step in measure.samples]
    starts = [step - measure.depth + 1 for step in sampled] if measure is not None else []
    since = Full().plan(stretch.place).since
    if run.budget is not None:
        visits = [visit for visit in [*starts, keep] if visit < steps]
        carry, states = _windows_within(run, stretch, spans, visits, keep, since, run.budget)
    else:
        whole = _whole(stretch)
        pieces = [whole]
        visits = [visit for visit in [*(span.start for span in spans), *starts, keep] if visit < steps]
        states, final = visit_states(run.recurrence, whole, segment.state, visits)
        carry = _spanned(run, stretch, whole, spans, keep, since, states, final)
    if measure is None or not sampled:
        return carry, None
    low = min(starts)
    looked_at = Course(pieces).piece(low, steps)
    states = {step - low: state for step, state in states.items()}
    return carry, _measure(run, looked_at, states, [step - low for step in sampled], measure.depth)


def _windows_within(
    run: Run, stretch: Stretch, spans: list[Reach], visits: list[int], keep: int, since: Tensor, budget: Budget
) -> tuple[Carry, dict[int, Any]]:
    """Windows within a budget of bytes: the carry after them, and the states before the steps ``visits``."""
    segment, before = stretch.carry.segment, snapshot()
    course = Course([*segment.pieces, stretch.piece])
    history = course.steps - stretch.piece.steps
    states, final = spans_within(
        run.recurrence, course, segment.state, visits, spans, run.losses, history, run.scale, run.tally, budget
    )
    pieces = split_at([*segment.pieces, ran(stretch.piece, before)], keep)
    starts = accumulate((piece.steps for piece in pieces), initial=0)
    states_before = [states.get(start) for _, start in zip(pieces, starts)]
    return handed_on(stretch, since, pieces, states_before, final, segment.start + keep), states


def _whole(stretch: Stretch) -> Piece:
    """The open segment and the stretch as one piece."""
    return stack_pieces([*stretch.carry.segment.pieces, stretch.piece])


def _spanned(
    run: Run,
    stretch: Stretch,
    whole: Piece,
    spans: list[Reach],
    keep: int,
    since: Tensor,
    states: dict[int, Any],
    final: Any,
) -> Carry:
    """Add the gradient of spans, given the ``states`` at their starts; the carry keeps the steps from ``keep`` on."""
    segment = stretch.carry.segment
    given = {**states, 0: segment.state}  # the given one, so that its gradient can be taken
    history, random = whole.steps - stretch.piece.steps, snapshot()
    span_gradient(run.recurrence, whole, given, spans, run.losses, history, run.scale, run.tally)
    whole = ran(whole, random) if not whole.random else whole
    pieces, before = [whole], [segment.state]
    if 0 < keep < whole.steps:
        pieces, before = list(split(whole, keep)), [segment.state, states[keep]]
    return handed_on(stretch, since, pieces, before, final, segment.start + keep)


def _measure(run: Run, whole: Piece, states: dict[int, Any], sampled: list[int], depth: int) -> LagStatistics | None:
    """Norms of the sampled losses' cotangents by lag, as the adaptive rule wants them; None where no loss counts."""
    if whole.weights is None:  # the window began under another truncation, which kept no targets
        return None
    counted = whole.weights > 0 if whole.valid is None else whole.valid & (whole.weights > 0)
    losses = Losses(run.losses.loss_fn, whole.targets, whole.weights, counted)
    used = counted[torch.tensor(sampled)]
    if not bool(used.any()):
        return None
    found = lag_cotangents(run.recurrence, whole, states, sampled, losses, depth)
    norms = [float(cotangent[used.to(cotangent.device)].norm(dim=-1).mean()) for cotangent in found]
    total, totals = torch.zeros(()), []
    for cotangent in found:
        total = total.to(cotangent) + cotangent[used.to(cotangent.device)].mean(0)
        totals.append(float(total.norm()))
    return LagStatistics(norms, totals)
