"""The walk back over each unit's own influence: a linear recurrence, number by number, whose coefficients change with
every step. ``native/own.c`` walks; where there is none, torch does the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .library import Own, library

__all__ = ["own_back"]

REALS = {torch.float32: 0, torch.float64: 1, torch.complex64: 0, torch.complex128: 1}


def own_back(own: Sequence[Sequence[Tensor | None]], delta: Sequence[Tensor]) -> list[Tensor]:
    """Walk back over T steps, in place::

        delta[o](t-1) += sum over p of own[p][o](t) delta[p](t)

    Args:
        own: (T, ...) each, how number p of a unit depends on its number o one step before; None is 0. Of one shape and
            dtype with ``delta``.
        delta: what arrives at the numbers of each step, (T, ...) each; becomes that with what flows back into it.

    Returns:
        What flows on before the first step, (...) each.

    >>> own, delta = torch.full((3, 1), 0.5), torch.tensor([[0.0], [0.0], [1.0]])
    >>> own_back([[own]], [delta])[0], delta.flatten()
    (tensor([0.1250]), tensor([0.2500, 0.5000, 1.0000]))
    """
    parts = range(len(delta))
    flow = [torch.zeros_like(part[0], memory_format=torch.contiguous_format) for part in delta]
    native = library() if _served([*delta, *(o for row in own for o in row if o is not None)]) else None
    if native is not None:
        pairs = delta[0].is_complex()
        width = flow[0].numel() * (2 if pairs else 1)
        at = [None if own[p][o] is None else own[p][o].data_ptr() for p in parts for o in parts]  # pyright: ignore
        call = Own(
            REALS[delta[0].dtype],
            pairs,
            len(delta[0]),
            width,
            len(delta),
            *at,
            *[None] * (4 - len(at)),
            *(part.data_ptr() for part in delta),
            *[None] * (2 - len(delta)),
            *(part.data_ptr() for part in flow),
        )
        native.chronograd_own(ctypes.byref(call), torch.get_num_threads())
        return flow
    for t in range(len(delta[0]) - 1, -1, -1):
        for o in parts:
            to = delta[o][t - 1] if t else flow[o]
            for p in parts:
                if (part := own[p][o]) is not None:
                    to.addcmul_(part[t], delta[p][t])
    return flow


def _served(tensors: Sequence[Tensor]) -> bool:
    return all(part.device.type == "cpu" and part.dtype in REALS and part.is_contiguous() for part in tensors)
