"""Timing that a shared machine disturbs as little as possible: interleaved runs, and medians."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter

__all__ = ["inside", "interleaved", "markdown", "whole_process"]


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each function in every round; the functions take turns, so that a slow moment meets them all.

    ``before`` runs ahead of each call and is not timed.
    """
    for function in functions.values():
        before()
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            before()
            start = perf_counter()
            function()
            seconds[name].append(perf_counter() - start)
    return seconds


def whole_process(arguments: Sequence[str], rounds: int) -> float:
    """Median seconds from the start of ``python ARGUMENTS`` to its end."""
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(perf_counter() - start)
    return median(seconds)


def inside(code: str, rounds: int) -> float:
    """Median of the one number that ``code`` prints, over fresh processes."""
    return median(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
