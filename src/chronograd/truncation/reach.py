"""How far back each loss reaches under a plan, in steps: what a truncation's numbers mean on a stretch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import GatePlan, Place, SpanPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["steps_reached"]


def steps_reached(plan: GatePlan | SpanPlan, place: Place) -> Tensor:
    """Steps that each step and row's loss reaches, its own included: int64 (T, B), counted within the stretch.

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
    since = torch.where(begins, time, 0).cummax(0).values
    if isinstance(plan, SpanPlan):
        for span in plan.spans:
            steps = slice(span.first - place.position, span.last - place.position + 1)
            since[steps] = since[steps].clamp(min=max(0, span.start - place.position))
    return time - since + 1
