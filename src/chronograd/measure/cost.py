"""What a computation costs: seconds on the clock, and the bytes of tensors alive at once (``modes.peak``)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from chronograd.modes.peak import PeakBytes

__all__ = ["PeakBytes", "give_back_pages", "seconds"]


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


def give_back_pages() -> None:
    """Give the system what the C library keeps of freed memory, so that what is measured next pays for new pages, as a
    call that needs more than was ever freed does. Does nothing where the library is not glibc.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
