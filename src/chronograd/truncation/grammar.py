"""Truncations as text: ``full``, ``chunks:35``, ``window:5,50``, ``random:16``, ``adaptive:0.1``."""

from __future__ import annotations

from .adaptive import AdaptiveTruncation
from .base import Truncation
from .chunks import Chunks
from .full import Full
from .random import RandomTruncation
from .window import Window

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = "full, chunks:K, window:K1,K2, random:LENGTH[,polynomial[,ALPHA]] or adaptive:TOLERANCE[,WINDOW]"


def parse(text: str) -> Truncation:
    """The truncation that ``text`` names; the inverse of ``Truncation.spec()``.

    Raises:
        ValueError: in one line, with the forms that are understood.

    >>> parse("window:5,50")
    Window(k1=5, k2=50)
    >>> parse("random:16,polynomial").alpha
    4.0
    >>> parse("chunks:0")
    Traceback (most recent call last):
    ...
    ValueError: truncation 'chunks:0': Chunks: k must be at least 1, not 0
    """
    name, _, rest = text.strip().partition(":")
    words = [word.strip() for word in rest.split(",")] if rest else []
    try:
        match name.lower(), words:
            case "full", []:
                return Full()
            case "chunks", [k]:
                return Chunks(_whole(k))
            case "window", [k1, k2]:
                return Window(_whole(k1), _whole(k2))
            case "random", [length]:
                return RandomTruncation(_number(length))
            case "random", [length, ("geometric" | "polynomial") as tail]:
                return RandomTruncation(_number(length), tail)
            case "random", [length, "polynomial", alpha]:
                return RandomTruncation(_number(length), "polynomial", _number(alpha))
            case "adaptive", [tolerance]:
                return AdaptiveTruncation(_number(tolerance))
            case "adaptive", [tolerance, window]:
                return AdaptiveTruncation(_number(tolerance), _whole(window))
    except (ValueError, TypeError) as error:
        raise ValueError(f"truncation {text!r}: {error}") from None
    raise ValueError(f"truncation {text!r} is not understood; write {GRAMMAR}")


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a whole number of steps") from None


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
    return int(value) if value.is_integer() and "." not in word and "e" not in word.lower() else value
