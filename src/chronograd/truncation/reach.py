"""How far back each loss reaches under a plan, in steps: what a truncation's numbers mean on a stretch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import GatePlan, Place, SpanPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["steps_reached"]


def steps_reached(plan: GatePlan | SpanPlan, place: Place) -> Tensor:
    """Steps that each step and row's loss reaches, its own included: int64 (T, B).

    A row reaches no further than to its stream's start, its last reset or its last cut (``place.since``).

        >>> import torch
        >>> from chronograd.truncation import Chunks
        >>> place = Place(0, 5, torch.arange(1), 0, torch.zeros(1, dtype=torch.int64))
        >>> steps_reached(Chunks(3).plan(place), place).T
        tensor([[1, 2, 3, 1, 2]])
    """
    import torch

    time = torch.arange(place.steps).unsqueeze(1)
    if isinstance(plan, GatePlan):
        begins = plan.gates == 0
    else:
        begins = torch.zeros(place.steps, place.rows.numel(), dtype=torch.bool)
        if place.reset is not None:
            begins |= place.reset.cpu()
    first = torch.where(begins, time, -place.since).cummax(0).values
    if isinstance(plan, SpanPlan):
        for span in plan.spans:
            steps = slice(span.first - place.position, span.last - place.position + 1)
            first[steps] = first[steps].clamp(min=span.start - place.position)
    return time - first + 1
