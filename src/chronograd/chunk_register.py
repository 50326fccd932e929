"""What is known of a stream's chunks: all are alike, and each is the same whenever it is read.

Chunks are compared as they come, with the first one and with what was written down of their own first reading, 16
bytes each: what can be seen without keeping the data or reading more of it. Nothing here reads a source.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["ChunkRegister", "check_tree"]

Tree = Any

_MARKED = 256  # elements of a tensor that its mark is made of


class ChunkRegister:
    """Chunks in the order of the stream: their first steps, and what they were when they were first read.

    Attributes:
        starts: the first step of each chunk that is known, and of the one after.
        first: the first step of the first chunk, (1, B, ...); None before that is known.
    """

    def __init__(self) -> None:
        self.starts = array("q", [0])
        self.first: Tree = None
        self._marks = array("q")
        self._alike: tuple[Any, list[Any]] | None = None  # what all chunks must have in common

    def __len__(self) -> int:
        """How many chunks are known."""
        return len(self._marks)

    @property
    def steps(self) -> int:
        """The steps of the chunks that are known."""
        return self.starts[-1]

    def named(self, number: int) -> str:
        return f"chunk {number} (from step {self.starts[number]})"

    def between(self, begin: int, end: int) -> range:
        """The numbers of the chunks that hold steps begin..end, where begin < end."""
        return range(bisect_right(self.starts, begin) - 1, bisect_left(self.starts, end))

    def matches(self, number: int, chunk: Tree) -> bool:
        """Whether a chunk that is known has still the numbers that it was written down with."""
        return _mark(pytree.tree_leaves(chunk)) == self._marks[number]

    def checked(self, number: int, chunk: Tree) -> Tree:
        """The chunk, compared with the first one and with its own first reading; new ones are written down.

        Raises:
            TypeError, ValueError: it is no chunk, not like the first, or not what it was.
        """
        leaves, nesting = pytree.tree_flatten(chunk)
        name = self.named(number)
        steps = check_tree(leaves, name)
        alike = (nesting, [(leaf.shape[1:], leaf.dtype, leaf.device) for leaf in leaves])
        if not steps:
            raise ValueError(f"{name} has no steps: leave empty chunks out")
        if self._alike is None:
            self._alike = alike
            self.first = pytree.tree_map(lambda x: x[:1].clone(), chunk)
        elif alike != self._alike:
            raise ValueError(self._difference(name, *alike))
        known, mark = number < len(self._marks), _mark(leaves)
        if not known:
            self.starts.append(self.starts[-1] + steps)
            self._marks.append(mark)
            return chunk
        before = self.starts[number + 1] - self.starts[number]
        if steps != before:
            raise ValueError(
                f"{name} has {steps} steps when it is read again, but had {before} the first time: the source must "
                "give the same chunks every time"
            )
        if mark != self._marks[number]:
            raise ValueError(
                f"the stream gives other numbers when it is opened again ({name}): make it deterministic, e.g. seed it "
                "inside, and do not shuffle"
            )
        return chunk

    def _difference(self, name: str, nesting: Any, alike: list[Any]) -> str:
        assert self._alike is not None
        if nesting != self._alike[0]:
            return f"{name} is nested otherwise than the first one: all must be the same nesting of tensors"
        (shape, *kind), (first_shape, *first_kind) = next(
            pair for pair in zip(alike, self._alike[1]) if pair[0] != pair[1]
        )
        if shape != first_shape:
            found, expected = (f"shape (t, {', '.join(map(str, sizes))})" for sizes in (shape, first_shape))
        else:
            found, expected = (f"{dtype} on {device}" for dtype, device in (kind, first_kind))
        return f"{name} has {found}, the first one {expected}: chunks may differ in their number of steps only"


def check_tree(leaves: list[Any], what: str) -> int:
    """The steps of a nesting's tensors.

    Raises:
        TypeError, ValueError: they are no tensors (t, B, ...) of the same t and B.
    """
    if not leaves:
        raise TypeError(f"{what} holds no tensors: chunks are tensors (t, B, ...) or nestings of them")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{what} holds a {type(leaf).__name__}: chunks are tensors (t, B, ...) or nestings of them, "
                "as torch.as_tensor makes; a whole array is a stream by itself, Streamed(array)"
            )
        if leaf.dim() < 2 or not leaf.shape[1]:
            raise ValueError(f"{what} has shape {tuple(leaf.shape)}, expected (t, B, ...): time first, then rows")
        if leaf.shape[:2] != leaves[0].shape[:2]:
            raise ValueError(
                f"{what} holds tensors of shapes {tuple(leaves[0].shape)} and {tuple(leaf.shape)}: all must have the "
                "same steps and rows (t, B, ...)"
            )
        if leaf.requires_grad:
            raise ValueError(f"{what} requires a gradient, which would not be followed: detach() it")
    return leaves[0].shape[0]


def _mark(leaves: list[Tensor]) -> int:
    """A number that tells chunks apart by a few of their elements."""
    found = []
    for leaf in leaves:
        if leaf.numel() > _MARKED:
            places = _places(leaf.numel())
            # Of a tensor that does not lie in one piece, reshape would copy all.
            leaf = leaf.view(-1)[places] if leaf.is_contiguous() else leaf[torch.unravel_index(places, leaf.shape)]
        found.append(bytes(leaf.detach().resolve_conj().cpu().contiguous().view(-1).view(torch.uint8).tolist()))
    return hash(tuple(found))


@lru_cache(maxsize=256)
def _places(size: int) -> Tensor:
    """Elements spread over ``size``, the first and the last among them, that fall on no grid."""
    spread = (torch.arange(_MARKED, dtype=torch.float64) * 0.6180339887498949) % 1  # the golden section
    places = (spread * size).long()
    places[-1] = size - 1
    return places
