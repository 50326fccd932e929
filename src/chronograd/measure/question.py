"""A model, a loss and a stretch of data, and what can be asked of the gradients there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chronograd.carry import Carry
from chronograd.gradient import Gradient, value_and_grad
from chronograd.modes import Mode
from chronograd.recurrence.states import leaves, tree_map
from chronograd.truncation import AdaptiveTruncation, Full, Place, Truncation
from chronograd.truncation.reach import steps_reached

__all__ = ["Question", "flatten", "without_dropout"]

GROUPS = 8


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, so that gradients can be told apart by the truncation alone; flags are given back.

    Torch's recurrent layers stay in training mode with a dropout of 0, since cuDNN has no way back in evaluation mode.

    >>> lstm = nn.LSTM(2, 3, 2, dropout=0.5)
    >>> with without_dropout(nn.Sequential(lstm, nn.Dropout())) as _:
    ...     lstm.training, lstm.dropout
    (True, 0.0)
    >>> lstm.dropout
    0.5
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [(module, module.dropout) for module, _ in modes if isinstance(module, nn.RNNBase)]
    try:
        for module, _ in modes:
            module.training = isinstance(module, nn.RNNBase)
        for layer, _ in layers:
            layer.dropout = 0.0
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, dropout in layers:
            layer.dropout = dropout


@dataclass(frozen=True)
class Question:
    """The arguments of ``value_and_grad`` on one stretch; what random numbers the model still draws are the same in
    every run.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any
    reset: Tensor | None
    lengths: Tensor | None
    weights: Tensor | None
    seed: int

    @property
    def steps(self) -> int:
        return leaves(self.inputs)[0].shape[0]

    @property
    def rows(self) -> int:
        return leaves(self.inputs)[0].shape[1]

    def part(self, steps: slice = slice(None), rows: Tensor | slice = slice(None)) -> Question:
        """The same about some of the steps or rows. Lengths go with whole stretches only."""

        def take(tree: Any) -> Any:
            return tree_map(lambda x: x[steps, rows.to(x.device) if isinstance(rows, Tensor) else rows], tree)

        lengths = None
        if self.lengths is not None:
            given = torch.as_tensor(self.lengths).cpu()[rows]
            begin, end, _ = steps.indices(self.steps)
            lengths = (given - begin).clamp(0, end - begin)
        return Question(
            self.model,
            self.loss_fn,
            take(self.inputs),
            take(self.targets),
            take(self.reset),
            lengths,
            take(self.weights),
            self.seed,
        )

    def gradient(
        self, truncation: Truncation, mode: Mode, draw: int = 0, carry: Carry | None = None
    ) -> tuple[Gradient, Carry]:
        """The gradient under a truncation; draw n of a random one has seed + n."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return value_and_grad(
                self.model,
                self.loss_fn,
                self.inputs,
                self.targets,
                carry,
                truncation=truncation,
                mode=mode,
                reset=self.reset,
                lengths=self.lengths,
                weights=self.weights,
                seed=self.seed + draw if carry is None else None,
            )

    def noise(self, mode: Mode) -> float | None:
        """The relative variance that the choice of rows gives the exact gradient; None for a single row.

        The variance of a weighted mean of independent groups of rows, from the spread between them.
        """
        groups = torch.arange(self.rows).chunk(min(GROUPS, self.rows))
        parts = [self.part(rows=group).gradient(Full(), mode)[0] for group in groups]
        parts = [part for part in parts if part.weight > 0]
        if len(parts) < 2:
            return None
        mean = parts[0]
        for other in parts[1:]:
            mean = mean + other
        g = flatten(mean, mean)
        share = torch.tensor([part.weight for part in parts], dtype=torch.float64, device=g.device) / mean.weight
        spread = torch.stack([flatten(part, mean) - g for part in parts]).square().sum(1)
        variance = (share.square() * spread).sum() * len(parts) / (len(parts) - 1)
        return float(variance / g.square().sum()) if bool(g.any()) else None

    def look_back(self, truncation: Truncation, mode: Mode) -> float:
        """Mean over the losses that count of the steps they reach back, their own included."""
        counts = torch.ones(self.steps, self.rows, dtype=torch.bool)
        if self.lengths is not None:
            counts &= torch.arange(self.steps).unsqueeze(1) < torch.as_tensor(self.lengths).cpu()
        if self.weights is not None:
            counts &= self.weights.cpu() > 0
        reached, carry, begin, since = [], None, 0, torch.zeros(self.rows, dtype=torch.int64)
        while begin < self.steps:
            end = self.steps
            adaptive = isinstance(truncation, AdaptiveTruncation)
            if adaptive:
                end = min(end, truncation.next_decision(begin))
            reset = None if self.reset is None else self.reset[begin:end].cpu()
            place = Place(begin, end - begin, torch.arange(self.rows), self.seed, since, reset)
            if adaptive:  # what it decides depends on the data, so the stretch is run up to each decision
                decided = None if carry is None else carry.truncation.get("look_back")
                plan = truncation.plan(place, decided)
                if end < self.steps:
                    carry = self.part(slice(begin, end)).gradient(truncation, mode, carry=carry)[1]
            else:
                plan = truncation.plan(place)
            reached.append(steps_reached(plan, place))
            begin, since = end, Full().plan(place).since
        steps = torch.cat(reached)[counts]
        return float(steps.double().mean()) if steps.numel() else 0.0


def flatten(gradient: Gradient, like: Gradient) -> Tensor:
    """One float64 vector over the parameters of ``like``; those that a truncated loss does not reach are zero."""
    return torch.cat(
        [
            (gradient.grads[name] if name in gradient.grads else torch.zeros_like(value)).flatten().to(torch.float64)
            for name, value in sorted(like.grads.items())
        ]
    )
