"""Reverse mode: store the states, walk back once."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Mode

__all__ = ["Reverse"]


@dataclass(frozen=True)
class Reverse(Mode):
    """Backpropagation through time: run forward, store what the backward pass needs, walk back once.

    Exact for whatever terms the truncation keeps. Time: two to three forward passes. Memory: grows with the number of
    steps a loss reaches back, times the bytes of one step. When not to use it: where those states do not fit.

    >>> Reverse().spec()
    'reverse'
    """

    name = "reverse"
    exact = True
    online = False
