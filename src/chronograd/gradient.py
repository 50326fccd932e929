"""The one door: where truncation, mode and recurrence meet.

``value_and_grad`` computes a gradient, ``unroll`` gives outputs that carry the gates in their graph. Both take one
call's steps of a stream, run again what is still open of earlier calls (under the parameters as they are now), and
hand on a new carry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .carry import Carry, Piece, Segment
from .estimate import Gradient
from .modes import Mode, Reverse
from .modes.gated import gated_gradient, gated_unroll
from .modes.lags import lag_cotangents
from .modes.losses import Losses
from .modes.replay import split, stack_pieces
from .modes.tally import Tally
from .modes.windows import Reach, span_gradient, visit_states
from .recurrence.adapters import Recurrence, adapt
from .recurrence.states import detach, leaves, tree_map
from .stretch import Stretch, explain_not_finite, lay_losses, lay_stretch
from .support import refuse
from .truncation import AdaptiveTruncation, Full, GatePlan, SpanPlan, Truncation
from .truncation.adaptive import LagStatistics

__all__ = ["Gradient", "unroll", "value_and_grad"]


def value_and_grad(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    carry: Carry | None = None,
    *,
    truncation: Truncation = Full(),  # noqa: B008
    mode: Mode = Reverse(),  # noqa: B008
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    weights: Tensor | None = None,
    seed: int | None = None,
    wrt_inputs: bool = False,
) -> tuple[Gradient, Carry]:
    """The loss of one call's steps and its gradient through time.

    Every call gives the gradient of its own losses, reaching back as far as the truncation says, into earlier calls
    too; so the weighted sum over a stream of calls is the gradient of one call over all of it, wherever it is cut::

        L = sum_{t,b} w_tb l_tb / sum_{t,b} w_tb
        delta_t = a_t dl_t/dh_t + xi_{t+1} J_{t+1}^T delta_{t+1},    dL/dw = sum_t (df_t/dw)^T delta_t

    Args:
        model: ``(inputs (T, B, ...), state) -> (outputs (T, B, ...), state)``; ``state=None`` asks for the initial
            one. See ``check_model``.
        loss_fn: ``(outputs, targets) -> (T, B)``, one loss for each step and row. Parameters it uses must belong to
            the model.
        inputs: (T, B, ...), or a nesting of such tensors.
        targets: (T, B, ...), or a nesting.
        carry: what the call before returned; None begins a stream.
        truncation: which terms of the sum over time are kept.
        mode: how they are added up.
        reset: bool (T, B), True where a new sequence starts: that step is taken from ``state=None``, and no gradient
            flows past it.
        lengths: int (B,), the valid steps of each row, 0..T; a row's state freezes at its end.
        weights: (T, B), finite and not negative, default 1; burn-in is weight 0.
        seed: of random truncations, for a new carry only; None draws one from torch's generator.
        wrt_inputs: also give the gradients of inputs and of the initial state the stream was given.

    Returns:
        The gradient, and the carry for the next call. When an optimizer steps between calls, what is still open is
        run again under the new parameters, and its end state replaces the carried one.

    Raises:
        ValueError, TypeError: arguments that do not fit, each in one line; combinations that have no meaning
            (``support``); data that holds NaN.

    Warns:
        UserWarning: once a stream, when ``Full`` reaches back into earlier calls.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model = cg.Recurrent(torch.nn.GRUCell(3, 8), torch.nn.Linear(8, 1))
    >>> loss_fn = lambda outputs, targets: (outputs - targets).square().mean(-1)
    >>> carry = None
    >>> for chunk in torch.randn(4, 35, 2, 3):
    ...     gradient, carry = cg.value_and_grad(model, loss_fn, chunk, chunk[..., :1], carry, truncation=cg.Chunks(35))
    ...     gradient.assign(model)  # then clip, optimizer.step()
    >>> gradient.weight, carry.stream.position
    (70.0, 140)

    References: Werbos 1990 (BPTT); Williams and Peng 1990 (truncation); Tallec and Ollivier 2017 (random truncation).
    """
    stretch = lay_stretch(inputs, carry, reset, lengths, seed)
    recurrence = _adapt(model, stretch, truncation, mode, "value_and_grad")
    segment = stretch.carry.segment
    if any(leaf.grad_fn is not None for leaf in leaves(segment.state)):
        raise ValueError(
            "the initial state carries an autograd graph, which value_and_grad does not follow: give it detached and "
            "take gradient.state (wrt_inputs=True), or let the model make it from its parameters where state is None"
        )
    losses = lay_losses(loss_fn, targets, weights, stretch.piece.valid)
    weight = float(losses.weights[losses.used].sum(dtype=torch.float64))
    if wrt_inputs:
        segment = replace(segment, state=_as_leaves(segment.state), pieces=tuple(map(_with_leaves, segment.pieces)))
        stretch = replace(stretch, carry=replace(stretch.carry, segment=segment), piece=_with_leaves(stretch.piece))
    past = [piece.inputs for piece in segment.pieces]
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    tally = Tally(parameters, [past, stretch.piece.inputs], segment.state)
    run = _Run(recurrence, losses, 1 / weight if weight else 0.0, tally)
    carry = _gated(run, stretch, truncation) if truncation.primitive == "gates" else _spanned(run, stretch, truncation)
    gradient = _result(
        tally, weight, stretch.piece, past, segment if wrt_inputs and segment.start == 0 else None, wrt_inputs
    )
    if not math.isfinite(float(gradient.loss)):
        explain_not_finite(stretch.piece, losses)
    return gradient, _sealed(carry)


def unroll(
    model: nn.Module,
    inputs: Any,
    carry: Carry | None = None,
    *,
    truncation: Truncation = Full(),  # noqa: B008
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Any, Carry]:
    """Outputs whose graph carries the truncation's gates: any loss may call ``.backward()`` on them.

    For losses that are no sum over steps and rows (reinforcement learning, adversarial training, several heads). The
    graph reaches into earlier calls as far as the truncation says, through steps that are run again. Windows that
    overlap are refused: no one graph holds them.

    Args:
        model, inputs, carry, truncation, reset, lengths, seed: as for ``value_and_grad``. Inputs may carry a graph of
            their own.

    Returns:
        Outputs (T, B, ...), those beyond a row's length without meaning; and the carry for the next call, without a
        graph.

    Raises:
        ValueError, TypeError: as ``value_and_grad``.

    >>> import torch, chronograd as cg
    >>> model = cg.GRU(3, 4)
    >>> outputs, carry = cg.unroll(model, torch.randn(70, 2, 3), truncation=cg.RandomTruncation(35), seed=1)
    >>> outputs[-1].sum().backward()
    >>> outputs.shape, carry.state.shape
    (torch.Size([70, 2, 4]), torch.Size([1, 2, 4]))
    """
    stretch = lay_stretch(inputs, carry, reset, lengths, seed)
    recurrence = _adapt(model, stretch, truncation, Reverse(), "unroll")
    segment = stretch.carry.segment
    plan = truncation.plan(stretch.place)
    assert isinstance(plan, GatePlan)
    parts, keep = _parts(stretch, plan)
    outputs, before, final, ran = gated_unroll(recurrence, segment.pieces, segment.state, parts)
    return outputs, _sealed(_handed_on(stretch, plan.since, [*segment.pieces, *ran], before, final, keep))


@dataclass(frozen=True)
class _Run:
    """What a call computes with: the model, its losses scaled by 1 / sum(w), and the sum of gradients so far."""

    recurrence: Recurrence
    losses: Losses
    scale: float
    tally: Tally


def _adapt(model: nn.Module, stretch: Stretch, truncation: Truncation, mode: Mode, door: Any) -> Recurrence:
    for name, value, kind, example in (
        ("truncation", truncation, Truncation, "cg.Chunks(35)"),
        ("mode", mode, Mode, "cg.Reverse()"),
        ("model", model, nn.Module, "torch.nn.GRU(8, 16)"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{door}: {name} must be a {kind.__name__} such as {example}, not {value!r:.80}")
    recurrence = adapt(model, stretch.piece.inputs)
    # Layers can do whatever opaque models can; telling them apart takes a run, so it waits until it matters.
    refuse(truncation, mode, "whole" if recurrence.hides else "opaque", recurrence.hides, door)
    piece, stream = stretch.piece, stretch.carry.stream
    if recurrence.hides and (stream.position or bool(piece.reset.any()) or not bool(piece.valid.all())):
        raise ValueError(
            f"{door}: {recurrence.hides}, so its steps cannot be told apart, and resets, lengths and carries have no "
            "meaning for it; give whole sequences of one length, each in one call without a carry"
        )
    if isinstance(truncation, Full) and stretch.carry.segment.pieces and not stream.warned:
        megabytes = sum(kept.nbytes for kept in stretch.carry.segment.pieces) / 2**20
        warnings.warn(
            f"{door} with Full() reaches back over {stretch.carry.open_steps} steps of earlier calls "
            f"({megabytes:.1f} MB of inputs kept), and more with every call; carry.cut() forgets them "
            "(the tutorials' detach), cg.Chunks(k) bounds them",
            stacklevel=3,
        )
    return recurrence


# Gates


def _gated(run: _Run, stretch: Stretch, truncation: Truncation) -> Carry:
    """Add the gradient of a stretch under gates; the carry after it."""
    plan = truncation.plan(stretch.place)
    assert isinstance(plan, GatePlan)
    parts, keep = _parts(stretch, plan)
    segment = stretch.carry.segment
    before, final, ran = gated_gradient(
        run.recurrence, segment.pieces, segment.state, parts, run.losses, run.scale, run.tally
    )
    return _handed_on(stretch, plan.since, [*segment.pieces, *ran], before, final, keep)


def _parts(stretch: Stretch, plan: GatePlan) -> tuple[list[Piece], int]:
    """The new steps under the plan's gates, split where the next segment begins; and that position."""
    piece = replace(stretch.piece, gates=plan.gates)
    end = stretch.place.position + piece.steps
    keep = end - int(plan.since[plan.open].max()) if bool(plan.open.any()) else end
    at = keep - stretch.place.position
    return (list(split(piece, at)) if 0 < at < piece.steps else [piece]), keep


def _handed_on(
    stretch: Stretch,
    since: Tensor,
    pieces: list[Piece],
    before: list[Any],
    final: Any,
    keep: int,
    truncation: dict[str, Any] | None = None,
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
        begun=carry.stream.begun | stretch.piece.valid.any(0),
        state=final,
        warned=carry.stream.warned or bool(carry.segment.pieces),
    )
    return replace(
        carry,
        stream=stream,
        segment=Segment(start, state, tuple(pieces)),
        truncation=carry.truncation if truncation is None else truncation,
    )


# Spans


def _spanned(run: _Run, stretch: Stretch, truncation: Truncation) -> Carry:
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
        part = Stretch(carry, split(split(piece, end)[0], begin)[1] if (begin, end) != (0, piece.steps) else piece)
        losses = run.losses[begin:end]
        # Measuring looks at past losses again, so their targets and weights stay with the steps.
        weights = torch.where(losses.used, losses.weights, 0)
        part = replace(part, piece=replace(part.piece, targets=losses.targets, weights=weights))
        plan = truncation.plan(part.place, carry.truncation.get("look_back"))
        asks = truncation if begin + decision - position == end else None
        carry, statistics = _windows(replace(run, losses=losses), part, plan, asks)
        if statistics is not None:
            carry = replace(carry, truncation={"look_back": truncation.decide(statistics)})
        begin = end
    return carry


def _windows(
    run: _Run, stretch: Stretch, plan: SpanPlan, measure: AdaptiveTruncation | None = None
) -> tuple[Carry, LagStatistics | None]:
    """Add the gradient of a plan's windows; the carry after it, and what was measured of the last window's lags."""
    segment = stretch.carry.segment
    whole = stack_pieces([*segment.pieces, stretch.piece])
    history = whole.steps - stretch.piece.steps
    # After a cut of the carry, a window reaches no further than to the cut.
    spans = [
        Reach(max(0, span.start - segment.start), span.first - segment.start, span.last - segment.start)
        for span in plan.spans
    ]
    keep = max(0, plan.keep_from - segment.start)
    sampled: list[int] = []
    if measure is not None and whole.steps >= measure.window:
        sampled = [whole.steps - measure.window + step for step in measure.samples]
    starts = [step - measure.depth + 1 for step in sampled] if measure is not None else []
    visits = [visit for visit in [*(span.start for span in spans), *starts, keep] if visit < whole.steps]
    states, final = visit_states(run.recurrence, whole, segment.state, visits)
    if 0 in states:
        states[0] = segment.state  # the given one, so that its gradient can be taken
    span_gradient(run.recurrence, whole, states, spans, run.losses, history, run.scale, run.tally)
    statistics = _measure(run, whole, states, sampled, measure.depth) if measure is not None and sampled else None
    if keep >= whole.steps:
        pieces, before = [whole], [segment.state]
    elif keep:
        pieces, before = list(split(whole, keep)), [segment.state, states[keep]]
    else:
        pieces, before = [whole], [segment.state]
    since = Full().plan(stretch.place).since
    return _handed_on(stretch, since, pieces, before, final, segment.start + keep), statistics


def _measure(run: _Run, whole: Piece, states: dict[int, Any], sampled: list[int], depth: int) -> LagStatistics | None:
    """Norms of the sampled losses' cotangents by lag, as the adaptive rule wants them; None where no loss counts."""
    assert whole.weights is not None
    losses = Losses(run.losses.loss_fn, whole.targets, whole.weights, whole.valid & (whole.weights > 0))
    used = losses.used[torch.tensor(sampled)]
    if not bool(used.any()):
        return None
    found = lag_cotangents(run.recurrence, whole, states, sampled, losses, depth)
    norms = [float(cotangent[used.to(cotangent.device)].norm(dim=-1).mean()) for cotangent in found]
    total, totals = torch.zeros(()), []
    for cotangent in found:
        total = total.to(cotangent) + cotangent[used.to(cotangent.device)].mean(0)
        totals.append(float(total.norm()))
    return LagStatistics(norms, totals)


# Results


def _result(
    tally: Tally, weight: float, piece: Piece, past: list[Any], given: Segment | None, wrt_inputs: bool
) -> Gradient:
    if tally.total is None:  # no loss counts
        like = next(iter(tally.parameters.values()), torch.zeros(()))
        loss, grads = like.new_zeros(()), {name: torch.zeros_like(value) for name, value in tally.parameters.items()}
    else:
        loss, grads = tally.total, tally.grads
    if not wrt_inputs:
        return Gradient(loss, grads, weight)
    gone = [tally.of(inputs) for inputs in past]
    past_inputs = tree_map(lambda *parts: torch.cat(parts), *gone) if gone else None
    state = tally.of(given.state) if given is not None and given.state is not None else None
    return Gradient(loss, grads, weight, tally.of(piece.inputs), past_inputs, state)


def _as_leaves(tree: Any) -> Any:
    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_() if x.is_floating_point() or x.is_complex() else x

    return tree_map(leaf, tree)


def _with_leaves(piece: Piece) -> Piece:
    return replace(piece, inputs=_as_leaves(piece.inputs))


def _sealed(carry: Carry) -> Carry:
    """The carry without graphs."""
    segment = carry.segment
    pieces = tuple(
        replace(piece, inputs=detach(piece.inputs), targets=detach(piece.targets)) for piece in segment.pieces
    )
    return replace(carry, segment=Segment(segment.start, detach(segment.state), pieces))
