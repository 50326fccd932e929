"""What a command prints on stdout when it is done: a table for people, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["number", "print_json", "print_table"]


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
