"""The particles' noise: a function of the stream's seed and of the place on its grid where the noise begins."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noise"]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mix(bits: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    bits &= _WORD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = ((bits ^ (bits >> shift)) * factor) & _WORD
    return bits ^ (bits >> 31)


def noise(seed: int, block: int, pairs: int, like: Tensor, sigma: float) -> Tensor:
    """eps (N, P) of ``pairs`` N, P real numbers as ``like`` (P,) holds; N(0, sigma^2) each.

    Drawn on the CPU, so that it is the same on every device.

    >>> a, b = noise(7, 3, 2, torch.zeros(4), 0.1), noise(7, 4, 2, torch.zeros(4), 0.1)
    >>> torch.equal(a, noise(7, 3, 2, torch.zeros(4), 0.1)), torch.equal(a, b)
    (True, False)
    """
    # Torch's CPU generator takes 32 bits of a seed: an odd step makes each block of a stream another one of them.
    bits = (_mix(seed * _GOLDEN + 1) + block * 0x9E3779B1) & 0xFFFFFFFF
    generator = torch.Generator().manual_seed(bits)
    drawn = torch.randn(pairs, like.numel(), generator=generator, dtype=like.dtype)
    return drawn.mul_(sigma).to(like.device)
