"""Modes as text: ``reverse``, ``reverse:256MB``, ``scan``, ``scan:quasi,200``."""

from __future__ import annotations

from .base import Mode
from .reverse import Reverse
from .scan.mode import Scan, parse_scan

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = (
    "reverse, reverse:SIZE (as in 256MB), reverse:auto "
    "or scan[:newton|quasi|loop][,always][,ITERATIONS][,TOLERANCE][,SIZE]"
)


def parse(text: str) -> Mode:
    """The mode that ``text`` names; the inverse of ``Mode.spec()``.

    Raises:
        ValueError: in one line, with the forms that are understood.

    >>> parse("reverse"), parse("reverse:256MB")
    (Reverse(memory=None), Reverse(memory='256MB'))
    >>> parse("scan:loop").forward
    'loop'
    """
    name, _, rest = text.strip().partition(":")
    words = [word.strip() for word in rest.split(",")] if rest else []
    try:
        match name.lower(), words:
            case "reverse", []:
                return Reverse()
            case "reverse", [size]:
                return Reverse(size)
            case "scan", _:
                return parse_scan(words) if words else Scan()
    except ValueError as error:
        raise ValueError(f"mode {text!r}: {error}") from None
    raise ValueError(f"mode {text!r} is not understood; write {GRAMMAR}")
