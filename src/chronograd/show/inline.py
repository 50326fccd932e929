"""A figure as SVG that stands inside an HTML page: nothing fetched, no name that meets one of another figure."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from chronograd.style import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]


def inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """The ``<svg>`` element of a figure.

    Args:
        figure: any matplotlib figure.
        prefix: put before every id, so that two figures of a page share none.
        description: what a reader who does not see it is told.

    >>> from matplotlib.figure import Figure
    >>> svg = inline_svg(Figure(), "empty", 'an "empty" figure')
    >>> svg.startswith('<svg role="img" aria-label="an &quot;empty&quot; figure"'), "http" in svg
    (True, False)
    """
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # letters drawn are repeated there as they were typed
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows what an svg element is
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'\bxlink:href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1).strip()
