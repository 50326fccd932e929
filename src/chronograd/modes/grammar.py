"""Modes as text: ``reverse``, ``reverse:256MB``."""

from __future__ import annotations

from .base import Mode
from .reverse import Reverse

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = "reverse, reverse:SIZE (as in 256MB) or reverse:auto"


def parse(text: str) -> Mode:
    """The mode that ``text`` names; the inverse of ``Mode.spec()``.

    Raises:
        ValueError: in one line, with the forms that are understood.

    >>> parse("reverse"), parse("reverse:256MB")
    (Reverse(memory=None), Reverse(memory='256MB'))
    """
    name, _, rest = text.strip().partition(":")
    if name.lower() == "reverse":
        try:
            return Reverse(rest.strip() or None)
        except ValueError as error:
            raise ValueError(f"mode {text!r}: {error}") from None
    raise ValueError(f"mode {text!r} is not understood; write {GRAMMAR}")
