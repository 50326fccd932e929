"""The scan: all a_t = b_t + c_t a_{t-1} at once (E5), in as many sequential steps as the logarithm of T.

Affine maps compose into affine maps, (c', b') after (c, b) is (c' c, c' b + b'), and composition is associative. So
blocks of ``BLOCK`` steps are composed side by side, the blocks' maps are scanned the same way, level by level, and then
all blocks run once more side by side, each from the state it begins with::

    level 0    b_1 .. b_16 | b_17 .. b_32 | ...      composed: T / 16 maps, 16 steps deep
    level 1    the same over these maps               T / 256 maps
    ...        down again: every block from its own start, the very sums that a loop would make inside a block

Work: two products with a state for each step, and the products of coefficients, once for each step (n^3 for matrices,
none for one constant matrix, whose powers serve all blocks). Depth: 2 BLOCK log_BLOCK(T).

Blelloch, Prefix sums and their applications, 1990; Martin and Cundy, arXiv:1709.04057, for linear recurrences.

Known gaps: no graph is recorded; the ways back of this folder are scans themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["BLOCK", "Coefficients", "Constant", "Dense", "Diagonal", "scan"]

# Shorter blocks are less deep, longer ones have less to do on the levels above.
BLOCK = 16


class Coefficients(Protocol):
    """The c_t of T steps and B rows: how they act on states, and how they compose."""

    def step(self, at: slice, state: Tensor, term: Tensor) -> Tensor:
        """b + c a for the steps ``at`` side by side, (S, B, n) each."""
        ...

    def fold(self, ats: Sequence[slice]) -> Coefficients:
        """The products over steps in the order of ``ats``, the first applied first: one coefficient for each entry
        of a slice.
        """
        ...


@dataclass(frozen=True)
class Diagonal:
    """c_t acts element by element: ``values`` (T, B, n), or (1, 1, n) for all steps alike; 0 where ``cut`` (T, B)."""

    values: Tensor
    cut: Tensor | None = None

    def step(self, at: slice, state: Tensor, term: Tensor) -> Tensor:
        if self.cut is None:
            return torch.addcmul(term, self._at(at), state)
        return term + _cut(self._at(at) * state, self.cut[at])

    def fold(self, ats: Sequence[slice]) -> Diagonal:
        total = self._at(ats[0])
        for at in ats[1:]:
            total = self._at(at) * total
        return Diagonal(total, _any_cut(self.cut, ats))

    def _at(self, at: slice) -> Tensor:
        return self.values if self.values.shape[0] == 1 else self.values[at]


@dataclass(frozen=True)
class Dense:
    """c_t is a matrix of its own for each step and row: ``values`` (T, B, n, n); 0 where ``cut`` (T, B)."""

    values: Tensor
    cut: Tensor | None = None

    def step(self, at: slice, state: Tensor, term: Tensor) -> Tensor:
        through = torch.matmul(self.values[at], state.unsqueeze(-1)).squeeze(-1)
        return term + (through if self.cut is None else _cut(through, self.cut[at]))

    def fold(self, ats: Sequence[slice]) -> Dense:
        total = self.values[ats[0]]
        for at in ats[1:]:
            total = torch.matmul(self.values[at], total)
        return Dense(total, _any_cut(self.cut, ats))


@dataclass(frozen=True)
class Constant:
    """c_t = ``scale`` (T, B) times one ``matrix`` (n, n), or times 1 where ``idle`` (T, B); None is 1 and False.

    Its blocks need no product of matrices for each step: where no row is idle the powers of the matrix are one for
    all of them, else one for each count of steps that are not.
    """

    matrix: Tensor
    scale: Tensor | None = None
    idle: Tensor | None = None

    def step(self, at: slice, state: Tensor, term: Tensor) -> Tensor:
        through = torch.matmul(state, self.matrix.mT)
        if self.idle is not None:
            through = torch.where(self.idle[at].unsqueeze(-1), state, through)
        return term + (through if self.scale is None else _scaled(through, self.scale[at]))

    def fold(self, ats: Sequence[slice]) -> Constant | Dense:
        scale = None
        if self.scale is not None:
            scale = self.scale[ats[0]]
            for at in ats[1:]:
                scale = scale * self.scale[at]
        if self.idle is None:
            return Constant(torch.linalg.matrix_power(self.matrix, len(ats)), scale)
        powers = [torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device)]
        for _ in ats:
            powers.append(self.matrix @ powers[-1])
        taken = sum(((~self.idle[at]).long() for at in ats[1:]), (~self.idle[ats[0]]).long())
        values = torch.stack(powers)[taken]
        if scale is None:
            return Dense(values)
        return Dense(_scaled(values.flatten(2), scale).view_as(values), scale == 0)


def scan(
    coefficients: Coefficients,
    terms: Tensor,
    start: Tensor | None = None,
    *,
    reverse: bool = False,
    block: int = BLOCK,
) -> Tensor:
    """All a_t = b_t + c_t a_{t-1}; with ``reverse`` a_t = b_t + c_t a_{t+1}.

    Args:
        coefficients: c, of T steps and B rows.
        terms: b, (T, B, n), real or complex, T may be 0.
        start: what comes before the first step (after the last with ``reverse``), (B, n); None is 0.

    Returns:
        a, (T, B, n).

    >>> scan(Diagonal(torch.full((1, 1, 1), 0.5)), torch.ones(3, 1, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    >>> scan(Constant(torch.full((1, 1), 0.5)), torch.ones(3, 1, 1), reverse=True).flatten()
    tensor([1.7500, 1.5000, 1.0000])
    """
    out = torch.empty(terms.shape, dtype=terms.dtype, device=terms.device)
    with torch.no_grad():
        _scan(coefficients, terms, None if start is None else start.unsqueeze(0), out, reverse, block)
    return out


def _scan(c: Coefficients, terms: Tensor, start: Tensor | None, out: Tensor, reverse: bool, block: int) -> None:
    """Fill ``out``; ``start`` is (1, B, n) or None."""
    steps, blocks = len(terms), len(terms) // block
    if blocks < 3:  # a level more would be as deep
        _walk(c, terms, start, out, range(steps - 1, -1, -1) if reverse else range(steps))
        return
    # What is no whole block lies at the end, which the reversed walk meets first.
    whole = blocks * block
    if reverse and whole < steps:
        start = _walk(c, terms, start, out, range(steps - 1, whole - 1, -1))
    order = range(block - 1, -1, -1) if reverse else range(block)
    # The map of the block that is walked last is of no use.
    first, end = (block, whole) if reverse else (0, whole - block)
    ats = [slice(first + i, end, block) for i in order]
    total = terms[ats[0]]
    for at in ats[1:]:
        total = c.step(at, total, terms[at])
    ends = torch.empty_like(total)
    _scan(c.fold(ats), total, start, ends, reverse, block)
    start = torch.zeros_like(ends[:1]) if start is None else start
    state = torch.cat((ends, start) if reverse else (start, ends))
    for i in order:
        at = slice(i, whole, block)
        state = c.step(at, state, terms[at])
        out[at] = state
    if not reverse and whole < steps:
        _walk(c, terms, out[whole - 1 : whole], out, range(whole, steps))


def _walk(c: Coefficients, terms: Tensor, state: Tensor | None, out: Tensor, order: Iterable[int]) -> Tensor | None:
    """One step after the other; the state after the last."""
    for t in order:
        at = slice(t, t + 1)
        state = terms[at] if state is None else c.step(at, state, terms[at])
        out[at] = state
    return state


def _cut(values: Tensor, cut: Tensor) -> Tensor:
    """0 where ``cut``, whatever was there: 0 times infinity would not be."""
    return values.masked_fill(cut.reshape(*cut.shape, *[1] * (values.dim() - 2)), 0)


def _any_cut(cut: Tensor | None, ats: Sequence[slice]) -> Tensor | None:
    if cut is None:
        return None
    return torch.stack([cut[at] for at in ats]).any(0)


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    return (values * scale.unsqueeze(-1)).masked_fill((scale == 0).unsqueeze(-1), 0)
