"""What a command prints on stdout when it is done: a table for people, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from chronograd.measure.comparison import Comparison

__all__ = ["number", "print_comparison", "print_json", "print_table"]


def number(value: float) -> str:
    """Three decimals, or three digits where that would be a long row of them.

    >>> number(2.34567), number(1.2e30), number(float("inf"))
    ('2.346', '1.2e+30', 'inf')
    """
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"


def print_json(value: Any) -> None:
    """Print one JSON object; numbers that JSON has no name for (infinity, not a number) become null.

    >>> print_json({"loss": 1.5, "perplexity": float("inf")})
    {
      "loss": 1.5,
      "perplexity": null
    }
    """
    print(json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False))


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, one a line.

    >>> print_table([("steps", "10"), ("speed", "4,000 characters/s")])
    steps  10
    speed  4,000 characters/s
    """
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    console = Console(highlight=False)
    for name, value in rows:
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", value), soft_wrap=True)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table of a comparison, the recommended row marked, and the recommendation below it.

    Where the terminal is too narrow, standard errors stand below what they belong to.
    """
    console = console or Console(highlight=False)
    table = _comparison_table(comparison, " ± ", gap=2)
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if not console.is_terminal:  # a file or a pipe has no width
        console.width = max(console.width, width)
    console.print(table if width <= console.width else _comparison_table(comparison, "\n±", gap=1))
    console.print()
    console.print(f"recommended: {comparison.recommendation}", markup=False, soft_wrap=not console.is_terminal)


def _comparison_table(comparison: Comparison, plus_minus: str, gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    for index, heading in enumerate(("", *comparison.HEADINGS)):
        table.add_column(heading, justify="right" if index > 1 else "left", no_wrap=True)
    for row, cells in zip(comparison.candidates, comparison.cells()):
        best = row is comparison.recommended
        texts = [Text(cell.replace(" ± ", plus_minus)) for cell in cells]
        table.add_row(">" if best else "", *texts, style="bold green" if best else "")
    return table


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
