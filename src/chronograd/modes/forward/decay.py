"""The influence of a diagonal recurrence's weights after T steps, where nothing happens on its edges: sums of what each
weight met, by powers of its unit's decay::

    e_T = sum over t of lambda^(T - t) met_t

For all rows this is one matrix product with the table of powers. What lambda meets is the state before, a sum of powers
itself, so the states are not needed: with the drive u_t = W x_t + b,

    dh_T/dlambda = sum over t of (T - t) lambda^(T - t - 1) u_t + T lambda^(T - 1) h_0

A unit forgets: powers below rounding are left out, so units are taken in groups that look back over 64, 128, 256, ...
steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from chronograd.kernels.own import LEAST

__all__ = ["Decayed", "decayed", "power", "powers", "remembered"]

FEW, MORE = 64, 2  # steps of the first group of units, and how many times as many each next one has


class Decayed(NamedTuple):
    """Influence on the last state: of the inputs' weights (H, B, d), of the decays (H, B), of any bias (H, B)."""

    drive: Tensor
    decay: Tensor
    one: Tensor


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


def decayed(
    decay: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor, known: Decayed | None = None
) -> Decayed:
    """The influence after T steps of h = decay h + weight x + bias.

    Args:
        decay: (H,), each unit's own weight.
        x: (T, B, d).
        weight: (H, d), and ``bias`` (H,) or None.
        initial: (B, H), the state before the first step.
        known: the influence before the first step.

    >>> half, one = torch.tensor([0.5]), torch.ones(1, 1)
    >>> decayed(half, torch.ones(2, 1, 1), one, None, torch.zeros(1, 1))  # h is 1, then 1.5
    Decayed(drive=tensor([[[1.5000]]]), decay=tensor([[1.]]), one=tensor([[1.5000]]))
    """
    steps, rows, features = x.shape
    back = remembered(decay, steps)
    of_x = x.new_empty(len(decay), rows, features)
    of_decay, of_one = (x.new_empty(len(decay), rows) for _ in range(2))
    low, high = 0, FEW
    while low < steps:
        here = ((back > low) & (back <= high)).nonzero().flatten()
        low, high = high, MORE * high
        if not len(here):
            continue
        count = min(low, steps)
        table = powers(decay[here], count)
        slope = torch.zeros_like(table)
        slope[1:] = table[:-1] * torch.arange(1, count, dtype=x.real.dtype, device=x.device).unsqueeze(1)
        both = torch.cat([table, slope], 1).flip(0).mT @ x[steps - count :].flatten(1)
        made, met = both.view(2, len(here), rows, features)
        by_decay = (met * weight[here].unsqueeze(1)).sum(-1)  # what the states are made of, rather than the states
        if bias is not None:
            by_decay += (slope.sum(0) * bias[here]).unsqueeze(-1)
        one = table.sum(0).unsqueeze(-1).expand(-1, rows)
        if count == steps:  # what was before is not forgotten
            last = power(decay[here], steps - 1).unsqueeze(-1)
            by_decay += initial[:, here].mT * (steps * last)
            if known is not None:
                last = last * decay[here].unsqueeze(-1)
                made += known.drive[here] * last.unsqueeze(-1)
                by_decay += known.decay[here] * last
                one = one + known.one[here] * last
        of_x[here], of_decay[here], of_one[here] = made, by_decay, one
    return Decayed(of_x, of_decay, of_one)
