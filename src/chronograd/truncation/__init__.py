"""Which terms of the sum over time are kept: one file for each truncation, gates or spans for all of them."""

from .adaptive import AdaptiveTruncation
from .base import GatePlan, Place, Span, SpanPlan, Truncation
from .chunks import Chunks
from .full import Full
from .grammar import GRAMMAR, parse
from .random import RandomTruncation
from .window import Window

__all__ = [
    "GRAMMAR",
    "AdaptiveTruncation",
    "Chunks",
    "Full",
    "GatePlan",
    "Place",
    "RandomTruncation",
    "Span",
    "SpanPlan",
    "Truncation",
    "Window",
    "parse",
]
