"""One layer in plain torch, forward and back, by the two calls of ``compiled``: the kinds that the compiled kernels do
not have, under what needs these calls (``transforms``, ``operators``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import compiled, reference
from .cells import CELLS, fold_biases
from .compiled import KINDS, Call, Gradients
from .edges import Edges

__all__ = ["back", "forward", "kernels_of"]

State = tuple[Tensor, ...]


def kernels_of(kind: str) -> ModuleType:
    """What has ``forward`` and ``back`` for a layer of this kind: ``compiled``, or this file.

    >>> kernels_of("gru").__name__, kernels_of("elstm").__name__
    ('chronograd.kernels.compiled', 'chronograd.kernels.plain')
    """
    return compiled if kind in KINDS else sys.modules[__name__]


def forward(call: Call, keep: bool) -> tuple[State, Tensor | None]:
    """As ``compiled.forward``; what the way back needs is (T, B, kept H)."""
    cell = CELLS[call.kind]
    bias_ih, bias = fold_biases(call.kind, call.bias_ih, call.bias)
    drive = torch.nn.functional.linear(call.x, call.weight_ih, bias_ih)
    path, kept = reference.walk_forward(cell, _edges(call), keep, drive, call.weight, bias, call.states)
    return path, kept if keep and cell.kept else None


def back(
    call: Call, path: State, kept: Tensor | None, given: Sequence[Tensor | None], wanted: Sequence[bool]
) -> Gradients:
    """As ``compiled.back``."""
    cell, weight = CELLS[call.kind], call.weight
    kept = path[0].new_empty(*path[0].shape[:2], 0) if kept is None else kept
    found = reference.back(cell, _edges(call), weight, kept, path, call.states, given, (wanted[3], wanted[4]))
    drive = found.drive.flatten(0, 1)
    return Gradients(
        (drive @ call.weight_ih.conj()).view(call.x.shape) if wanted[0] else None,
        drive.mT @ call.x.flatten(0, 1).conj() if wanted[1] else None,
        drive.sum(0) if wanted[2] else None,
        found.weight,
        found.bias,
        found.states,
    )


def _edges(call: Call) -> Edges:
    gates, reset, valid = call.crossings
    return Edges(gates, None if reset is None else reset >= 0, None if valid is None else valid.bool())
