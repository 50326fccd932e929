"""Synthetic tasks that need a long memory, each with the loss of a predictor that has none.

Inputs are float32 `(T, B, d)`, targets `(T, B)` (float32 or int64), weights float32 `(T, B)`: 1 where the
loss counts. All are ready for `value_and_grad(model, loss_fn, task.inputs, task.targets,
weights=task.weights)`, whose loss is the weighted mean.

S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997); R. Pascanu, T. Mikolov, Y.
Bengio, On the difficulty of training recurrent neural networks, ICML 2013; M. Arjovsky, A. Shah, Y. Bengio,
Unitary evolution recurrent neural networks, ICML 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["Task", "adding_problem", "copy_memory", "temporal_order"]


@dataclass(frozen=True)
class Task:
    """A batch of a synthetic task.

    Attributes:
        name: which task.
        inputs: float32 `(T, B, d)`.
        targets: `(T, B)`; float32 values to hit, or int64 classes.
        weights: float32 `(T, B)`, 1 where the loss counts and 0 elsewhere.
        classes: how many classes the targets have; 0 where the target is a value.
        baseline: the mean loss of the best predictor without memory: squared error for values, cross-entropy
            in nats for classes.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    weights: Tensor
    classes: int
    baseline: float


def adding_problem(
    length: int, batch: int, seed: int | torch.Generator = 0, *, variant: Literal["sum", "hochreiter"] = "sum"
) -> Task:
    """Add the two marked numbers of a long sequence; the answer is asked for at the last step.

    Args:
        length: steps T, at least 2. One marker lies in each half.
        batch: rows B.
        seed: a number, or a generator that goes on being drawn from.
        variant: `"sum"`: values uniform on [0, 1], target their sum; answering 1 always has squared error
            2/12 = 1/6. `"hochreiter"`: values uniform on [-1, 1], target 1/2 + (x1 + x2)/4; answering 1/2
            always has 1/24.

    Inputs are `(value, marker)`, so d = 2.

    >>> task = adding_problem(100, 32, seed=0)
    >>> task.inputs.shape, task.targets.shape, round(task.baseline, 4)
    (torch.Size([100, 32, 2]), torch.Size([100, 32]), 0.1667)
    """
    _check(length, batch, 2)
    if variant not in ("sum", "hochreiter"):
        raise ValueError(f"variant must be 'sum' or 'hochreiter', not {variant!r}")
    generator = _generator(seed)
    values = torch.rand(length, batch, generator=generator)
    if variant == "hochreiter":
        values = 2 * values - 1
    half = length // 2
    first = torch.randint(0, half, (batch,), generator=generator)
    second = torch.randint(half, length, (batch,), generator=generator)
    markers = torch.zeros(length, batch)
    row = torch.arange(batch)
    markers[first, row] = 1
    markers[second, row] = 1
    total = values[first, row] + values[second, row]
    targets = torch.zeros(length, batch)
    targets[-1] = total if variant == "sum" else 0.5 + total / 4
    baseline = 1 / 6 if variant == "sum" else 1 / 24
    return Task(
        f"adding-{variant}",
        torch.stack([values, markers], -1),
        targets,
        _last_step(length, batch),
        0,
        baseline,
    )


def copy_memory(length: int, batch: int, seed: int | torch.Generator = 0) -> Task:
    """Say ten symbols again after `length` blank steps.

    The sequence has T = length + 20 steps: 10 symbols drawn from 8, length - 1 blanks, a go sign, 10 blanks.
    The target is blank until the last ten steps, which ask for the ten symbols. Inputs are one-hot of 10 (8
    symbols, blank, go), targets of 9 classes; every step counts. Without memory the best is blank, then a
    guess among 8: 10 ln 8 / T nats.

    Args:
        length: blank steps between the symbols and the answer, at least 1.
        batch: rows B.
        seed: a number, or a generator that goes on being drawn from.

    >>> task = copy_memory(100, 4)
    >>> task.inputs.shape, task.classes, round(task.baseline, 4)
    (torch.Size([120, 4, 10]), 9, 0.1733)
    """
    _check(length, batch, 1)
    blank, go = 8, 9
    steps = length + 20
    symbols = torch.randint(0, 8, (10, batch), generator=_generator(seed))
    tokens = torch.full((steps, batch), blank)
    tokens[:10] = symbols
    tokens[length + 9] = go
    targets = torch.full((steps, batch), blank)
    targets[-10:] = symbols
    return Task(
        "copy-memory",
        one_hot(tokens, 10).float(),
        targets,
        torch.ones(steps, batch),
        9,
        10 * math.log(8) / steps,
    )


def temporal_order(length: int, batch: int, seed: int | torch.Generator = 0) -> Task:
    """Tell in which order two marks appeared among noise: AA, AB, BA or BB, asked for at the last step.

    The marks, A or B, lie in [0.1 T, 0.2 T) and [0.5 T, 0.6 T); every other step is one of four symbols that
    mean nothing. Inputs are one-hot of 6 (A, B, then the four). Guessing has a cross-entropy of ln 4.

    Args:
        length: steps T, at least 10.
        batch: rows B.
        seed: a number, or a generator that goes on being drawn from.

    >>> task = temporal_order(50, 4)
    >>> task.inputs.shape, task.classes, round(task.baseline, 3)
    (torch.Size([50, 4, 6]), 4, 1.386)
    """
    _check(length, batch, 10)
    generator = _generator(seed)
    tokens = torch.randint(2, 6, (length, batch), generator=generator)
    marks = torch.randint(0, 2, (2, batch), generator=generator)
    row = torch.arange(batch)
    for mark, (low, high) in zip(marks, ((1, 2), (5, 6)), strict=True):
        # ceil(low T / 10) <= place < ceil(high T / 10): never empty from T = 10 on
        place = torch.randint(-(-low * length // 10), -(-high * length // 10), (batch,), generator=generator)
        tokens[place, row] = mark
    targets = torch.zeros(length, batch, dtype=torch.int64)
    targets[-1] = 2 * marks[0] + marks[1]
    return Task("temporal-order", one_hot(tokens, 6).float(), targets, _last_step(length, batch), 4, math.log(4))


def _last_step(length: int, batch: int) -> Tensor:
    weights = torch.zeros(length, batch)
    weights[-1] = 1
    return weights


def _generator(seed: int | torch.Generator) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def _check(length: int, batch: int, least: int) -> None:
    if length < least:
        raise ValueError(f"length must be at least {least}, not {length}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
