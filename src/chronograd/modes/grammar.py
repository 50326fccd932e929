"""Modes as text: ``reverse``, ``reverse:256MB``, ``scan``, ``scan:quasi,200``, ``rtrl``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Mode
from .forward.base import Forward, read_words
from .forward.eprop import EProp
from .forward.rflo import RFLO
from .forward.rtrl import RTRL
from .forward.snap import SnAp
from .reverse import Reverse
from .scan.mode import Scan, parse_scan

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = (
    "reverse, reverse:SIZE (as in 256MB), reverse:auto, "
    "scan[:newton|quasi|loop][,always][,ITERATIONS][,TOLERANCE][,SIZE] "
    "rtrl[:SIZE], snap[:N][,SIZE], rflo[:SIZE] or eprop[:partial|total][,SIZE]"
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
            case "rtrl", _:
                return _forward(RTRL, words)
            case "rflo", _:
                return _forward(RFLO, words)
            case "snap", _:
                return _forward(SnAp, words or ["1"], int)
            case "eprop", _:
                return _forward(EProp, words, str)
    except ValueError as error:
        raise ValueError(f"mode {text!r}: {error}") from None
    raise ValueError(f"mode {text!r} is not understood; write {GRAMMAR}")


def _forward(kind: type[Forward], words: list[str], *readers: Callable[[str], Any]) -> Forward:
    """A mode from its numbers in order, and a limit of bytes anywhere among them."""
    given = read_words(words)
    rest = given.pop("rest")
    if len(rest) > len(readers):
        raise ValueError(f"{kind.__name__}: {rest[len(readers)]!r} is none of its numbers; write {GRAMMAR}")
    return kind(*(read(word) for read, word in zip(readers, rest)), **given)
