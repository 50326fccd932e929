"""Pieces one after the other as one sequence, of which any stretch of steps can be laid out and run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from torch import Tensor

from chronograd.carry import Piece
from chronograd.recurrence.states import leaves, tree_map

from .replay import loaded, split, stack_pieces

__all__ = ["Course"]


class Course:
    """The steps of an open segment and of a call, in order; steps are counted from its beginning.

    What is laid out is cut from the graph of the pieces' inputs: ``given`` says which piece, and where in it, a
    gradient of laid out inputs belongs to. No part of what is laid out lies on both sides of a mark.
    """

    def __init__(self, pieces: Sequence[Piece], marks: Iterable[int] = ()) -> None:
        self.pieces = list(pieces)
        self.marks = frozenset(marks)
        self._marks = sorted(self.marks)
        self.starts = [0, *accumulate(piece.steps for piece in self.pieces)]

    @property
    def steps(self) -> int:
        return self.starts[-1]

    def at(self, step: int) -> Piece | None:
        """The piece that begins with ``step``; None where none does."""
        number = bisect_right(self.starts, step) - 1
        return self.pieces[number] if number < len(self.pieces) and self.starts[number] == step else None

    def parts(self, begin: int, end: int) -> Iterator[tuple[int, int, Piece]]:
        """The steps begin..end-1 as parts of single pieces, in memory: (first step, step after the last, part).

        Where a piece's inputs are leaves, a part's are leaves of a graph of its own, so that a gradient is as long as
        the part; else they stay in the graph that they come from.
        """
        for first, last, part in self._cut(begin, end):
            if all(leaf.is_leaf for leaf in leaves(self.given(first)[0].inputs)):
                part = replace(part, inputs=tree_map(_leaf, part.inputs))
            yield first, last, loaded(part)

    def piece(self, begin: int, end: int) -> Piece:
        """The steps begin..end-1 as one piece in memory, in the graph of the inputs that they come from."""
        return stack_pieces([part for _, _, part in self._cut(begin, end)])

    def _cut(self, begin: int, end: int) -> Iterator[tuple[int, int, Piece]]:
        while begin < end:
            number = bisect_right(self.starts, begin) - 1
            start, piece = self.starts[number], self.pieces[number]
            mark = bisect_right(self._marks, begin)
            upto = min([end, self.starts[number + 1], *self._marks[mark : mark + 1]])
            if (begin, upto) != (start, self.starts[number + 1]):
                piece = split(split(piece, upto - start)[0], begin - start)[1]
            yield begin, upto, piece
            begin = upto

    def given(self, begin: int) -> tuple[Piece, int]:
        """The piece that holds the step ``begin``, and the step's number in it."""
        number = bisect_right(self.starts, begin) - 1
        return self.pieces[number], begin - self.starts[number]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.requires_grad else x
