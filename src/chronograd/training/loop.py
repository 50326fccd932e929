"""The training loop: gradient, check, clip, update, and the carry handed on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from chronograd.carry import Carry
from chronograd.data.streams import Chunk
from chronograd.gradient import Gradient, unroll, value_and_grad
from chronograd.modes import Mode, Reverse
from chronograd.training.losses import cross_entropy
from chronograd.truncation import Full, Truncation

__all__ = ["Step", "training_steps"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One update.

    Attributes:
        step: the number of updates made, this one included.
        loss: mean loss of the chunk before the update; for cross-entropy in nats a token.
        norm: global norm of the gradient before clipping.
        tokens: predictions in the chunk.
        seconds: what the step took.
        carry: what the next step needs; ``carry.state`` is the hidden state.
    """

    step: int
    loss: float
    norm: float
    tokens: int
    seconds: float
    carry: Carry

    @property
    def bits(self) -> float:
        """Bits a token: loss / ln 2."""
        return self.loss / math.log(2)


def training_steps(
    model: nn.Module,
    stream: Iterable[Chunk],
    *,
    optimizer: torch.optim.Optimizer,
    loss_fn: Loss = cross_entropy,
    truncation: Truncation = Full(),  # noqa: B008
    mode: Mode = Reverse(),  # noqa: B008
    clip: float | None = None,
    carry: Carry | None = None,
    first_step: int = 0,
    seed: int | None = None,
) -> Iterator[Step]:
    """Make one update per chunk for as long as the stream and the caller go on.

    Args:
        model: ``(inputs (T, B), state) -> (outputs (T, B, ...), state)``.
        stream: chunks on the model's device; rows go on from one to the next. Where it has ``rows``, as ``ChunkStream``
            has, draws follow those row numbers.
        optimizer: over the model's parameters.
        loss_fn: ``(outputs, targets) -> (T, B)``.
        truncation: how far back the gradient of a loss reaches.
        mode: how it is computed.
        clip: largest global norm; a longer gradient g becomes g clip / ||g|| (Pascanu et al. 2013); ``None``: any.
        carry: where a former run stopped; ``None`` begins.
        first_step: the number of updates made before.
        seed: of random truncations, for a new carry.

    Yields:
        a ``Step`` after each update.

    Raises:
        ValueError: ``clip`` is not a positive number.
        FloatingPointError: the loss or the gradient is not finite. The message names the step and the place; the
            parameters are those before that step.

    >>> from itertools import islice
    >>> from chronograd import Chunks
    >>> from chronograd.data.streams import ChunkStream
    >>> from chronograd.training.model import CharModel
    >>> _ = torch.manual_seed(0)
    >>> model = CharModel(3, "rnn", hidden=8)
    >>> adam = torch.optim.Adam(model.parameters(), 0.05)
    >>> stream = ChunkStream(torch.arange(300) % 3, batch=4, chunk=10, epochs=None)
    >>> steps = training_steps(model, stream, optimizer=adam, truncation=Chunks(10), clip=1.0)
    >>> losses = [done.loss for done in islice(steps, 30)]
    >>> losses[-1] < 0.1 < losses[0]
    True
    """
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be a positive number or None, not {clip}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, chunk in enumerate(stream, first_step + 1):
        begun = time.perf_counter()
        if carry is None:
            carry = Carry.start(chunk.inputs.shape[1], seed=seed, rows=getattr(stream, "rows", None))
        before = carry
        gradient, carry = value_and_grad(
            model,
            loss_fn,
            chunk.inputs,
            chunk.targets,
            carry,
            truncation=truncation,
            mode=mode,
            reset=chunk.reset,
            lengths=chunk.lengths,
        )
        gradient.assign(model)
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        loss = float(gradient.loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            place = _where(model, loss_fn, chunk, before, gradient)
            raise FloatingPointError(
                f"step {step}: {place}; the parameters are those before this step: try a smaller learning rate or clip"
            )
        if clip is not None:
            clip_grads_with_norm_(parameters, clip, norm)
        optimizer.step()
        yield Step(step, loss, float(norm), chunk.tokens, time.perf_counter() - begun, carry)


def _where(model: nn.Module, loss_fn: Loss, chunk: Chunk, before: Carry, gradient: Gradient) -> str:
    """What is not finite, and where: a parameter, the loss at a time step, a gradient, or only their norm."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name!r} is not finite"
    loss = float(gradient.loss)
    if not math.isfinite(loss):
        return f"the loss is {loss}{_first_bad_loss(model, loss_fn, chunk, before)}"
    for name, values in gradient.grads.items():
        if not bool(torch.isfinite(values).all()):
            return f"the gradient of {name!r} is not finite"
    return "the norm of the gradient is not finite: its square overflows"


@torch.no_grad()
def _first_bad_loss(model: nn.Module, loss_fn: Loss, chunk: Chunk, before: Carry) -> str:
    """Where in the chunk the loss stops being finite, found by running it once more; empty if it cannot be told."""
    outputs, _ = unroll(model, chunk.inputs, before.cut(), reset=chunk.reset)
    bad = ~torch.isfinite(loss_fn(outputs, chunk.targets))
    if chunk.lengths is not None:
        bad &= torch.arange(bad.shape[0], device=bad.device).unsqueeze(1) < chunk.lengths
    if not bool(bad.any()):
        return ""
    t = int(bad.any(1).int().argmax())
    row = int(bad[t].int().argmax())
    return f" (first at time step {t} of the chunk, stream position {before.stream.position + t}, row {row})"
