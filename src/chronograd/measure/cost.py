"""What a computation costs: seconds on the clock, and the bytes of tensors alive at once (``modes.peak``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from chronograd.modes.peak import PeakBytes

__all__ = ["PeakBytes", "seconds"]


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
