"""Memory that a call needs only while it runs, kept for the next call of the same thread.

Fresh pages cost as much as a tenth of a call. What is larger than ``MOST`` bytes is not kept.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["MOST", "room"]

MOST = 16 * 2**20

_kept = threading.local()


def room(size: int) -> Tensor:
    """At least so many bytes, uninitialised; they are the caller's until the next call in this thread.

    >>> first = room(48)
    >>> first.numel() >= 48, room(8).data_ptr() == first.data_ptr()
    (True, True)
    """
    if size > MOST:
        return torch.empty(size, dtype=torch.uint8)
    held = getattr(_kept, "room", None)
    if held is None or held.numel() < size:
        held = _kept.room = torch.empty(size, dtype=torch.uint8)
    return held
