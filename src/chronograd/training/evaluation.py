"""How good a model is on text it was not trained on: nats, bits and perplexity, with a state carried all along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chronograd.data.streams import Chunk
from chronograd.training.losses import cross_entropy

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The mean loss over a stream.

    Attributes:
        loss: mean loss; for cross-entropy in nats a token.
        tokens: how many predictions it is the mean of.

    >>> Evaluation(loss=math.log(8), tokens=100).bits
    3.0
    """

    loss: float
    tokens: int

    @property
    def bits(self) -> float:
        """Bits a token: loss / ln 2. For one token a character, bits per character."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens it amounts to; infinite beyond a loss of 709 nats."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    def to_dict(self) -> dict[str, float | int]:
        """Plain values by name."""
        return {**asdict(self), "bits": self.bits, "perplexity": self.perplexity}


@torch.no_grad()
def evaluate(
    model: nn.Module, stream: Iterable[Chunk], loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> Evaluation:
    """The mean loss of a model over a stream, in evaluation mode; the state goes on from chunk to chunk.

    Args:
        model: ``(inputs (T, B), state) -> (outputs (T, B, ...), state)``.
        stream: chunks on the model's device; where they say reset, all rows must start together, and a row that has
            ended must start anew in the next chunk.
        loss_fn: ``(outputs, targets) -> (T, B)``.

    Raises:
        ValueError: the stream is empty, a reset concerns some rows only, or a row that has ended goes on.

    >>> from chronograd.data.streams import ChunkStream
    >>> from chronograd.training.model import CharModel
    >>> model = CharModel(3, "gru", hidden=8)
    >>> quality = evaluate(model, ChunkStream(torch.arange(100) % 3, batch=4, chunk=10))
    >>> quality.tokens, quality.perplexity < 6
    (99, True)
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    state: Any = None
    ended = False
    try:
        for chunk in stream:
            if chunk.reset is not None and bool(chunk.reset.any()):
                if not bool(chunk.reset[0].all()) or bool(chunk.reset[1:].any()):
                    raise ValueError(
                        "evaluate: rows start anew at different steps; give a stream whose rows start together"
                    )
                state, ended = None, False
            if ended:
                raise ValueError(
                    "evaluate: a row goes on after its end; start all rows anew after a chunk with lengths"
                )
            outputs, state = model(chunk.inputs, state)
            losses = loss_fn(outputs, chunk.targets).double()
            if chunk.lengths is not None:
                ended = True
                steps = torch.arange(losses.shape[0], device=losses.device).unsqueeze(1)
                losses = torch.where(steps < chunk.lengths, losses, 0.0)
            total += losses.sum().item()
            tokens += chunk.tokens
    finally:
        model.train(was_training)
    if tokens == 0:
        raise ValueError("evaluate: the stream is empty")
    return Evaluation(total / tokens, tokens)
