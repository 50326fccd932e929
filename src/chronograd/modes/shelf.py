"""Stored states in one block of memory.

States are small and live long; what a segment allocates is large and lives for a moment. Left to an allocator, each
state comes to lie in the middle of a free large block, which is then too small for the next segment, and memory grows
with every segment as if nothing had been freed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronograd.recurrence.states import leaves, tree_map

__all__ = ["Shelf"]


class Shelf:
    """Room for ``slots`` states, laid out for the first that is put; a state of other shapes is kept as it is.

    >>> shelf = Shelf(2)
    >>> for number in range(3):
    ...     shelf.put(number, (torch.tensor([number]), "any"))
    ...     if number:
    ...         shelf.free(number - 1)
    >>> shelf.get(2)
    (tensor([2]), 'any')
    """

    def __init__(self, slots: int) -> None:
        self._empty = list(range(slots))
        self._blocks: list[Tensor] | None = None
        self._kept: dict[int, tuple[Any, int | None]] = {}

    def put(self, key: int, state: Any) -> None:
        """Keep a state, without its graph."""
        found = leaves(state)
        if self._blocks is None and found:
            self._blocks = [x.new_empty(len(self._empty), *x.shape) for x in found]
        blocks = self._blocks or []
        if not self._empty or [(x.shape, x.dtype) for x in found] != [(b.shape[1:], b.dtype) for b in blocks]:
            self._kept[key] = tree_map(lambda x: x.detach().clone(), state), None
            return
        slot = self._empty.pop()
        rows = iter([block[slot].copy_(x.detach()) for block, x in zip(blocks, found)])
        self._kept[key] = tree_map(lambda _: next(rows), state), slot

    def get(self, key: int) -> Any:
        """A copy of a state: its place may be given to another as soon as it is free."""
        return tree_map(torch.clone, self._kept[key][0])

    def free(self, key: int) -> None:
        """Forget a state."""
        slot = self._kept.pop(key)[1]
        if slot is not None:
            self._empty.append(slot)
