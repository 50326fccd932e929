"""A corpus that needs no network: the English prose of Python's own language reference.

The standard library ships the reference manual's topics for `help()` (`pydoc_data.topics`, 0.47 MB). Many
topics contain one another, so a plain join would put the same paragraph on both sides of a train/validation
split; and about a third is grammar, code and tables. What is kept is each prose paragraph once, in order, one
paragraph a line: about 0.26 MB.
"""

from __future__ import annotations

import re

__all__ = ["builtin_text"]

_TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_MIN_LETTERS = 0.85  # below this share of letters and spaces a paragraph is code, grammar or a table
_MIN_LENGTH = 60  # shorter ones are headings and signatures


def builtin_text() -> str:
    """The prose of Python's language reference, one paragraph a line.

    The text differs a little between Python versions, as the manual does; compare numbers within one version.

    >>> text = builtin_text()
    >>> 100_000 < len(text) < 1_000_000 and text.isascii()
    True
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}  # a dict keeps the order and drops the repeats
    for topic in topics.values():
        for block in re.split(r"\n\s*\n", topic):
            line = " ".join(block.translate(_TYPOGRAPHY).encode("ascii", "ignore").decode().split())
            if _is_prose(line):
                paragraphs[line] = None
    return "\n".join(paragraphs) + "\n"


def _is_prose(line: str) -> bool:
    """Whether the paragraph reads as English rather than as code, grammar or a table."""
    if len(line) < _MIN_LENGTH or ">>>" in line or "::=" in line:
        return False
    return sum(c.isalpha() or c == " " for c in line) / len(line) > _MIN_LETTERS
