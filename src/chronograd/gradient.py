"""The one door: where truncation, mode and recurrence meet.

``value_and_grad`` computes a gradient, ``unroll`` gives outputs that carry the gates in their graph. Both take one
call's steps of a stream, run again what is still open of earlier calls (under the parameters as they are now), and
hand on a new carry.
"""

from __future__ import annotations

import cmath
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .advance import Run, advance_gated, advance_spanned, gate_parts, handed_on, under
from .advance_forward import advance_forward, check_history
from .carry import Carry, Piece, Segment
from .estimate import Gradient
from .modes import Mode, Reverse
from .modes.gated import gated_unroll
from .modes.replay import in_memory, steps_of, streams
from .modes.step_bytes import Budget
from .modes.tally import Tally
from .recurrence.adapters import Recurrence, adapt
from .recurrence.contract import explain_failure
from .recurrence.states import as_leaves, detach, leaves, tree_map
from .stretch import Stretch, explain_not_finite, lay_losses, lay_stretch
from .support import refuse
from .truncation import Full, GatePlan, Truncation

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
        inputs: (T, B, ...), or a nesting of such tensors; ``Streamed`` stands for one that is read as it is needed,
            under a mode with a budget of memory (``Reverse("256MB")``) or one that walks forward (``RTRL()``).
        targets: (T, B, ...), or a nesting, streamed or not.
        carry: what the call before returned; None begins a stream.
        truncation: which terms of the sum over time are kept.
        mode: how they are added up.
        reset: bool (T, B), True where a new sequence starts: that step is taken from ``state=None``, and no gradient
            flows past it.
        lengths: int (B,), the valid steps of each row, 0..T; a row's state freezes at its end.
        weights: (T, B), finite and not negative, default 1; burn-in is weight 0.
        seed: of random truncations and modes, for a new carry only; None draws one from torch's generator.
        wrt_inputs: also give the gradients of inputs and of the initial state the stream was given.

    Returns:
        The gradient, and the carry for the next call. When an optimizer steps between calls, what is still open is
        run again under the new parameters, and its end state replaces the carried one.

    Raises:
        ValueError, TypeError: arguments that do not fit, each in one line; combinations that have no meaning
            (``support``); data that holds NaN.

    Warns:
        UserWarning: when ``Full`` reaches back into earlier calls; once a stream, and again after a ``carry.cut()``.

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
    limit, walks = (mode.budget(_device_of(model)), mode.walks) if isinstance(mode, Mode) else (None, False)
    if limit is None and not walks:  # everything is stored anyway
        inputs, targets = in_memory(inputs), in_memory(targets)
    elif any(leaf.grad_fn is not None for leaf in leaves([inputs, targets])):
        raise ValueError(
            f"inputs or targets carry an autograd graph, through which mode {mode} would go once for every part: "
            "move what makes them into the model, detach them, or use mode=cg.Reverse()"
        )
    if wrt_inputs and walks:
        raise ValueError(
            f"wrt_inputs with mode {mode}: what later losses owe to an input is not known when it is met; leave "
            "wrt_inputs out, or use mode=cg.Reverse()"
        )
    draws = isinstance(truncation, Truncation) and truncation.random or isinstance(mode, Mode) and mode.random
    stretch = lay_stretch(inputs, carry, reset, lengths, seed, draws)
    sample = _sample(stretch.piece)
    recurrence = _adapt(model, stretch, sample, truncation, mode, "value_and_grad")
    segment = stretch.carry.segment
    if any(leaf.grad_fn is not None for leaf in leaves(segment.state)):
        raise ValueError(
            "the initial state carries an autograd graph, which value_and_grad does not follow: give it detached and "
            "take gradient.state (wrt_inputs=True), or let the model make it from its parameters where state is None"
        )
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    losses = lay_losses(loss_fn, targets, weights, stretch.piece, parameters.values())
    weight = losses.weight
    if wrt_inputs:
        if streams([piece.inputs for piece in (*segment.pieces, stretch.piece)]):
            raise ValueError(
                "wrt_inputs asks for a gradient as long as the inputs, which are streamed because they are long; give "
                "the inputs as a tensor, or leave wrt_inputs out"
            )
        segment = replace(segment, state=as_leaves(segment.state), pieces=tuple(map(_with_leaves, segment.pieces)))
        stretch = replace(stretch, carry=replace(stretch.carry, segment=segment), piece=_with_leaves(stretch.piece))
    past = [piece.inputs for piece in segment.pieces]
    tally = Tally(parameters, [past, stretch.piece.inputs], segment.state)
    run = Run(recurrence, losses, 1 / weight if weight else 0.0, tally, None if limit is None else Budget(limit))
    with torch.enable_grad(), explain_failure(model, recurrence.call, sample, stretch.carry.state):
        if mode.walks:
            carry = advance_forward(run, stretch, truncation, mode)
        else:
            carry = (advance_gated if truncation.primitive == "gates" else advance_spanned)(run, stretch, truncation)
        tally.check()
    gradient = _result(
        tally, weight, stretch.piece, past, segment if wrt_inputs and segment.start == 0 else None, wrt_inputs
    )
    if ways := [*run.ways, *(() if recurrence.engine is None else recurrence.engine.ways)]:
        gradient = replace(gradient, how=tuple(ways))
    data = [stretch.piece.inputs, losses.targets]  # less to read than the gradients, and finite nearly always
    if (streams(data) or not _finite(leaves(data))) and not _finite([gradient.loss, *gradient.grads.values()]):
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
    draws = isinstance(truncation, Truncation) and truncation.random
    stretch = lay_stretch(in_memory(inputs), carry, reset, lengths, seed, draws)
    recurrence = _adapt(model, stretch, _sample(stretch.piece), truncation, Reverse(), "unroll")
    segment = stretch.carry.segment
    plan = truncation.plan(stretch.place)
    assert isinstance(plan, GatePlan)
    history, parts, keep = gate_parts(under(stretch, plan), plan)
    with explain_failure(model, recurrence.call, stretch.piece.inputs, stretch.carry.state):
        outputs, before, final, ran = gated_unroll(recurrence, history, segment.state, parts)
    if not _finite(leaves(final)):
        explain_not_finite(stretch.piece)
    return outputs, _sealed(handed_on(stretch, plan.since, [*history, *ran], before, final, keep))


def _sample(piece: Piece) -> Any:
    """The inputs of a piece, of streams the first steps."""
    return in_memory(steps_of(piece.inputs, slice(0, 3))) if streams(piece.inputs) else piece.inputs


def _device_of(model: Any) -> str:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((parameter.device.type for parameter in parameters), "cpu")


def _adapt(
    model: nn.Module, stretch: Stretch, sample: Any, truncation: Truncation, mode: Mode, door: Any
) -> Recurrence:
    for name, value, kind, example in (
        ("truncation", truncation, Truncation, "cg.Chunks(35)"),
        ("mode", mode, Mode, "cg.Reverse()"),
        ("model", model, nn.Module, "torch.nn.GRU(8, 16)"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{door}: {name} must be a {kind.__name__} such as {example}, not {value!r:.80}")
    check_history(stretch.carry, mode)
    recurrence = adapt(model, sample, mode.engine())
    # Layers can do whatever opaque models can; telling them apart takes a run, so it waits until it matters.
    kind = "whole" if recurrence.hides else "opaque"
    if recurrence.engine is not None:  # which opaque models have no use for
        with explain_failure(model, recurrence.call, stretch.piece.inputs, None):
            kind = recurrence.kind
    refuse(truncation, mode, kind, recurrence.hides, door)
    piece, stream = stretch.piece, stretch.carry.stream
    if recurrence.hides and (stream.position or piece.reset is not None or piece.valid is not None):
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


def _finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; one number is read for each."""
    return all(cmath.isfinite(x.detach().sum().item()) for x in tensors if x.is_floating_point() or x.is_complex())


def _with_leaves(piece: Piece) -> Piece:
    return replace(piece, inputs=as_leaves(piece.inputs))


def _sealed(carry: Carry) -> Carry:
    """The carry without graphs, holding copies of the data that stays open: a loader may use its buffers again."""
    segment = carry.segment

    def kept(tree: Any) -> Any:
        return tree_map(lambda x: x.detach().clone(), tree)

    pieces = tuple(replace(piece, inputs=kept(piece.inputs), targets=kept(piece.targets)) for piece in segment.pieces)
    return replace(carry, segment=Segment(segment.start, detach(segment.state), pieces))
