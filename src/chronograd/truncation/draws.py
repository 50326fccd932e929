"""Random numbers that are a function of (seed, stream position, global row id).

A counter-based generator: seed and row id are mixed into the start of a SplitMix64 sequence (Steele, Lea and Flood,
OOPSLA 2014), and the stream position says which of its numbers is taken. So no draw depends on where a stream is cut
into calls, on chunk sizes or on ranks, and none needs a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["signs", "uniforms"]

_GOLDEN = 0x9E3779B97F4A7C15
_SIGNS = 0xD1342543DE82EF95  # sets the sequences of signs apart from those of uniform draws


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's signed int64 holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors; torch shifts arithmetically, so the sign is masked away."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def uniforms(seed: int, position: int, steps: int, rows: Tensor) -> Tensor:
    """Uniform draws in [0, 1), float64 (steps, B), one for each stream position and row.

    >>> import torch
    >>> whole = uniforms(7, 0, 4, torch.arange(3))
    >>> torch.equal(whole[2:], uniforms(7, 2, 2, torch.arange(3)))
    True
    """
    import torch

    bits = _bits(_key(seed), position, steps, rows)
    return ((bits >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53


def signs(seed: int, position: int, steps: int, rows: Tensor, count: int, salt: int = 0) -> Tensor:
    """Draws of -1 or 1, int8 (steps, B, count), for each stream position, row and unit; other ``salt``, other draws.

    Independent of ``uniforms`` of the same seed.

    >>> import torch
    >>> whole = signs(7, 0, 4, torch.arange(3), 100)
    >>> torch.equal(whole[2:, 1:, :5], signs(7, 2, 2, torch.arange(1, 3), 5))
    True
    """
    import torch

    key = _mix(_key(seed) ^ _signed((salt + 1) * _SIGNS))
    words = torch.arange(1, 1 + -(-count // 64), dtype=torch.int64) * _signed(_GOLDEN)
    bits = _mix(_bits(key, position, steps, rows).unsqueeze(-1) + words)
    found = (bits.unsqueeze(-1) >> torch.arange(64)) & 1  # a word of 64 bits says 64 signs
    return (2 * found.flatten(-2)[..., :count] - 1).to(torch.int8)


def _key(seed: int) -> Tensor:
    """Where the sequences of a seed begin, (1,)."""
    import torch

    return _mix(torch.tensor([_signed(seed * _GOLDEN + 1)]))


def _bits(key: Tensor, position: int, steps: int, rows: Tensor) -> Tensor:
    """64 bits for each stream position and row, (steps, B)."""
    import torch

    time = torch.arange(position, position + steps, dtype=torch.int64)
    per_row = _mix(key + (rows.cpu().to(torch.int64) + 1) * _signed(_GOLDEN))
    return _mix(per_row.unsqueeze(0) + time.unsqueeze(1) * _signed(_GOLDEN))
