"""What a computation costs: seconds on the clock, and the bytes of tensors alive at once (``modes.peak``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from chronograd.modes.peak import PeakBytes

__all__ = ["PeakBytes", "seconds", "seconds_of_pages"]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, with whatever it started on a GPU finished; and its result.

    >>> took, value = seconds(lambda: 2 + 2)
    >>> took >= 0, value
    (True, 4)
    """
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() and torch.cuda.is_initialized() else lambda: None
    synchronize()
    begun = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - begun, result


def seconds_of_pages(size: int = 2**26) -> float:
    """What a byte of memory that is new from the system costs over one that is not: seconds, on the CPU.

    >>> 0 <= seconds_of_pages(2**20) < 1e-6
    True
    """
    fresh = torch.empty(size, dtype=torch.uint8)  # so large that the C library asks the system for it
    first, again = (seconds(lambda: fresh.fill_(1))[0] for _ in range(2))
    return max(0.0, first - again) / size
