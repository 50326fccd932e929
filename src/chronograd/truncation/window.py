"""The sliding window: every k1 steps, the losses of the last k1 steps reach back over the last k2 steps."""

from __future__ import annotations

from dataclasses import dataclass

from .base import GatePlan, Place, Span, SpanPlan, Truncation, gate_plan, whole_number

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(Truncation):
    """Every ``k1`` steps, the losses of the last ``k1`` steps reach back over the last ``k2`` steps.

    Counting steps from 1, the loss at step t of block j = ceil(t / k1) reaches back to step min(t, j k1 - k2 + 1).
    ``Window(1, k)`` is the textbook's sum cut at dh_{t-k}/dw: every loss reaches back exactly k steps. ``Window(k, k)``
    is ``Chunks(k)``. For k2 <= k1 the window is a set of gates; for k2 > k1 it is the one truncation that is none.

    Given the states of one forward pass windows do not depend on one another, so they are computed as rows of a
    batch. The cost is k2 / k1 times that of chunks. When not to use it: for k2 much larger than k1 on long streams,
    where :class:`Full` in longer calls or :class:`RandomTruncation` is cheaper.

    Args:
        k1: steps in a block of losses, at least 1.
        k2: steps a block's last loss reaches back over, at least 1.

    >>> Window(5, 50).spec()
    'window:5,50'
    """

    k1: int
    k2: int
    name = "window"

    def __post_init__(self) -> None:
        whole_number("Window", "k1", self.k1)
        whole_number("Window", "k2", self.k2)

    @property
    def primitive(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return "gates" if self.k2 <= self.k1 else "spans"

    def plan(self, place: Place) -> GatePlan | SpanPlan:
        return self._gates(place) if self.k2 <= self.k1 else self._spans(place)

    def _gates(self, place: Place) -> GatePlan:
        import torch

        position = torch.arange(place.position, place.position + place.steps + 1)
        reach = (position // self.k1 + 1) * self.k1 - self.k2
        cut = ((position <= reach) & (position > 0)).unsqueeze(1).expand(-1, place.rows.numel())
        return gate_plan(place, cut, (~cut).to(torch.float64))

    def _spans(self, place: Place) -> SpanPlan:
        end = place.position + place.steps
        spans = [
            Span(
                max(0, (block + 1) * self.k1 - self.k2),
                max(place.position, block * self.k1),
                min(end, (block + 1) * self.k1) - 1,
            )
            for block in range(place.position // self.k1, (end - 1) // self.k1 + 1)
        ]
        return SpanPlan(spans, max(0, (end // self.k1 + 1) * self.k1 - self.k2))
