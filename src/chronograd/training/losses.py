"""Losses as ``value_and_grad`` wants them: one number per step and row, nothing averaged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "squared_error"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log softmax(logits)[target]`` in nats.

    Args:
        logits: ``(T, B, V)``.
        targets: int64 ``(T, B)``.

    Returns:
        ``(T, B)``.

    >>> cross_entropy(torch.zeros(3, 2, 8), torch.zeros(3, 2, dtype=torch.int64)).exp()
    tensor([[8., 8.],
            [8., 8.],
            [8., 8.]])
    """
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``(output - target)^2``.

    Args:
        outputs: ``(T, B)`` or ``(T, B, 1)``.
        targets: ``(T, B)``.

    Returns:
        ``(T, B)``.
    """
    if outputs.dim() == targets.dim() + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
    return torch.square(outputs - targets)
