"""Reading what was typed: truncations, numbers and their ranges, the path of a figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chronograd.cli.errors import UsageError, nearest
from chronograd.truncation import AdaptiveTruncation, Chunks, Full, RandomTruncation, Truncation, Window, parse

__all__ = ["Whole", "at_least", "figure_path", "one_of", "read_seed", "read_steps", "read_truncation"]

# A whole number as Python writes it: cyclopts' own reading would make 1 of 1.5 without a word.
Whole = Annotated[int, Parameter(converter=lambda _, tokens: int(tokens[0].value), metavar="N")]


def one_of(*choices: str) -> Parameter:
    """An option that takes one of these words, and shows them where others show a kind of value."""
    return Parameter(choices=choices, metavar="|".join(choices), show_choices=False)


def at_least(option: str, value: int | None, least: int = 1) -> None:
    """Refuse a number below ``least``; no number at all is fine.

    >>> at_least("--steps", 0)
    Traceback (most recent call last):
    ...
    chronograd.cli.errors.UsageError: --steps must be at least 1, not 0
    """
    if value is not None and value < least:
        raise UsageError(f"{option} must be at least {least}, not {value}")


def read_seed(seed: int | None) -> int | None:
    """The seed, if it fits a generator.

    >>> read_seed(-1)
    Traceback (most recent call last):
    ...
    chronograd.cli.errors.UsageError: --seed must lie between 0 and 2**63 - 1, not -1
    """
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"--seed must lie between 0 and 2**63 - 1, not {seed}")
    return seed


def read_truncation(text: str) -> Truncation:
    """The truncation that ``text`` names.

    Raises:
        UsageError: it names none; with what was probably meant.

    >>> read_truncation("chunks:35")
    Chunks(k=35)
    >>> read_truncation("chunk:35")
    Traceback (most recent call last):
    ...
    chronograd.cli.errors.UsageError: truncation 'chunk:35' is not understood; did you mean 'chunks:35'?
    """
    try:
        return parse(text)
    except ValueError as error:
        hint = _suggestion(text)
        raise UsageError(f"truncation {text!r} is not understood{hint}" if hint else str(error)) from None


def _suggestion(text: str) -> str:
    names = [kind.name for kind in (AdaptiveTruncation, Chunks, Full, RandomTruncation, Window)]
    word, *values = re.findall(r"[a-z]+|[\d.]+", text.lower()) or [""]
    close = nearest(word, names, ending=":" + ",".join(values) if values else "")
    try:
        parse(close.split("'")[1] if close else "")
    except ValueError:
        return ""
    return close


def read_steps(option: str, text: str | None, last: int) -> list[int]:
    """Step numbers written ``2,5,7``, each from 1 to ``last``; nothing written is an empty list.

    Raises:
        UsageError: another sign in it, or a step outside; naming the option.

    >>> read_steps("--cuts", "2, 5", last=6)
    [2, 5]
    """
    steps = []
    for word in text.split(",") if text else []:
        try:
            step = int(word)
        except ValueError:
            raise UsageError(f"{option} takes step numbers with commas, such as 2,5; not {text!r}") from None
        if not 1 <= step <= last:
            raise UsageError(f"{option} must lie between 1 and {last}, the last step; not {step}")
        steps.append(step)
    return steps


def figure_path(path: Path, option: str = "--out") -> Path:
    """The path, if a figure can be written there.

    Raises:
        UsageError: its suffix is neither ``.svg`` nor ``.png``.
        OSError: its folder does not exist, or it is a folder itself.

    >>> figure_path(Path("strategies.svg")).name
    'strategies.svg'
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{option} {path}: figures are written as .svg or .png, by the suffix")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the path of a file")
    return path
