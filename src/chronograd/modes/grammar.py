"""Modes as text: ``reverse``."""

from __future__ import annotations

from .base import Mode
from .reverse import Reverse

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = "reverse"


def parse(text: str) -> Mode:
    """The mode that ``text`` names; the inverse of ``Mode.spec()``.

    Raises:
        ValueError: in one line, with the forms that are understood.

    >>> parse("reverse")
    Reverse()
    """
    if text.strip().lower() == "reverse":
        return Reverse()
    raise ValueError(f"mode {text!r} is not understood; write {GRAMMAR}")
