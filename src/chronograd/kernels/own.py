"""The walk back over each unit's own influence: a linear recurrence, number by number, whose coefficients change with
every step. ``native/own.c`` walks; where there is none, torch does the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .library import Own, OwnCell, library

__all__ = ["LEAST", "own_back", "own_cell_back"]

LEAST = 1e-3  # times eps: what weighs less beside 1 is forgotten
SIMPLE = {"tanh": 0, "relu": 1, "linear": 2}  # by the numbers of native/kernels.h
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
    tensors = [*delta, *(o for row in own for o in row if o is not None)]
    native = library() if _alike(tensors) and all(part.shape == delta[0].shape for part in tensors) else None
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


def own_cell_back(
    kind: str, path: Tensor, weight: Tensor | None, gates: Tensor | None, valid: Tensor | None, given: Tensor | None
) -> tuple[Tensor, Tensor, int] | None:
    """The same for a cell of one number and one product a unit, compiled, from its states; None where that is not so.

    Args:
        kind: ``"tanh"``, ``"relu"`` or ``"linear"``, real.
        path: (T, B, H), the states after every step.
        weight: (H,), each unit's own recurrent weight; None is 0: nothing is passed on.
        gates: (T, B), None for 1. A row that starts anew has a gate of 0.
        valid: (T, B) bool, None for True.
        given: (T, B, H), what arrives at each step; None: 1 at the last step.

    Returns:
        The cotangents of the products (T, B, H), what flows on before the first step (B, H), and the first step whose
        cotangents are not forgotten: 0 with ``given``, else that before which all are below rounding, and 0.
    """
    native = library()
    tensors = [part for part in (path, weight, given) if part is not None]
    if native is None or kind not in SIMPLE or not _alike(tensors) or path.is_complex():
        return None
    steps, rows, size = path.shape
    product, flow = torch.empty_like(path), path.new_empty(rows, size)
    first = torch.zeros(rows, dtype=torch.int64)
    held = [
        None if gates is None else gates.to(path.dtype).contiguous(),
        None if valid is None else valid.to(torch.uint8).contiguous(),
    ]
    places = (path, weight, *held, given, product, flow, first)
    at = (None if part is None else part.data_ptr() for part in places)
    call = OwnCell(REALS[path.dtype], SIMPLE[kind], steps, rows, size, *at, LEAST * torch.finfo(path.dtype).eps)
    native.chronograd_own_cell(ctypes.byref(call), torch.get_num_threads())
    return product, flow, int(first.min())


def _alike(tensors: Sequence[Tensor]) -> bool:
    like = tensors[0]
    return (
        like.device.type == "cpu"
        and like.dtype in REALS
        and all(part.dtype == like.dtype and part.is_contiguous() for part in tensors)
    )
