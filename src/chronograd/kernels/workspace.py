"""Memory that a call needs only while it runs, kept for the next call of the same thread.

Fresh pages cost as much as a tenth of a call. What is larger than ``MOST`` is not kept.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

__all__ = ["MOST", "room"]

MOST = 16 * 2**20

_rooms = threading.local()


def room(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """An uninitialised tensor; it is valid until the next call with this name.

    >>> room("example", (2, 3), torch.float64).shape
    torch.Size([2, 3])
    >>> room("example", (6,), torch.float64).data_ptr() == room("example", (1,)).data_ptr()
    True
    """
    size = math.prod(shape) * dtype.itemsize
    if size > MOST:
        return torch.empty(shape, dtype=dtype)
    held = getattr(_rooms, name, None)
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8)
        setattr(_rooms, name, held)
    return held[:size].view(dtype).view(shape)
