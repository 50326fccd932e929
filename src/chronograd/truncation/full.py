"""Full computation: nothing is cut."""

from __future__ import annotations

from dataclasses import dataclass

from .base import GatePlan, Place, Truncation, common_plan

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Truncation):
    """Every term of the sum over time: the gate is 1 on every edge.

    Exact, and over a stream of calls it reaches back to each row's last reset, which costs time and memory in every
    call (value_and_grad warns once). When not to use it: on endless streams without resets; cut the carry
    (``carry.cut()``) or take :class:`Chunks`.

    >>> Full().spec()
    'full'
    """

    primitive = "gates"
    name = "full"
    unbiased = True

    def plan(self, place: Place) -> GatePlan:
        return common_plan(place, range(0))
