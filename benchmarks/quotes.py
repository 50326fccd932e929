"""Figures that another page quotes from the benchmarks' page, kept the same as there."""

from __future__ import annotations

import re

__all__ = ["requoted"]

BLOCK = re.compile(r"(<!-- from docs/benchmarks.md -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def requoted(text: str, page: str) -> str:
    """``text`` with each quoted table replaced by the one of ``page`` that has the same headings.

    >>> text = "<!-- from docs/benchmarks.md -->\\n\\n|a|\\n|1|\\n\\n<!-- end -->"
    >>> requoted(text, "x\\n\\n|a|\\n|2|\\n").splitlines()[2:4]
    ['|a|', '|2|']
    """
    tables = {block.split("\n", 1)[0]: block for block in page.strip().split("\n\n") if block.startswith("|")}

    def anew(found: re.Match[str]) -> str:
        heading = found[2].split("\n", 1)[0]
        if heading not in tables:
            raise ValueError(f"no table of the page has the headings {heading}")
        return found[1] + tables[heading] + found[3]

    return BLOCK.sub(anew, text)
