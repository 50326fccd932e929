"""Regular truncation: the gradient is cut every k steps."""

from __future__ import annotations

from dataclasses import dataclass

from .base import GatePlan, Place, Truncation, common_plan, whole_number

__all__ = ["Chunks"]


@dataclass(frozen=True)
class Chunks(Truncation):
    """Regular truncation: chunks of ``k`` steps, the ``detach`` of every tutorial.

    The gate is 0 on the edge into the first step of each chunk, else 1. Chunks lie on the grid of stream positions:
    they start at 0, k, 2k, ..., the same for all rows; resets do not move the grid. The mean look-back is (k + 1) / 2
    steps, not k.

    When not to use it: when losses right after a cut matter as much as those before it (a :class:`Window` gives every
    loss the same reach), or when the bias must be zero (:class:`Full`, :class:`RandomTruncation`).

    Args:
        k: steps in a chunk, at least 1.

    >>> Chunks(35).spec()
    'chunks:35'
    """

    k: int
    primitive = "gates"
    name = "chunks"

    def __post_init__(self) -> None:
        whole_number("Chunks", "k", self.k)

    def plan(self, place: Place) -> GatePlan:
        first = -place.position % self.k if place.position else self.k
        return common_plan(place, range(first, place.steps + 1, self.k))
