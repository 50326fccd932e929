"""The influence of a diagonal recurrence's weights after T steps, where nothing happens on its edges: sums of what each
weight met, by powers of its unit's decay::

    e_T = sum over t of lambda^(T - t) met_t

For all rows this is one matrix product with the table of powers. A unit forgets: powers below rounding are left out, so
units are taken in groups that look back over 64, 256, 1024, ... steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chronograd.kernels.own import LEAST, decay_sum

__all__ = ["decayed", "power", "powers", "remembered"]

FEW, MORE = 64, 4  # steps of the first group of units, and how many times as many each next one has


def powers(decay: Tensor, count: int) -> Tensor:
    """(count, H): the powers 0, 1, ... of numbers (H,), by doubling, so that their errors grow with log(count) only.

    >>> powers(torch.tensor([-2.0]), 4).flatten()
    tensor([ 1., -2.,  4., -8.])
    """
    table = torch.ones_like(decay).unsqueeze(0)
    while len(table) < count:
        table = torch.cat([table, table[: count - len(table)] * (table[-1] * decay)])
    return table


def power(decay: Tensor, exponent: int) -> Tensor:
    """The same power of all numbers, by squaring: for complex ones a logarithm would lose the angle.

    >>> power(torch.tensor([-2.0, 1.0]), 3)
    tensor([-8.,  1.])
    """
    found = torch.ones_like(decay)
    while exponent:
        if exponent & 1:
            found = found * decay
        exponent >>= 1
        decay = decay * decay if exponent else decay
    return found


def remembered(decay: Tensor, steps: int) -> Tensor:
    """(H,): how many steps back each unit remembers at most, of ``steps``: beyond them its powers are below rounding.

    >>> remembered(torch.tensor([0.0, 0.5, 1.0]), 100)
    tensor([  1,  34, 100])
    """
    least = math.log(LEAST * torch.finfo(decay.dtype).eps)
    back = (least / decay.abs().log().clamp(max=-1e-12)).ceil() + 1
    return back.clamp(1, steps).to(torch.int64)


def decayed(decay: Tensor, x: Tensor, initial: Tensor, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over all steps, with what the weights meet.

    Args:
        decay: (H,), each unit's own weight.
        x: (T, B, d), what the inputs' weights meet.
        initial: (B, H), and ``path`` (T, B, H), the states before the first and after every step: a decay meets the one
            before.

    Returns:
        Of the inputs' weights (B, H, d), of the decays (B, H), and of biases, which meet 1, (H,).

    >>> decayed(torch.tensor([0.5]), torch.ones(2, 1, 1), torch.zeros(1, 1), torch.tensor([1.0, 1.5]).view(2, 1, 1))
    (tensor([[[1.5000]]]), tensor([[1.]]), tensor([1.5000]))
    """
    steps, rows, features = x.shape
    back = remembered(decay, steps)
    of_x, of_one = x.new_empty(rows, len(decay), features), torch.empty_like(decay)
    low, high = 0, FEW
    while low < steps:
        here = ((back > low) & (back <= high)).nonzero().flatten()
        low, high = high, MORE * high
        if not len(here):
            continue
        count = min(low, steps)
        table = powers(decay[here], count).flip(0)
        made = table.mT @ x[steps - count :].flatten(1)
        of_x[:, here] = made.unflatten(1, (rows, features)).transpose(0, 1)
        of_one[here] = table.sum(0)
    first = steps - int(back.max())
    met = (path[:-1], initial) if first == 0 else (path[first - 1 : -1],)
    return of_x, decay_sum(decay, *met), of_one
